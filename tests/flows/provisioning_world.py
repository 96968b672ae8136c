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

from aims.attestation import LaunchProfile, Selector
from aims.clock import IdSource, SystemClock
from aims.identifiers import TrustDomain
from aims.jose.jwk import public_jwk
from aims.keys import open_store
from aims.policy.bundle import Bundle
from aims.policy.engine import Engine
from aims.policy.rows import Credential
from aims.policy.tables import Tables
from aims.provisioning.authority.keeper import Keeper
from aims.provisioning.authority.service import AuthorityService
from aims.provisioning.evidence import Evidence
from aims.provisioning.issuance import IssuanceService, Issued, IssuedToken
from aims.provisioning.join import JoinService
from aims.provisioning.join_token import JoinToken
from aims.provisioning.registry.memory import Registry
from aims.provisioning.registry.model import Kind, Node, Owner
from aims.provisioning.registry.service import Cause, Registered, Registration, RegistryService
from aims.provisioning.routes import NodeRoutes, Route
from aims.provisioning.stages import Application
from aims.storage.database import Database
from aims.storage.feed import Event
from aims.storage.intent import Plan
from aims.storage.schema import change, outbox
from aims.storage.write import Change, Name, Stop, Write
from aims.x509.parse import join_pem

T = TypeVar("T")

DOMAIN = TrustDomain("local.test")
URL = "https://localhost:8440"
ISSUER = f"{URL}/spiffe"
PROFILE = LaunchProfile(executable="a" * 64, head=("/usr/bin/python3", "/opt/agent.py"))
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


def proof_jwk(key: ec.EllipticCurvePrivateKey | None = None) -> dict[str, str]:
    return public_jwk((key or ec.generate_private_key(ec.SECP256R1())).public_key(), alg="ES256")


@dataclass(slots=True)
class World:
    """Everything of one server process, with a feed that is read when a test says so."""

    database: Database
    clock: SystemClock
    ids: IdSource
    registry: Registry
    keeper: Keeper
    policy: Policy = field(default_factory=policy)
    current: bool = True

    @property
    def admin(self) -> RegistryService:
        return RegistryService(self.registry, lambda: self.policy.tables, self.clock, self.ids)

    @property
    def joins(self) -> JoinService:
        return JoinService(
            self.registry, lambda: self.policy.tables, lambda: self.keeper.authority, self.clock, self.ids
        )

    @property
    def issuance(self) -> IssuanceService:
        return IssuanceService(
            registry=self.registry,
            policy=lambda: self.policy,
            authority=lambda: self.keeper.authority,
            issuer=ISSUER,
            clock=self.clock,
            ids=self.ids,
        )

    def routes(self) -> dict[str, Route]:
        """The handlers of the node protocol by the last part of their path."""
        routes = NodeRoutes(
            database=self.database,
            registry=self.registry,
            authority=lambda: self.keeper.authority,
            joins=self.joins,
            issuance=self.issuance,
            mtls_url="https://localhost:8441",
            public_ca=lambda: join_pem([self.keeper.authority.tls_ca]),
            clock=self.clock,
            ids=self.ids,
            current=lambda: self.current,
        )
        return {route.path.rpartition("/")[2]: route for route in routes.routes()}

    def instance(self, node: str = "laptop") -> str:
        return f"{node}:{self.ids.new()}"

    def evidence(self, *selectors: str, **more: Any) -> Evidence:
        """Fresh evidence of a launch."""
        fields: dict[str, Any] = {
            "kind": "launch",
            "collected_at": int(self.clock.now()),
            "selectors": selectors or (str(PROFILE.selector()), "unix:uid:1000"),
            "posture": "node-uid",
            "measurement": {"executable": "a" * 64},
        }
        return Evidence.read(**(fields | more))

    def application(
        self, registered: Registered, credentials: tuple[Credential, ...] = ("x509-svid", "wit"), **more: Any
    ) -> Application:
        """What the node ``laptop`` asks for its workload."""
        assert registered.entry is not None
        fields: dict[str, Any] = {
            "node_id": "laptop",
            "entry_id": registered.entry.id,
            "instance": self.instance(),
            "evidence": self.evidence(),
            "credentials": credentials,
        }
        return Application(**(fields | more))

    async def issue(self, application: Application, **more: Any) -> Issued:
        fields: dict[str, Any] = {"csr": request(), "proof_key": proof_jwk(), "request_id": self.ids.new()}
        return await self.commit(await self.issuance.issue(application, **(fields | more)))

    async def jwt(self, application: Application, *audiences: str, jkt: str | None = None) -> IssuedToken:
        plan = await self.issuance.jwt_svid(application, audiences=audiences, jkt=jkt, request_id=self.ids.new())
        return await self.commit(plan)

    async def stop(self, name: Name, *, blocked: bool = True) -> None:
        """What a remediation commits, as far as the fence is concerned."""
        line = Change("stop", name.id, b"null", Stop(name, blocked))
        await self.database.commit(Write(record=lambda _: b"{}", changes=(line,)))

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
        return self.records()[-1]

    async def owner(self, name: str = "team-a") -> Owner:
        return await self.commit(
            self.admin.register_owner(name=name, kind="team", contact="team@example.org", cause=cause())
        )

    async def agent(self, name: str = "researcher", owner: str = "team-a", **more: Any) -> Registered:
        fields: dict[str, Any] = {
            "kind": Kind.AGENT,
            "name": name,
            "owner": owner,
            "profile": PROFILE,
            "launch_uids": (1000,),
            "nodes": frozenset({"laptop"}),
        }
        return await self.commit(self.admin.register(Registration(**(fields | more)), cause()))

    async def token(self, node: str = "laptop", lifetime: int = 0, **more: Any) -> JoinToken:
        return await self.commit(
            self.joins.create_token(node_id=node, url=URL, ca=CA, cause=cause(), lifetime=lifetime, **more)
        )

    async def node(self, name: str = "laptop", selectors: frozenset[Selector] | None = frozenset()) -> Node:
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
