"""An authorization server on any database, with agents that hold real credentials and call its endpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec
from tests.flows.provisioning_world import DOMAIN, PROFILE, Policy, World, open_world, policy, proof_jwk, request

from aims.authentication import dpop
from aims.authorization.access_token import TOKEN_TYPE, AccessToken
from aims.authorization.client_authentication import ASSERTION_TYPE
from aims.authorization.grants.token_exchange import GRANT_TYPE as EXCHANGE
from aims.authorization.keys import TokenKeys
from aims.authorization.revocation import Revocation
from aims.authorization.routes import REVOCATION, TOKEN, App, RevocationEndpoint, TokenEndpoint
from aims.authorization.service import TokenService
from aims.clock import IdSource, SystemClock
from aims.credentials.x509_svid import X509Svid
from aims.identifiers import TrustDomain
from aims.jose.algorithms import sign_raw
from aims.jose.jwk import thumbprint
from aims.provisioning.authority.signing import Authority
from aims.provisioning.instances import Instances
from aims.provisioning.registry.memory import Registry
from aims.provisioning.registry.service import Registered
from aims.storage.database import Database
from aims.storage.feed import Event
from aims.storage.reading import StopRow
from aims.storage.schema import change
from aims.storage.write import Change, Name, Stop, Write

ISSUER = "https://localhost:8440"
MTLS = "https://localhost:8441"
NOTES = "https://localhost:9443/mcp-oauth"
FILES = "https://localhost:9444/files"
PLAIN = "https://localhost:9445/plain"
INNER = "https://localhost:9446/inner"

TABLES = """
[[resources]]
name = "notes"
url = "https://localhost:9443/mcp-oauth"
peer = "/services/notes"
profile = "oauth-bound"
audiences = ["https://localhost:9443/mcp-oauth", "urn:example:notes"]
scopes = ["notes:read", "notes:write", "notes:purge"]
high = ["notes:purge"]

[[resources]]
name = "files"
url = "https://localhost:9444/files"
peer = "/services/files"
profile = "oauth-bound"
audiences = ["urn:example:files"]
scopes = ["notes:read", "files:read"]

[[resources]]
name = "plain"
url = "https://localhost:9445/plain"
peer = "/services/plain"
profile = "bearer"
audiences = ["https://localhost:9445/plain"]
scopes = ["plain:read"]

[[resources]]
name = "inner"
url = "https://localhost:9446/inner"
peer = "/services/inner"
profile = "wimse"
audiences = ["https://localhost:9446/inner"]
scopes = ["inner:read"]

[[ceilings]]
name = "everyone-at-notes"
agent = "/agents/*"
resource = "notes"
scopes = ["notes:read", "notes:write", "notes:purge"]

[[ceilings]]
name = "reader-at-notes"
agent = "/agents/reader"
resource = "notes"
scopes = ["notes:read"]

[[ceilings]]
name = "everyone-at-files"
agent = "/agents/*"
resource = "files"
scopes = ["notes:read", "files:read"]

[[ceilings]]
name = "everyone-at-plain"
agent = "/agents/*"
resource = "plain"
scopes = ["plain:read"]

[[ceilings]]
name = "everyone-at-inner"
agent = "/agents/*"
resource = "inner"
scopes = ["inner:read"]

[[clients]]
name = "portable"
agent = "/agents/portable"
method = "spiffe_jwt"

[[purposes]]
name = "share-note"
purpose = "notes:share"
resource = "notes"
scopes = ["notes:read", "notes:write"]
lifetime = 60
single_use = true
replacers = ["/services/*"]

[[purposes.details]]
member = "note"
type = "string"
max_length = 64

[[purposes.details]]
member = "copies"
type = "integer"
minimum = 1
maximum = 10
"""


def token_policy(*replaced: tuple[str, str]) -> Policy:
    """The shipped policy with the resources, ceilings and clients of the tests, and texts of it replaced."""

    def edit(files: dict[str, bytes]) -> None:
        files["tables.toml"] += TABLES.encode()
        for before, after in replaced:
            hit = [name for name, text in files.items() if before.encode() in text]
            assert hit, before
            for name in hit:
                files[name] = files[name].replace(before.encode(), after.encode())

    return policy(edit)


class ProofKey:
    """A P-256 key in an agent's process."""

    algorithm = "ES256"
    kid = "proof"

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())

    @property
    def jkt(self) -> str:
        return thumbprint(self.private.public_key())

    def sign_now(self, data: bytes) -> bytes:
        return sign_raw(self.algorithm, self.private, data)

    async def sign(self, data: bytes) -> bytes:
        return self.sign_now(data)


