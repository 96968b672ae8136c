"""A trust domain with an agent and what stops it: what tests of monitoring begin with."""

from __future__ import annotations

from tests.flows.provisioning_world import World

from aims.audit.people import Pseudonym
from aims.monitoring.model import Cause, Remedied, Remedy
from aims.monitoring.remediation import Remediation, look
from aims.storage.intent import Plan
from aims.storage.write import Effect, Name, Write


def operator(world: World, reason: str = "") -> Cause:
    """An administrator's word, now."""
    return Cause.by_operator(
        operator={"role": "operator", "uid": 1000, "user": "alice"},
        decision={"effect": "permit", "rules": ["operator_administers"]},
        request_id=world.ids.new(),
        now=world.clock.now(),
        reason=reason,
    )


def signal(world: World, *, at: float, issuer: str = "https://idp.example", event: str = "urn:x") -> Cause:
    """What an event of another party says, at ``at`` (Unix seconds)."""
    return Cause(
        txn=world.ids.new(),
        at=int(at * 1000),
        request_id=world.ids.new(),
        decision={"effect": "permit", "rules": ["transmitter_stops"]},
        member={"set_iss": issuer, "set_jti": world.ids.new(), "event": event},
        issuer=issuer,
    )


async def planned(world: World, subject: Name, remedy: Remedy, cause: Cause, agent: str = "") -> Plan[Remedied]:
    remediation = Remediation(clock=world.clock, ids=world.ids)
    view = await world.database.read(lambda connection: look(connection, world.registry, subject, agent))
    return remediation.plan(view, remedy, cause)


async def remedied(
    world: World, subject: Name, remedy: Remedy, cause: Cause | None = None, agent: str = ""
) -> Remedied:
    """Do it, as a route does."""
    return await world.commit(await planned(world, subject, remedy, cause or operator(world), agent))


async def new_person(world: World) -> Name:
    """Somebody with a pseudonym in the audit."""
    sub = f"person:{world.ids.new()}"
    effects: tuple[Effect, ...] = (Pseudonym.make(sub, b"0123456789abcdef").stored(),)
    await world.database.commit(Write(record=lambda _: b"{}", effects=effects))
    return Name("person", sub)


async def issue_fenced(world: World, *names: Name, seen: int) -> str:
    """A plain fenced Write, as every issuer hands one in; returns the verdict."""
    outcome = await world.database.commit(Write(record=lambda _: b"{}", names=names, seen=seen))
    return outcome.verdict.value
