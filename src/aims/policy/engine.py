"""Whether: one question to Cedar, one decision, and the sentence that explains it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import cedarpy
import msgspec

from aims.policy.bundle import Bundle
from aims.policy.question import Decision, Question

_NAMESPACE = "AIMS"
_KEPT = 4096
_MAX_KEPT_OCTETS = 4096
_MAX_DETAIL = 500
_encoder = msgspec.json.Encoder(order="sorted")


class _Asked(NamedTuple):
    """A question as Cedar takes it; equal for equal questions, so that answers can be kept."""

    principal: tuple[str, str]
    principal_attributes: bytes
    action: str
    resource: tuple[str, str]
    resource_attributes: bytes
    context: bytes


class Engine:
    """Decides by one bundle. Deterministic, safe for threads, no I/O; building one costs some milliseconds.

    The rules and the schema are parsed once. An answer depends on nothing but the bundle and the question, so recent
    ones are kept, and so are recent pairs of principal and resource (parsing them is a third of a decision): the
    attributes of an agent or a tool rarely change, facts of a single request belong into the context.
    """

    __slots__ = ("_answers", "_entities", "_rules", "version")

    def __init__(self, bundle: Bundle) -> None:
        self.version = bundle.version
        self._rules = bundle.rules
        self._answers = lru_cache(maxsize=_KEPT)(self._answer)
        self._entities = lru_cache(maxsize=_KEPT)(self._parse)

    def decide(self, question: Question) -> Decision:
        """Answer the question; never raises for a question that exists.

        1. Ask Cedar, with principal, resource and context held against the schema. 2. A forbid that applies refuses.
        3. Any error of evaluation refuses, because Cedar skips a rule that it cannot evaluate, a forbid too.
        4. Allowed is only what Cedar allows by at least one permit. 5. Everything else is refused.

        The caller still applies the tables: a permit says whether, never how much.
        """
        principal, resource = question.principal, question.resource
        asked = _Asked(
            (principal.type, principal.id),
            _encoder.encode(dict(principal.attributes)),
            question.action,
            (resource.type, resource.id),
            _encoder.encode(dict(resource.attributes)),
            _encoder.encode(dict(question.context)),
        )
        small = len(asked.principal_attributes) + len(asked.resource_attributes) + len(asked.context) < _MAX_KEPT_OCTETS
        return self._answers(asked) if small else self._answer(asked)

    def _answer(self, asked: _Asked) -> Decision:
        # 1
        try:
            result = self._ask(asked)
        except ValueError as error:
            return self._refuse("evaluation", (), "The question does not fit the schema of the policy.", str(error))
        determining = tuple(sorted(result.diagnostics.reasons))
        errors = result.diagnostics.errors
        # 2
        forbids = tuple(rule for rule in determining if self._rules.effects.get(rule) != "permit")
        if forbids:
            return self._refuse("forbidden", forbids, f"Forbidden by the rule {_listed(forbids)}.")
        # 3
        if errors or result.decision is cedarpy.Decision.NoDecision:
            return self._failed(errors)
        # 4
        if result.decision is cedarpy.Decision.Allow and determining:
            return Decision(True, "", determining, self.version, f"Allowed by the rule {_listed(determining)}.")
        # 5
        candidates = self._rules.permits[asked.action]
        if not candidates:
            return self._refuse("no_rule", (), f"No rule permits the action {asked.action}.")
        return self._refuse(
            "denied", (), f"None of the rules that can permit {asked.action} applies: {_listed(candidates)}."
        )

    def _ask(self, asked: _Asked) -> cedarpy.AuthzResult:
        entities = [(*asked.principal, asked.principal_attributes)]
        if asked.resource != asked.principal:
            entities.append((*asked.resource, asked.resource_attributes))
        elif asked.resource_attributes != asked.principal_attributes:
            raise ValueError("principal and resource are the same entity with different attributes")
        small = sum(len(attributes) for _, _, attributes in entities) < _MAX_KEPT_OCTETS
        return cedarpy.is_authorized(
            {
                "principal": _uid(*asked.principal),
                "action": _uid("Action", asked.action),
                "resource": _uid(*asked.resource),
                "context": asked.context.decode(),
            },
            self._rules.policies,
            (self._entities if small else self._parse)(tuple(entities)),
            self._rules.schema,
        )

    def _parse(self, entities: tuple[tuple[str, str, bytes], ...]) -> cedarpy.Entities:
        document = [
            {"uid": _uid(kind, name), "attrs": msgspec.Raw(attributes), "parents": ()}
            for kind, name, attributes in entities
        ]
        return cedarpy.Entities.from_json_str(_encoder.encode(document).decode(), self._rules.schema)

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


def _listed(rules: tuple[str, ...]) -> str:
    shown = ", ".join(rules[:8])
    return shown if len(rules) <= 8 else f"{shown} and {len(rules) - 8} more"
