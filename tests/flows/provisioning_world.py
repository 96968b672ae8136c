"""A trust domain with its registry, authority and one node, on any database: what tests of provisioning begin with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from aims.attestation import Selector
from aims.clock import IdSource, SystemClock
from aims.identifiers import TrustDomain
from aims.keys import open_store
from aims.policy.bundle import Bundle
from aims.policy.engine import Engine
from aims.policy.tables import Tables
from aims.provisioning.authority.keeper import Keeper
from aims.provisioning.authority.service import AuthorityService
from aims.provisioning.join import JoinService
from aims.provisioning.join_token import JoinToken
from aims.provisioning.registry.memory import Registry
from aims.provisioning.registry.model import Kind, Node, Owner
from aims.provisioning.registry.service import Cause, Registered, Registration, RegistryService
from aims.storage.database import Database
from aims.storage.feed import Event
from aims.storage.intent import Plan
from aims.storage.schema import change, outbox

T = TypeVar("T")

DOMAIN = TrustDomain("local.test")
URL = "https://localhost:8440"
CA = hashlib.sha256(b"a CA certificate").digest()


@dataclass(frozen=True, slots=True)
class Policy:
    """The shape of the policy in force."""

    engine: Engine
    tables: Tables


def policy(edit: Callable[[dict[str, bytes]], None] = lambda _: None) -> Policy:
    """The shipped policy, its files edited."""
    files = dict(Bundle.shipped().files)
    edit(files)
    bundle = Bundle.from_files(files)
    return Policy(Engine(bundle), Tables(bundle.rows, DOMAIN.name))


def cause(reason: str = "") -> Cause:
    return Cause(
        operator={"role": "operator", "uid": 1000, "user": "alice"},
        decision={"effect": "permit", "rules": ["operator_administers"]},
        request_id="req-1",
        reason=reason,
    )


def request(key: ec.EllipticCurvePrivateKey | None = None, name: str = "spiffe://evil.test/admin") -> bytes:
    """A PKCS#10 request; its subject and names are lies that nobody may take over."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "admin")])
    )
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name)]), critical=False)
    signed = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(Encoding.DER)


@dataclass(slots=True)
class World:
    """Everything of one server process, with a feed that is read when a test says so."""

    database: Database
    clock: SystemClock
    ids: IdSource
    registry: Registry
    keeper: Keeper
    policy: Policy = field(default_factory=policy)

    @property
    def admin(self) -> RegistryService:
        return RegistryService(self.registry, lambda: self.policy.tables, self.clock, self.ids)

    @property
    def joins(self) -> JoinService:
        return JoinService(
            self.registry, lambda: self.policy.tables, lambda: self.keeper.authority, self.clock, self.ids
        )

    async def commit(self, plan: Plan[T]) -> T:
        """Commit as a route does, then read the feed."""
        outcome = await self.database.commit(plan.write)
        self.follow()
        return plan.answer(outcome)

    def follow(self) -> None:
        """Read the feed to its head."""
        with self.database.reading() as connection:
            rows = connection.execute(sa.select(change).where(change.c.seq > self.registry.seq).order_by(change.c.seq))
            events = [Event(row.seq, row.kind, row.id, bytes(row.body), None) for row in rows]
        for event in events:
            self.registry.apply(event)

    def records(self) -> list[dict[str, Any]]:
        """Every audit record so far."""
        with self.database.reading() as connection:
            rows = connection.execute(sa.select(outbox.c.body).order_by(outbox.c.writer, outbox.c.n))
            return [msgspec.json.decode(bytes(row.body)) for row in rows]

    def last_record(self) -> dict[str, Any]:
        """The newest record of this process."""
        return max(self.records(), key=lambda record: str(record["id"]))

    async def owner(self, name: str = "team-a") -> Owner:
        return await self.commit(
            self.admin.register_owner(name=name, kind="team", contact="team@example.org", cause=cause())
        )

    async def agent(self, name: str = "researcher", owner: str = "team-a", **more: Any) -> Registered:
        fields: dict[str, Any] = {
            "kind": Kind.AGENT,
            "name": name,
            "owner": owner,
            "launch_uids": (1000,),
            "nodes": frozenset({"laptop"}),
        }
        return await self.commit(self.admin.register(Registration(**(fields | more)), cause()))

    async def token(self, node: str = "laptop", lifetime: int = 0, **more: Any) -> JoinToken:
        return await self.commit(
            self.joins.create_token(node_id=node, url=URL, ca=CA, cause=cause(), lifetime=lifetime, **more)
        )

    async def node(self, name: str = "laptop", selectors: frozenset[Selector] = frozenset()) -> Node:
        """A node that has joined."""
        token = await self.token(name, selectors=selectors)
        await self.commit(self.joins.join(secret=token.secret, node_id=name, csr=request(), request_id=self.ids.new()))
        return self.registry.node(name)


async def open_world(database: Database, clock: SystemClock, ids: IdSource, keys: str = "memory:") -> World:
    """A process on a database, with first keys if there are none."""
    service = AuthorityService(open_store(keys), keys, DOMAIN, clock, ids)
    keeper = Keeper(database, service, DOMAIN)
    await keeper.open()
    with database.reading() as connection:
        registry = Registry.load(connection, DOMAIN)
    return World(database, clock, ids, registry, keeper)
