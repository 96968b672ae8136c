"""The administrator's door: a unix socket of its own, where every call is decided by policy and leaves a record.

1. The one Host of this door, and nothing that looks like a web page. 2. The peer's uid, as the kernel noted it, gives
the roles. 3. The route exists.
4. Policy decides ``administer`` on it, knowing whether the peer is, or descends from, a launched process. 5. The body
is decoded. 6. The service plans, the door commits, the plan answers; a call
that has to look again after its commit does so before the answer. A refusal at any step is recorded before it is
answered; what cannot be recorded is not answered with success.
"""

from __future__ import annotations

import pwd
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

import msgspec

from aims.audit.record import body as record_body
from aims.audit.record import inert, recorder
from aims.errors import AimsError
from aims.jose import JoseError
from aims.jose.strict_json import read_object
from aims.policy.question import Decision, Entity, Question
from aims.provisioning.registry.service import Cause
from aims.server.ancestry import launched_by_node
from aims.server.core import Core
from aims.server.errors import ServerError
from aims.server.http import (
    MOST_BODY_OCTETS,
    Answer,
    Receive,
    Scope,
    Send,
    error_answer,
    header,
    json_answer,
    read_body,
    respond,
)
from aims.server.protocol import UnixPeer, peer_of
from aims.storage.intent import Plan
from aims.storage.write import Outcome, Write

HOST: Final = "aims"
MOST_REASON: Final = 256
_BROWSER: Final = (b"origin", b"referer", b"cookie")

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]


@dataclass(frozen=True, slots=True)
class Operator:
    """Who calls, proved by the kernel: the OS user, the roles that policy gives, and the reason that was stated."""

    uid: int
    user: str
    roles: frozenset[str]
    reason: str = ""

    def as_member(self) -> dict[str, str | int]:
        """The record's ``operator``."""
        member: dict[str, str | int] = {"uid": self.uid, "role": ",".join(sorted(self.roles)) or "none"}
        if self.user:
            member["user"] = self.user
        if self.reason:
            member["reason"] = self.reason
        return member

    def as_cause(self) -> dict[str, str]:
        """The record's ``cause`` of what this person does."""
        cause = {"admin": self.user or f"uid {self.uid}"}
        return cause | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True, slots=True)
class AdminCall:
    """A call that policy permits: who, which decision, and the ids of the request."""

    operator: Operator
    decision: Decision
    request_id: str
    now: float

    @property
    def permit(self) -> dict[str, Any]:
        """The record's ``decision``."""
        return {"effect": "permit", "policy_digest": self.decision.policy, "rules": list(self.decision.rules)}

    @property
    def cause(self) -> Cause:
        """What the registry and people's service are told about this call."""
        return Cause(
            operator=self.operator.as_member(),
            decision=self.permit,
            request_id=self.request_id,
            reason=self.operator.reason,
        )

    def record_fields(self, route: str) -> dict[str, Any]:
        """What every record of this call says about itself."""
        return {
            "time": self.now,
            "id": self.request_id,
            "request_id": self.request_id,
            "action": route,
            "operator": self.operator.as_member(),
            "decision": self.permit,
        }


