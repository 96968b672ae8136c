"""A trust domain whose node serves both of its sockets for real, told by the test instead of by a server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.flows.workload_api_fake import until
from tests.properties.hostile import LocalKey
from tests.properties.x509_material import HOUR, Domain, serial

from aims.authentication.replay import MemoryWindow, ReplayWindow
from aims.clock import SystemClock
from aims.credentials import wit, x509_svid
from aims.credentials.bundle import Bundle
from aims.credentials.model import Fence
from aims.errors import AimsError
from aims.identifiers import SpiffeId, TrustDomain
from aims.jose import KeySet, sign_now
from aims.jose.jwk import private_jwk, thumbprint
from aims.node.agent_api import AgentApi
from aims.node.agent_feed import AgentFeed
from aims.node.api_server import ApiServer
from aims.node.identities import IdentityState, JwtIdentity, Latest, ValidatedJwtSvid, WitIdentity, X509Identity
from aims.node.messages import FullState, Heartbeat, Settings, Stop, Stopped
from aims.node.workload_api import WorkloadApi
from aims.node.workload_errors import WorkloadApiError
from aims.sdk.identity import Identity

TD = TrustDomain("a.test")
AGENT = SpiffeId.agent(TD, "researcher")
OTHER = SpiffeId.agent(TD, "writer")
TOOL = SpiffeId.service(TD, "tool")
SERVER = SpiffeId.service(TD, "aims")
EPOCH = 100


def resource(url: str, *, peer: SpiffeId = TOOL, profile: str = "wimse", **more: Any) -> dict[str, Any]:
    return {"id": more.pop("id", "tool"), "spiffe_id": str(peer), "profile": profile, "audiences": ["urn:tool"], **more}


class Workload:
    """One identity with fresh keys at each making."""

    def __init__(self, world: World, spiffe_id: SpiffeId, *, epoch: int, lifetime: float = HOUR) -> None:
        now = int(world.clock.now())
        self.fence = fence = Fence(f"node-1:{spiffe_id.segments[-1]:a<26}"[:33], epoch)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.svid = x509_svid.issue(
            world.domain.issuer,
            spiffe_id,
            public_key=self.key.public_key(),
            serial=serial(),
            now=now,
            lifetime=lifetime,
            fence=fence,
        )
        self.proof = LocalKey.new("ES256")
        self.proof_kid = thumbprint(self.proof.private.public_key())
        claims = wit.build_claims(
            spiffe_id,
            self.proof.private.public_key(),
            "ES256",
            issued_at=now,
            expires=now + int(lifetime),
            fence=fence,
        )
        self.wit = sign_now(wit.HEADER, claims, world.issuer)
        der = self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        jwk = msgspec.json.encode(private_jwk(self.proof.private, alg="ES256")).decode()
        self.state = IdentityState(
            trust_domain=TD,
            x509=(X509Identity(spiffe_id=spiffe_id, chain=self.svid.der, key=der),),
            wit=(WitIdentity(spiffe_id=spiffe_id, token=self.wit, key=jwk),),
            x509_bundles={TD: world.bundle.x509_der()},
            jwt_bundles={TD: b'{"keys":[]}'},
            wit_bundles={TD: world.bundle.wit_jwks().decode()},
        )


class _Caller:
    def close(self) -> None:
        pass


class _Identities:
    """Everybody at this socket is one workload."""

    def __init__(self) -> None:
        self.latest: Latest[IdentityState] = Latest()

    async def subscribe(self, _: _Caller) -> AsyncGenerator[IdentityState, None]:
        async with contextlib.aclosing(self.latest.watch()) as states:
            async for each in states:
                yield each

    async def jwt_svids(self, _: _Caller, audiences: tuple[str, ...], __: SpiffeId | None) -> tuple[JwtIdentity, ...]:
        return (JwtIdentity(spiffe_id=AGENT, token=f"jwt-for-{audiences[0]}"),)

    async def validate_jwt_svid(self, _: _Caller, __: str, ___: str) -> ValidatedJwtSvid:
        raise WorkloadApiError("not_entitled")


class Seat:
    """A workload's place at the node: two sockets of its own, because here the folder says who is calling."""

    def __init__(self, world: World, spiffe_id: SpiffeId, folder: Path) -> None:
        self.world = world
        self.spiffe_id = spiffe_id
        self.folder = folder
        self.identities = _Identities()
        self.workload = self.renew()
        recognise = self._recognise
        self._api: ApiServer[_Caller] = ApiServer(WorkloadApi(self.identities), recognise)
        self._agent_api: ApiServer[_Caller] | None = None

    @property
    def address(self) -> str:
        """Where an identity finds it."""
        return f"unix://{self.folder}/workload.sock"

    def identity(self, **options: Any) -> Identity:
        return Identity(self.address, clock=self.world.clock, **{"seconds": 5.0, **options})

    def renew(self, *, epoch: int = EPOCH, lifetime: float = HOUR) -> Workload:
        self.workload = Workload(self.world, self.spiffe_id, epoch=epoch, lifetime=lifetime)
        self.identities.latest.set(self.workload.state)
        return self.workload

    def withdraw(self, error: AimsError | None = None) -> None:
        self.identities.latest.fail(error or WorkloadApiError("not_entitled"))

    async def open(self, *, agent_sock: bool = True) -> None:
        self.folder.mkdir()
        if agent_sock:
            await self.open_agent_sock()
        await self._api.start(self.folder / "workload.sock", 0o600)

    async def open_agent_sock(self) -> None:
        api = AgentApi(self.identities, self.world.feed, self.world.window, self.world.clock)
        self._agent_api = ApiServer(api, self._recognise)
        await self._agent_api.start(self.folder / "agent.sock", 0o600)

    async def close_agent_sock(self) -> None:
        if self._agent_api is not None:
            await self._agent_api.stop()
            self._agent_api = None

    async def close(self) -> None:
        await self.close_agent_sock()
        await self._api.stop()

    def _recognise(self, _: socket.socket) -> _Caller:
        return _Caller()


