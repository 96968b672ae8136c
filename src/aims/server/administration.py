"""Which administrative calls there are: each names a service of a layer below, none decides for itself."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from aims.audit.record import inert
from aims.policy.question import Decision, Entity, Fact, Question
from aims.server.admin import AdminCall, AdminRoute, Nothing, reading
from aims.server.admin_registry import RegistryCalls
from aims.server.core import Core
from aims.storage.intent import Plan

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]


class Party(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A principal or resource of a question to the policy."""

    type: Literal["Agent", "Node", "Person", "Operator", "Resource"]
    id: Text
    attributes: dict[str, str | int | bool | list[str]] = {}


class CheckPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question to the policy in force."""

    principal: Party
    action: Literal["issue", "token", "exchange", "transact", "call", "stop", "administer"]
    resource: Party
    context: dict[str, str | int | bool | list[str]] = {}


class Checked(msgspec.Struct, frozen=True):
    """What the policy says, why, and by which version."""

    effect: Literal["permit", "deny"]
    code: str
    rules: tuple[str, ...]
    policy: str
    explanation: str
    record: str


class Status(msgspec.Struct, frozen=True):
    """The server as its administrator sees it."""

    trust_domain: str
    time: float
    policy: str
    feed: int
    writable: bool
    database: Literal["sqlite", "postgresql"]
    record: str


def routes(core: Core) -> tuple[AdminRoute, ...]:
    """All administrative routes over ``core``."""

    async def status(call: AdminCall, _: Nothing) -> Plan[object]:
        value = Status(
            trust_domain=core.settings.trust_domain,
            time=call.now,
            policy=core.policy.engine.version,
            feed=core.database.feed.head,
            writable=core.database.healthy,
            database=core.database.location.backend,
            record=call.request_id,
        )
        return reading(call, "status", value)

    async def check(call: AdminCall, body: CheckPolicy) -> Plan[object]:
        question = Question(
            principal=_entity(body.principal),
            action=body.action,
            resource=_entity(body.resource),
            context=_facts(body.context),
        )
        decision = core.policy.engine.decide(question)
        return reading(
            call,
            "policy.check",
            _checked(decision, call),
            details={
                "asked": inert(f"{body.action} {body.principal.type} {body.resource.type}"),
                "effect": "permit" if decision.allow else "deny",
            },
        )

    return (
        *RegistryCalls(core).routes(),
        AdminRoute("status", "GET", "/admin/v1/status", Nothing, False, status),
        AdminRoute("policy.check", "POST", "/admin/v1/policy/check", CheckPolicy, False, check),
    )


def _checked(decision: Decision, call: AdminCall) -> Checked:
    return Checked(
        effect="permit" if decision.allow else "deny",
        code=decision.code,
        rules=decision.rules,
        policy=decision.policy,
        explanation=decision.explanation,
        record=call.request_id,
    )


def _entity(party: Party) -> Entity:
    return Entity(party.type, party.id, _facts(party.attributes))


def _facts(values: dict[str, str | int | bool | list[str]]) -> dict[str, Fact]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