@dataclass(slots=True)
class Agent:
    """A running agent with an X509-SVID and a proof key."""

    registered: Registered
    svid: X509Svid
    instance: str
    posture: str
    key: ProofKey = field(default_factory=ProofKey)

    @property
    def id(self) -> str:
        return str(self.svid.spiffe_id)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint said."""

    status: int
    headers: dict[str, str]
    json: dict[str, Any]

    @property
    def refusal(self) -> tuple[int, str, str]:
        """Status, OAuth code and our own code; the last two are empty in a success."""
        return self.status, self.json.get("error", ""), self.json.get("aims_error", "")

    @property
    def token(self) -> str:
        assert self.status == 200, self.json
        return str(self.json["access_token"])


class TokenWorld:
    """One server process with its memory, read from the feed when ``follow`` is called."""

    current = True

    def __init__(self, world: World) -> None:
        self.world = world
        self.database = world.database
        self.stops: dict[Name, StopRow] = {}
        store = world.keeper._service._keys
        self.keys = TokenKeys(ISSUER, lambda: world.keeper.authority, store)
        self.instances = Instances(world.database)
        self.service = TokenService(ISSUER, self, self.keys, self.instances, world.database)
        self.revocation = Revocation(self, self.keys, world.database)
        self.public = TokenEndpoint(self.service, self, self.database, url=ISSUER + TOKEN, listener="public", peer=None)
        self.mtls = TokenEndpoint(self.service, self, self.database, url=MTLS + TOKEN, listener="mtls", peer=_peer)
        self.revoking = RevocationEndpoint(
            self.service, self.revocation, self, self.database, url=MTLS + REVOCATION, listener="mtls", peer=_peer
        )

    @property
    def trust_domain(self) -> TrustDomain:
        return DOMAIN

    @property
    def clock(self) -> SystemClock:
        return self.world.clock

    @property
    def ids(self) -> IdSource:
        return self.world.ids

    @property
    def registry(self) -> Registry:
        return self.world.registry

    @property
    def policy(self) -> Policy:
        return self.world.policy

    @property
    def authority(self) -> Authority:
        return self.world.keeper.authority

    @property
    def seq(self) -> int:
        return self.world.registry.seq

    def follow(self) -> None:
        """Read the feed to its head, stops too."""
        with self.database.reading() as connection:
            rows = connection.execute(sa.select(change).where(change.c.seq > self.seq).order_by(change.c.seq)).all()
        for row in rows:
            self.world.registry.apply(Event(row.seq, row.kind, row.id, bytes(row.body), None))
            if row.stop_kind is not None:
                name = Name(row.stop_kind, row.stop_id)
                self.stops[name] = StopRow(name, row.seq, bool(row.stop_blocked))

    async def stop(self, name: Name, *, blocked: bool = True, told: bool = True) -> None:
        """Stop something; without ``told`` this process has not read it yet."""
        line = Change("stop", name.id, b"null", Stop(name, blocked))
        await self.database.commit(Write(record=lambda _: b"{}", changes=(line,)))
        if told:
            self.follow()

    async def agent(self, name: str, *, posture: str = "node-uid", measured: bool = True, **more: Any) -> Agent:
        """Register an agent, run it, and give it its credentials; without ``measured`` no profile is approved."""
        registered = await self.world.agent(name, **(more if measured else more | {"profile": None}))
        self.follow()
        return await self.run(registered, posture=posture)

    async def run(self, registered: Registered, *, posture: str = "node-uid") -> Agent:
        """Start one more instance of an agent."""
        key = ProofKey()
        launch = "launch:unmeasured" if registered.workload.profile is None else str(PROFILE.selector())
        evidence = self.world.evidence(launch, "unix:uid:1000", posture=posture)
        application = self.world.application(registered, evidence=evidence)
        issued = await self.world.issue(application, csr=request(), proof_key=proof_jwk(key.private))
        return Agent(registered, issued.svid, application.instance, posture, key)

    async def jwt_svid(self, agent: Agent, *audiences: str, bound: bool = True) -> str:
        """A JWT-SVID of an agent's instance."""
        application = self.world.application(
            agent.registered,
            ("jwt-svid",),
            instance=agent.instance,
            evidence=self.world.evidence(posture=agent.posture),
        )
        issued = await self.world.jwt(application, *(audiences or (ISSUER,)), jkt=agent.key.jkt if bound else None)
        return issued.svid

    def proof(self, key: ProofKey, url: str, **more: Any) -> str:
        """A DPoP proof for a POST to ``url``."""
        fields: dict[str, Any] = {"token_id": self.ids.token(), "now": self.clock.now()}
        claims = dpop.build_claims("POST", url, **(fields | more))
        return dpop.issue_now(claims, key, key.private.public_key())

    async def post(
        self,
        app: App,
        parameters: Mapping[str, str | list[str]] | bytes,
        *,
        headers: list[tuple[bytes, bytes]] | None = None,
        peer: X509Svid | None = None,
        query: bytes = b"",
        content_type: bytes = b"application/x-www-form-urlencoded",
    ) -> Answer:
        """Send a form to an endpoint."""
        body = parameters if isinstance(parameters, bytes) else encoded(parameters)
        scope = {
            "type": "http",
            "method": "POST",
            "query_string": query,
            "headers": [(b"content-type", content_type), *(headers or [])],
            "peer": peer,
        }
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        answer = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], answer, json.loads(sent[1]["body"] or b"{}"))

    async def mtls_token(self, agent: Agent, *, proof: str | bool = False, **parameters: Any) -> Answer:
        """Ask with the X509-SVID, for a token that is bound to it, or to the proof key with ``proof``."""
        wanted: dict[str, Any] = {"grant_type": "client_credentials", "client_id": agent.id, **parameters}
        if proof is True:
            proof = self.proof(agent.key, MTLS + TOKEN)
        headers = [(b"dpop", proof.encode())] if proof else []
        return await self.post(self.mtls, wanted, headers=headers, peer=agent.svid)

    async def jwt_token(
        self, agent: Agent, *, assertion: str | None = None, proof: str | None = None, **parameters: Any
    ) -> Answer:
        """Ask with a bound JWT-SVID and a DPoP proof by its key."""
        wanted: dict[str, Any] = {
            "grant_type": "client_credentials",
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": await self.jwt_svid(agent) if assertion is None else assertion,
            **parameters,
        }
        shown = self.proof(agent.key, ISSUER + TOKEN) if proof is None else proof
        headers = [(b"dpop", shown.encode())] if shown else []
        return await self.post(self.public, wanted, headers=headers)

    async def own(self, agent: Agent, scope: str = "notes:read notes:write", resource: str = NOTES) -> str:
        """A token for an agent's own right, bound to its proof key."""
        return (await self.mtls_token(agent, proof=True, scope=scope, resource=resource)).token

    async def exchange(self, agent: Agent, subject: str, *, proof: str | bool = True, **parameters: Any) -> Answer:
        """Exchange a token as ``agent``."""
        wanted = {"grant_type": EXCHANGE, "subject_token": subject, "subject_token_type": TOKEN_TYPE, **parameters}
        return await self.mtls_token(agent, proof=proof, **wanted)

    async def delegate(self, agent: Agent, to: Agent, subject: str | None = None, scope: str = "notes:read") -> str:
        """Hand some of an agent's right to another."""
        held = await self.own(agent) if subject is None else subject
        return (await self.exchange(agent, held, audience=to.id, scope=scope)).token

    async def revoke(self, agent: Agent, token: str) -> Answer:
        """Revoke a token as ``agent``."""
        return await self.post(self.revoking, {"client_id": agent.id, "token": token}, peer=agent.svid)

    async def read(self, token: str) -> AccessToken:
        """What a token says, verified."""
        return (await self.keys.current()).verifier.read(token, now=self.clock.now())

    def record(self) -> dict[str, Any]:
        """The newest record."""
        return self.world.last_record()


def _peer(scope: Any) -> X509Svid | None:
    found: X509Svid | None = scope["peer"]
    return found


def encoded(parameters: Mapping[str, str | list[str]]) -> bytes:
    """A form; a list repeats its name."""
    pairs = [
        (name, value)
        for name, values in parameters.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    return "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in pairs).encode()


async def open_token_world(database: Database, clock: SystemClock, ids: IdSource) -> TokenWorld:
    """A server whose node ``laptop`` has joined and whose owner ``team-a`` is registered."""
    world = await open_world(database, clock, ids)
    world.policy = token_policy()
    await world.owner()
    await world.node()
    tokens = TokenWorld(world)
    tokens.follow()
    return tokens


__all__ = ["REVOCATION", "TOKEN", "Agent", "Answer", "TokenWorld", "open_token_world", "token_policy"]