class World:
    """The node, its feed and its window."""

    def __init__(self, folder: Path) -> None:
        self.clock = SystemClock()
        self.domain = Domain("a.test")
        self.issuer = LocalKey.new("ES256", "wit-1")
        self.bundle = Bundle(
            trust_domain=TD,
            x509_authorities=(self.domain.root,),
            wit_keys=KeySet([self.issuer.verification]),
            sequence=1,
        )
        self.folder = folder
        self.feed = AgentFeed(self.clock)
        past = SystemClock(-10_000)
        self.window: ReplayWindow = MemoryWindow(past)
        past.offset = 0
        self.resources: dict[str, Any] = {}
        self.max_stale = 10
        self.issuer_url = "https://localhost:8440"
        self.seq = EPOCH
        self.stops: dict[tuple[str, str], Stop] = {}
        self._seats: list[Seat] = []

    async def seat(self, spiffe_id: SpiffeId, *, agent_sock: bool = True) -> Seat:
        seat = Seat(self, spiffe_id, self.folder / f"n{len(self._seats)}")
        self._seats.append(seat)
        await seat.open(agent_sock=agent_sock)
        return seat

    def full(self) -> None:
        """Tell the node everything."""
        document = {
            "trust_domain": TD.name,
            "issuer": self.issuer_url,
            "public_url": "https://localhost:8440",
            "mtls_url": "https://localhost:8441",
            "server": str(SERVER),
            "tls_ca": "",
            "resources": self.resources,
            "max_stale": self.max_stale,
            "heartbeat": 2,
        }
        settings = Settings(document, float(self.max_stale), 2.0)
        self.feed.hear(FullState(self.seq, (), self.bundle, tuple(self.stops.values()), settings))

    def beat(self) -> None:
        self.feed.hear(Heartbeat(self.seq))

    def stop(self, kind: str, id_: object, *, blocked: bool = True) -> None:
        self.seq += 1
        stop = Stop((kind, str(id_)), self.seq, blocked)
        self.stops[stop.key] = stop
        self.feed.hear(Stopped(stop))

    async def close(self) -> None:
        for seat in self._seats:
            await seat.close()


@contextlib.asynccontextmanager
async def world(resources: dict[str, Any] | None = None) -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory(prefix="aims-t-") as folder:
        made = World(Path(folder))
        made.resources = resources or {}
        made.full()
        made.beat()
        try:
            yield made
        finally:
            await asyncio.wait_for(made.close(), 20)


async def knows(identity: Identity) -> None:
    """Wait until the identity's view of stops is complete and fresh."""

    def fresh() -> bool:
        enforcement = identity.live.enforcement
        return enforcement is not None and enforcement.stops.check([_Probe], EPOCH).value == "ok"

    await until(fresh)
    await until(lambda: identity.live.window.ready)


class _Probe:
    kind = "agent"
    id = "spiffe://a.test/agents/nobody"


class Answer:
    """What an ASGI application answered."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.complete = False

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"])

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            self.complete = not message.get("more_body", False)


def scope(method: str, path: str, headers: Sequence[tuple[str, str]], *, host: str = "tool.example") -> dict[str, Any]:
    raw, _, query = path.partition("?")
    from urllib.parse import unquote

    return {
        "type": "http",
        "method": method,
        "path": unquote(raw),
        "raw_path": raw.encode(),
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in (("host", host), *headers)],
        "scheme": "https",
    }
