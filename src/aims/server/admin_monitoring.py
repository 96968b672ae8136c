"""The administrator's calls on monitoring: stop and resume, transmitters, the receiver, names of people."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from aims.identifiers import SpiffeId
from aims.monitoring.configuration import Configuration, known_person
from aims.monitoring.events import SESSION_REVOKED
from aims.monitoring.model import Cause, Receiver, Remedied, Remedy
from aims.monitoring.remediation import agent_name, look
from aims.server.admin import AdminCall, AdminRoute, Body, Nothing, Text, reading
from aims.server.core import Core
from aims.server.monitoring_routes import monitoring_of
from aims.storage.intent import Plan
from aims.storage.write import Name

Short = Annotated[str, msgspec.Meta(max_length=2048)]
Pem = Annotated[str, msgspec.Meta(max_length=64 * 1024)]
AGENT: Final = (Remedy.REVOKE, Remedy.SUSPEND, Remedy.RESUME, Remedy.RETIRE)
INSTANCE: Final = (Remedy.QUARANTINE, Remedy.RELEASE)
PERSON: Final = {"revoke": Remedy.REVOKE, "stop": Remedy.SUSPEND, "resume": Remedy.RESUME}


class AgentBody(Body, frozen=True):
    """An agent or service by its short name, or by its SPIFFE ID."""

    name: Text


class InstanceBody(Body, frozen=True):
    """One running copy; ``name`` says whose, for one that never got a credential."""

    instance: Text
    name: Short = ""


class PersonBody(Body, frozen=True):
    person: Text


class PersonName(Body, frozen=True):
    """A transmitter's name (a subject identifier of RFC 9493) for ``person``; without one, for somebody new."""

    issuer: Text
    subject: dict[str, Text]
    person: Short = ""


class TransmitterBody(Body, frozen=True):
    """``jwks`` is the text of a JWK Set."""

    issuer: Text
    jwks: Annotated[str, msgspec.Meta(max_length=32 * 1024)]


class IssuerBody(Body, frozen=True):
    issuer: Text


class ReceiverBody(Body, frozen=True):
    """``private``: its address may be private or loopback. ``ca``: PEM, instead of the system's authorities."""

    url: Text
    audience: Text
    events: Annotated[tuple[Text, ...], msgspec.Meta(max_length=8)] = ()
    issuer: Short = ""
    private: bool = False
    ca: Pem = ""
    complex: bool = False


