"""A trust domain with an agent and what stops it: what tests of monitoring begin with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa
from tests.flows.provisioning_world import URL, World, policy
from tests.properties.hostile import LocalKey, compact, dump

from aims.audit.people import Pseudonym
from aims.jose.jwk import public_jwk
from aims.jose.jwks import build_jwks
from aims.monitoring import store
from aims.monitoring.configuration import Configuration
from aims.monitoring.errors import MonitoringError
from aims.monitoring.events import (
    ACCOUNT_DISABLED,
    ACCOUNT_ENABLED,
    CREDENTIAL_CHANGE,
    CREDENTIAL_COMPROMISE,
    SESSION_REVOKED,
)
from aims.monitoring.model import Cause, Receiver, Remedied, Remedy
from aims.monitoring.peers import Peers
from aims.monitoring.receiver import SignalReceiver
from aims.monitoring.remediation import Remediation, look
from aims.monitoring.transmitter import Transmitter
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
    await world.database.commit(Write(record=lambda _: b'{"type":"test"}', effects=effects))
    return Name("person", sub)


async def issue_fenced(world: World, *names: Name, seen: int) -> str:
    """A plain fenced Write, as every issuer hands one in; returns the verdict."""
    outcome = await world.database.commit(Write(record=lambda _: b'{"type":"test"}', names=names, seen=seen))
    return outcome.verdict.value


IDP, HR, PARTNER = "https://idp.example", "https://hr.example", "https://partner.example"
ISSUER = f"{URL}/signals"

_TRANSMITTERS = f"""
[[transmitters]]
name = "idp"
issuer = "{IDP}"
people = true
subjects = ["/agents/*"]
events = ["{SESSION_REVOKED}", "{CREDENTIAL_COMPROMISE}", "{ACCOUNT_DISABLED}", "{ACCOUNT_ENABLED}"]
strongest = "suspend"
per_minute = 60

[[transmitters]]
name = "partner"
issuer = "{PARTNER}"
people = false
subjects = ["/agents/shared"]
events = ["{SESSION_REVOKED}", "{ACCOUNT_DISABLED}", "{CREDENTIAL_CHANGE}"]
strongest = "revoke"
per_minute = 60
"""


def transmitters(files: dict[str, bytes]) -> None:
    """Edit a policy: two transmitters, one of which may do less."""
    files["tables.toml"] += _TRANSMITTERS.encode("utf-8")


@dataclass
class Signals:
    """A server's side of the signal exchange, and the keys of those who talk to it."""

    world: World
    peers: Peers
    receiver: SignalReceiver
    remediation: Remediation
    configuration: Configuration
    keys: dict[str, LocalKey]

    def token(self, subject: object, event: str, payload: object = None, *, issuer: str = IDP, **more: Any) -> bytes:
        """A SET as its issuer signs it; None leaves a claim out."""
        now = int(self.world.clock.now())
        claims: dict[str, Any] = {
            "iss": issuer,
            "jti": self.world.ids.new(),
            "iat": now,
            "aud": ISSUER,
            "sub_id": {"format": "uri", "uri": subject} if isinstance(subject, str) else subject,
            "events": {event: {} if payload is None else payload},
        }
        key = self.keys[issuer]
        header = {"alg": key.algorithm, "kid": key.kid, "typ": "secevent+jwt"}
        return compact(dump(header), dump(claims | more), key.sign_now).encode("ascii")

    async def push(self, octets: bytes, media_type: str = "application/secevent+jwt", source: str = "192.0.2.7") -> str:
        """Push, read the feed, and return "" or the reason of the refusal."""
        try:
            await self.receiver.receive(octets, media_type, source)
        except MonitoringError as error:
            return error.reason
        finally:
            self.world.follow()
        return ""

    async def tell(self, subject: object, event: str, payload: object = None, **more: Any) -> str:
        return await self.push(self.token(subject, event, payload, **more))

    async def configured(self, receiver: Receiver) -> None:
        """Have our own events pushed to ``receiver``."""
        await self.world.commit(self.configuration.set_receiver(receiver, operator(self.world)))
        self.peers.load()

    def stored(self) -> list[Any]:
        """The accepted events: (issuer, event, applied)."""
        table = store.received
        with self.world.database.reading() as connection:
            rows = connection.execute(sa.select(table.c.issuer, table.c.event, table.c.applied).order_by(table.c.jti))
            return [tuple(row) for row in rows]

    def waiting(self) -> list[dict[str, Any]]:
        """The outbox, with its claims decoded."""
        with self.world.database.reading() as connection:
            rows = connection.execute(sa.select(store.outbox).order_by(store.outbox.c.jti)).mappings().all()
        return [{**row, "claims": msgspec.json.decode(row["claims"])} for row in rows]


async def open_signals(world: World) -> Signals:
    """Two transmitters with keys, one of whom is also known to the policy, and a third that policy does not know."""
    world.policy = policy(transmitters)
    peers = Peers(world.database)
    transmitter = Transmitter(
        issuer=ISSUER, as_issuer=URL, receiver=lambda: peers.receiver, clock=world.clock, ids=world.ids
    )
    remediation = Remediation(clock=world.clock, ids=world.ids, outgoing=transmitter.outgoing)
    receiver = SignalReceiver(
        database=world.database,
        peers=peers,
        registry=lambda: world.registry,
        policy=lambda: world.policy,
        remediation=remediation,
        audience=ISSUER,
        as_issuer=URL,
        clock=world.clock,
        ids=world.ids,
    )
    configuration = Configuration(world.clock, world.ids)
    keys = {issuer: LocalKey.new("ES256", f"{issuer[8:]}-1") for issuer in (IDP, PARTNER, HR)}
    for issuer, key in keys.items():
        jwks = build_jwks([public_jwk(key.private.public_key(), kid=key.kid, alg="ES256", use="sig")]).decode("ascii")
        await world.commit(configuration.add_transmitter(issuer, jwks, operator(world)))
    peers.load()
    return Signals(world, peers, receiver, remediation, configuration, keys)
