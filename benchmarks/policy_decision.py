"""What a policy decision costs beside the bare call to Cedar that it is made of."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import cedarpy

from aims.policy.bundle import Bundle
from aims.policy.engine import Engine
from aims.policy.question import Entity, Question

ROUNDS = 7
CALLS = 500


def best(call: Callable[[], Any]) -> float:
    """Return microseconds of processor time per call, the best of some rounds (others may use the machine)."""
    call()
    rounds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(CALLS):
            call()
        rounds.append((time.process_time() - start) / CALLS * 1e6)
    return min(rounds)


def main() -> None:
    """Print microseconds per decision, and as a multiple of the bare call."""
    bundle = Bundle.shipped()
    engine = Engine(bundle)
    operator = Entity("Operator", "os:1000", {"roles": ("operator",)})
    route = Entity("Resource", "agent.register", {"kind": "admin-route", "writes": True})
    numbers = itertools.count()

    def ask(operator: Entity = operator) -> None:
        question = Question(principal=operator, action="administer", resource=route, context={"launched": False})
        assert engine.decide(question).allow

    def ask_as_another() -> None:
        ask(Entity("Operator", f"os:{next(numbers)}", {"roles": ("operator",)}))

    request = {
        "principal": {"type": "AIMS::Operator", "id": "os:1000"},
        "action": {"type": "AIMS::Action", "id": "administer"},
        "resource": {"type": "AIMS::Resource", "id": "agent.register"},
        "context": {"launched": False},
    }
    entities = [
        {"uid": request["principal"], "attrs": {"roles": ["operator"]}, "parents": []},
        {"uid": request["resource"], "attrs": {"kind": "admin-route", "writes": True}, "parents": []},
    ]
    rules, schema = bundle.rules.policies, bundle.rules.schema
    text = bundle.files["administration.cedar"].decode()
    schema_text = bundle.files["policy.cedarschema"].decode()

    def bare() -> None:
        assert cedarpy.is_authorized(request, rules, entities, schema).allowed

    def bare_from_text() -> None:
        assert cedarpy.is_authorized(request, text, entities, schema_text).allowed

    base = best(bare)
    print(f"{'one decision':<42}{'µs':>8}{'x bare':>9}")
    for name, cost in (
        ("bare cedarpy call, parsed rules and schema", base),
        ("bare cedarpy call, text each time", best(bare_from_text)),
        ("AIMS, question never asked before", best(ask_as_another)),
        ("AIMS, question asked before", best(ask)),
        ("loading the shipped bundle", best(Bundle.shipped)),
    ):
        print(f"{name:<42}{cost:>8.1f}{cost / base:>9.2f}")


if __name__ == "__main__":
    main()