@dataclass(frozen=True, slots=True)
class AdminRoute:
    """One administrative call. ``name`` is what policy decides about; ``plan`` decides and the door commits.

    ``then`` is done after a commit that succeeded and before its answer; what it raises is the answer instead.
    """

    name: str
    method: str
    path: str
    body: type[Any]
    writes: bool
    plan: Callable[[AdminCall, Any], Awaitable[Plan[object]]]
    then: Callable[[AdminCall, Any], Awaitable[None]] | None = None


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a call is given: its members and no others."""


class Nothing(Body, frozen=True):
    """The body of a call that takes none."""


def reading(
    call: AdminCall, name: str, value: object, details: dict[str, str | int | bool | None] | None = None
) -> Plan[object]:
    """Plan for a call that changes nothing: its record, and the value."""
    fields: dict[str, Any] = call.record_fields(name)
    record = recorder(
        refuse="admin.refuse", type="admin.action", outcome="success", resource=name, details=details, **fields
    )
    return Plan(Write(record=record), lambda _: value)


class AdminDoor:
    """The ASGI application behind the administrator's socket."""

    def __init__(self, core: Core, routes: tuple[AdminRoute, ...]) -> None:
        self._core = core
        self._routes: Mapping[tuple[str, str], AdminRoute] = {(route.method, route.path): route for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = self._core.ids.new()
        operator = Operator(uid=2**32 - 1, user="", roles=frozenset())
        route_name = "unknown"
        decision: Decision | None = None
        try:
            # 1
            _refuse_browser(scope)
            # 2
            peer = peer_of(scope)
            if not isinstance(peer, UnixPeer):
                raise ServerError("peer", "no peer credentials")
            operator = self._operator(peer)
            operator = replace(operator, reason=_reason(scope))
            # 3
            route = self._routes.get((scope["method"], scope["path"]))
            if route is None:
                raise ServerError("route", ascii(scope["path"])[:200])
            route_name = route.name
            # 4
            decision = self._decide(operator, peer, route)
            if not decision.allow:
                raise ServerError(
                    "admin_from_agent" if "admin_from_agent" in decision.rules else "peer", decision.explanation
                )
            # 5
            body = self._decode(route, await read_body(receive, MOST_BODY_OCTETS))
            # 6
            call = AdminCall(operator, decision, request_id, self._core.clock.now())
            plan = await route.plan(call, body)
            value = plan.answer(await self._core.database.commit(plan.write))
            if route.then is not None:
                await route.then(call, body)
            answer = json_answer(value)
        except AimsError as error:
            answer = await self._refuse(error, operator, route_name, decision, request_id)
        await respond(send, answer)

    def _operator(self, peer: UnixPeer) -> Operator:
        try:
            user = pwd.getpwuid(peer.uid).pw_name
        except KeyError:
            user = ""
        roles, _ = self._core.policy.tables.roles(peer.uid, user, self._core.server_uid)
        return Operator(peer.uid, user, roles)

    def _decide(self, operator: Operator, peer: UnixPeer, route: AdminRoute) -> Decision:
        return self._core.policy.engine.decide(
            Question(
                principal=Entity("Operator", f"uid:{operator.uid}", {"roles": operator.roles}),
                action="administer",
                resource=Entity("Resource", route.name, {"kind": "admin-route", "writes": route.writes}),
                context={"launched": launched_by_node(peer.pid, self._core.settings.run_dir)},
            )
        )

    def _decode(self, route: AdminRoute, octets: bytes) -> Any:
        try:
            return msgspec.convert(read_object(octets or b"{}"), route.body, strict=True)
        except (JoseError, msgspec.ValidationError) as error:
            raise ServerError("body", str(error)[:200]) from error

    async def _refuse(
        self, error: AimsError, operator: Operator, route: str, decision: Decision | None, request_id: str
    ) -> Answer:
        """Record a refusal; when even that fails the answer is that failure."""
        denied: dict[str, Any] = {"effect": "deny", "reason": error.code}
        if decision is not None:
            denied |= {"policy_digest": decision.policy}
            if decision.rules:
                denied["rules"] = list(decision.rules)
        octets = record_body(
            type="admin.refuse",
            outcome="refused",
            time=self._core.clock.now(),
            id=request_id,
            request_id=request_id,
            resource=inert(route),
            action=inert(route),
            operator=operator.as_member(),
            decision=denied,
        )

        def record(_: Outcome) -> bytes:
            return octets

        try:
            await self._core.database.commit(Write(record=record))
        except AimsError as failure:
            return error_answer(failure)
        return error_answer(error)


def _reason(scope: Scope) -> str:
    reason = header(scope, b"aims-reason") or ""
    # What no record may hold would leave neither the call nor its refusal one.
    if reason and (len(reason) > MOST_REASON or inert(reason) != reason):
        raise ServerError("body", "aims-reason is too long, not printable, or looks like a secret")
    return reason


def _refuse_browser(scope: Scope) -> None:
    if header(scope, b"host") != HOST:
        raise ServerError("host")
    for name, _ in scope["headers"]:
        if name in _BROWSER or name.startswith(b"sec-fetch-"):
            raise ServerError("browser", f"header {name.decode('ascii', 'replace')[:40]}")