class MonitoringCalls:
    """The administrator's calls over ``core``."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._monitoring = monitoring_of(core)
        self._configuration = Configuration(core.clock, core.ids)

    def routes(self) -> tuple[AdminRoute, ...]:
        """Every route of monitoring."""
        agents = (
            AdminRoute(f"agent.{remedy}", "POST", f"/admin/v1/agents/{remedy}", AgentBody, True, self._agent(remedy))
            for remedy in AGENT
        )
        instances = (
            AdminRoute(
                f"agent.{remedy}",
                "POST",
                f"/admin/v1/agents/{remedy}",
                InstanceBody,
                True,
                self._instance(remedy),
                self._finish if remedy is Remedy.QUARANTINE else None,
            )
            for remedy in INSTANCE
        )
        people = (
            AdminRoute(f"person.{word}", "POST", f"/admin/v1/people/{word}", PersonBody, True, self._person(remedy))
            for word, remedy in PERSON.items()
        )
        return (
            *agents,
            *instances,
            *people,
            AdminRoute("person.map", "POST", "/admin/v1/people/map", PersonName, True, self._map),
            AdminRoute("transmitter.add", "POST", "/admin/v1/transmitters", TransmitterBody, True, self._add),
            AdminRoute("transmitter.list", "GET", "/admin/v1/transmitters", Nothing, False, self._list),
            AdminRoute("transmitter.remove", "POST", "/admin/v1/transmitters/remove", IssuerBody, True, self._remove),
            AdminRoute("receiver.set", "POST", "/admin/v1/receiver", ReceiverBody, True, self._set_receiver),
            AdminRoute("receiver.show", "GET", "/admin/v1/receiver", Nothing, False, self._show_receiver),
        )

    async def remedied(self, call: AdminCall, subject: Name, remedy: Remedy, agent: str = "") -> Plan[object]:
        """Plan a remedy for any subject on an administrator's word."""
        core = self._core
        view = await core.database.read(lambda connection: look(connection, core.registry, subject, agent))
        plan = self._monitoring.remediation.plan(view, remedy, cause_of(call))
        return plan.shaped(_remedied)

    def _agent(self, remedy: Remedy) -> Any:
        async def plan(call: AdminCall, body: AgentBody) -> Plan[object]:
            return await self.remedied(call, self._named(body.name), remedy)

        return plan

    def _instance(self, remedy: Remedy) -> Any:
        async def plan(call: AdminCall, body: InstanceBody) -> Plan[object]:
            agent = self._named(body.name).id if body.name else ""
            return await self.remedied(call, Name("instance", body.instance), remedy, agent)

        return plan

    async def _finish(self, call: AdminCall, body: InstanceBody) -> None:
        await self._monitoring.handed_on.finish(Name("instance", body.instance), cause_of(call))

    def _person(self, remedy: Remedy) -> Any:
        async def plan(call: AdminCall, body: PersonBody) -> Plan[object]:
            return await self.remedied(call, Name("person", body.person), remedy)

        return plan

    def _named(self, name: str) -> Name:
        if name.startswith("spiffe://"):
            return Name("agent", str(SpiffeId.parse(name)))
        return agent_name(self._core.registry, name)

    async def _map(self, call: AdminCall, body: PersonName) -> Plan[object]:
        who = None
        if body.person:
            who = await self._core.database.read(lambda connection: known_person(connection, body.person))
        plan = self._configuration.map_person(who, body.issuer, body.subject, cause_of(call))
        return plan.shaped(lambda person: {"person": person, "issuer": body.issuer})

    async def _add(self, call: AdminCall, body: TransmitterBody) -> Plan[object]:
        plan = self._configuration.add_transmitter(body.issuer, body.jwks, cause_of(call))
        return plan.shaped(lambda kids: {"issuer": body.issuer, "kids": list(kids)})

    async def _remove(self, call: AdminCall, body: IssuerBody) -> Plan[object]:
        plan = self._configuration.remove_transmitter(body.issuer, cause_of(call))
        return plan.shaped(lambda issuer: {"issuer": issuer})

    async def _list(self, call: AdminCall, _: Nothing) -> Plan[object]:
        rows = {row.issuer: row for row in self._core.tables.rows.transmitters}
        value = [
            {
                "issuer": issuer,
                "kids": [key.kid for key in keys],
                "events": list(rows[issuer].events) if issuer in rows else [],
                "strongest": rows[issuer].strongest if issuer in rows else "none",
            }
            for issuer, keys in self._monitoring.peers.transmitters.items()
        ]
        return reading(call, "transmitter.list", value)

    async def _set_receiver(self, call: AdminCall, body: ReceiverBody) -> Plan[object]:
        receiver = Receiver(
            url=body.url,
            audience=body.audience,
            events=frozenset(body.events) or frozenset({SESSION_REVOKED}),
            issuer=body.issuer,
            private=body.private,
            ca=body.ca,
            complex=body.complex,
        )
        return self._configuration.set_receiver(receiver, cause_of(call)).shaped(_receiver)

    async def _show_receiver(self, call: AdminCall, _: Nothing) -> Plan[object]:
        receiver = self._monitoring.peers.receiver
        return reading(call, "receiver.show", None if receiver is None else _receiver(receiver))


def cause_of(call: AdminCall) -> Cause:
    """The cause that an administrator's call is."""
    return Cause.by_operator(
        operator=call.operator.as_member(),
        decision=call.permit,
        request_id=call.request_id,
        now=call.now,
        reason=call.operator.reason,
    )


def _remedied(remedied: Remedied) -> dict[str, Any]:
    return {
        "kind": remedied.subject.kind,
        "id": remedied.subject.id,
        "remedy": remedied.remedy.value,
        "applied": remedied.applied.value,
        "txn": remedied.txn,
        "seq": remedied.seq,
    }


def _receiver(receiver: Receiver) -> dict[str, Any]:
    return {
        "url": receiver.url,
        "audience": receiver.audience,
        "events": sorted(receiver.events),
        "issuer": receiver.issuer,
        "private": receiver.private,
        "own_ca": bool(receiver.ca),
        "complex": receiver.complex,
    }
