"""Which administrative calls there are: each names a service of a layer below, none decides for itself."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from aims.audit.record import inert
from aims.policy.bundle import Bundle
from aims.policy.errors import PolicyError
from aims.policy.question import Decision, Entity, Fact, Question
from aims.policy.store import active
from aims.server.admin import AdminCall, AdminRoute, Body, Nothing, Text, reading
from aims.server.admin_explain import ExplainCalls
from aims.server.admin_grants import GrantCalls
from aims.server.admin_monitoring import MonitoringCalls
from aims.server.admin_people import PeopleCalls
from aims.server.admin_registry import RegistryCalls
from aims.server.core import Core
from aims.server.policy_activation import activate
from aims.storage.intent import Plan


class Party(Body, frozen=True):
    """A principal or resource of a question to the policy."""

    type: Literal["Agent", "Node", "Person", "Operator", "Resource"]
    id: Text
    attributes: dict[str, str | int | bool | list[str]] = msgspec.field(default_factory=dict)


class CheckPolicy(Body, frozen=True):
    """A question to the policy in force."""

    principal: Party
    action: Literal["issue", "token", "exchange", "transact", "call", "stop", "administer"]
    resource: Party
    context: dict[str, str | int | bool | list[str]] = msgspec.field(default_factory=dict)


class ApplyPolicy(Body, frozen=True):
    """A whole bundle by file name, and the version that it is to replace."""

    files: Annotated[dict[Text, str], msgspec.Meta(max_length=64)]
    before: Text


class PolicyBundle(msgspec.Struct, frozen=True):
    """The bundle in force."""

    version: str
    files: dict[str, str]


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

    async def show(call: AdminCall, _: Nothing) -> Plan[object]:
        bundle = await core.database.read(active)
        if bundle is None:
            raise PolicyError("inactive")
        files = {name: octets.decode("utf-8") for name, octets in bundle.files.items()}
        return reading(call, "policy.show", PolicyBundle(bundle.version, files))

    async def apply(call: AdminCall, body: ApplyPolicy) -> Plan[object]:
        bundle = Bundle.from_files({name: text.encode("utf-8") for name, text in body.files.items()})
        plan = activate(
            bundle,
            before=body.before,
            now=call.now,
            record_id=call.request_id,
            operator=call.operator.as_member(),
            cause=call.operator.as_cause(),
        )

        return plan.shaped(lambda version: {"version": version, "before": body.before})

    return (
        *RegistryCalls(core).routes(),
        *MonitoringCalls(core).routes(),
        *PeopleCalls(core).routes(),
        *GrantCalls(core).routes(),
        *ExplainCalls(core).routes(),
        AdminRoute("status", "GET", "/admin/v1/status", Nothing, False, status),
        AdminRoute("policy.show", "GET", "/admin/v1/policy", Nothing, False, show),
        AdminRoute("policy.apply", "POST", "/admin/v1/policy", ApplyPolicy, True, apply),
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
