"""Whether: one question to Cedar, one decision, and the sentence that explains it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cedarpy
import msgspec

from aims.policy.bundle import Bundle
from aims.policy.question import Decision, Entity, Question

_NAMESPACE = "AIMS"
_KEPT_ENTITY_PAIRS = 4096
_MAX_DETAIL = 500
_encoder = msgspec.json.Encoder(order="sorted")


class Engine:
    """Decides by one bundle. Deterministic, safe for threads, no I/O; building one costs some milliseconds.

    The rules and the schema are parsed once. Principal and resource are parsed once per distinct pair and kept (the
    attributes of an agent or a tool rarely change); facts of a single request belong into the context.
    """

    __slots__ = ("_entities", "_rules", "version")

    def __init__(self, bundle: Bundle) -> None:
        self.version = bundle.version
        self._rules = bundle.rules
        schema = bundle.rules.schema

        def parse(document: bytes) -> cedarpy.Entities:
            return cedarpy.Entities.from_json_str(document.decode(), schema)

        self._entities = lru_cache(maxsize=_KEPT_ENTITY_PAIRS)(parse)

    def decide(self, question: Question) -> Decision:
        """Answer the question; never raises for a question that exists.

        1. Ask Cedar, with principal, resource and context held against the schema. 2. A forbid that applies refuses.
        3. Any error of evaluation refuses, because Cedar skips a rule that it cannot evaluate, a forbid too.
        4. Allowed is only what Cedar allows by at least one permit. 5. Everything else is refused.

        The caller still applies the tables: a permit says whether, never how much.
        """
        # 1
        try:
            result = self._ask(question)
        except ValueError as error:
            return self._refuse("evaluation", (), "The question does not fit the schema of the policy.", str(error))
        determining = tuple(sorted(result.diagnostics.reasons))
        errors = result.diagnostics.errors
        effects = self._rules.effects
        # 2
        forbids = tuple(rule for rule in determining if effects.get(rule) != "permit")
        if forbids:
            return self._refuse("forbidden", forbids, f"Forbidden by the rule {_listed(forbids)}.")
        # 3
        if errors or result.decision is cedarpy.Decision.NoDecision:
            return self._failed(errors)
        # 4
        if result.decision is cedarpy.Decision.Allow and determining:
            explanation = f"Allowed by the rule {_listed(determining)}."
            return Decision(True, "", determining, self.version, explanation)
        # 5
        candidates = self._rules.permits[question.action]
        if not candidates:
            return self._refuse("no_rule", (), f"No rule permits the action {question.action}.")
        return self._refuse(
            "denied", (), f"None of the rules that can permit {question.action} applies: {_listed(candidates)}."
        )

    def _ask(self, question: Question) -> cedarpy.AuthzResult:
        principal, resource = question.principal, question.resource
        pair = [_document(principal)]
        if (resource.type, resource.id) != (principal.type, principal.id):
            pair.append(_document(resource))
        elif resource.attributes != principal.attributes:
            raise ValueError("principal and resource are the same entity with different attributes")
        return cedarpy.is_authorized(
            {
                "principal": _uid(principal.type, principal.id),
                "action": _uid("Action", question.action),
                "resource": _uid(resource.type, resource.id),
                "context": _encoder.encode(dict(question.context)).decode(),
            },
            self._rules.policies,
            self._entities(_encoder.encode(pair)),
            self._rules.schema,
        )

    def _failed(self, errors: list[str]) -> Decision:
        broken = tuple(sorted(rule for rule in self._rules.effects if any(f"policy `{rule}`" in one for one in errors)))
        if broken:
            explanation = f"The rule {_listed(broken)} could not be evaluated for this request."
        else:
            explanation = "The question does not fit the schema of the policy."
        return self._refuse("evaluation", broken, explanation, "; ".join(errors))

    def _refuse(self, reason: str, rules: tuple[str, ...], explanation: str, detail: str = "") -> Decision:
        return Decision(False, reason, rules, self.version, explanation, detail[:_MAX_DETAIL])


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": f"{_NAMESPACE}::{kind}", "id": name}


def _document(entity: Entity) -> dict[str, Any]:
    return {"uid": _uid(entity.type, entity.id), "attrs": dict(entity.attributes), "parents": []}


def _listed(rules: tuple[str, ...]) -> str:
    shown = ", ".join(rules[:8])
    return shown if len(rules) <= 8 else f"{shown} and {len(rules) - 8} more"
