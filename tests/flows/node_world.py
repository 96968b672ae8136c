"""A node in one process with a real provisioning server, joined by a client that needs no network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
from tests.flows.provisioning_world import PROFILE, World

from aims.attestation import Selector
from aims.credentials import x509_svid
from aims.credentials.x509_svid import X509Svid
from aims.identifiers import SpiffeId
from aims.jose import base64url
from aims.node import messages
from aims.node.errors import NodeError
from aims.node.identities import IdentityState
from aims.node.issuing import Issuer
from aims.node.messages import Entry
from aims.node.server_client import Evidence, Issued, IssuedToken, ServerClient, ServerRefusedError
from aims.node.server_state import ServerState
from aims.node.tenant import Tenant
from aims.provisioning.bundles import domain_bundle

PATIENCE = 10.0
SETTINGS = {"trust_domain": "local.test", "max_stale": 10, "heartbeat": 2, "issuer": "https://localhost:8440"}


class Client:
    """Calls the server's handlers; can be away, refuse, and answer late."""

    def __init__(self, world: World, peer: X509Svid) -> None:
        self._routes = world.routes()
        self._peer = peer
        self.calls: list[str] = []
        self.problem: NodeError | None = None
        self.tamper: Callable[[dict[str, Any]], None] = lambda _: None
        self.answered = asyncio.Event()
        self.late = asyncio.Event()
        self.late.set()

    async def issue(self, **body: Any) -> Issued:
        return cast("Issued", await self._call("issue", body, Issued))

    async def jwt_svid(self, **body: Any) -> IssuedToken:
        return cast("IssuedToken", await self._call("jwt-svid", body, IssuedToken))

    async def _call(self, name: str, body: dict[str, Any], kind: type[Any]) -> Any:
        self.calls.append(name)
        if self.problem is not None:
            raise self.problem
        if "csr" in body:
            body["csr"] = base64url.encode(body["csr"]).decode()
        self.tamper(body)
        status, octets = await self._routes[name].handle(msgspec.json.encode(body), self._peer)
        self.answered.set()
        await self.late.wait()
        if status != 200:
            said = msgspec.json.decode(octets)
            raise ServerRefusedError(status, said["error"], said["message"], said["hint"])
        return msgspec.json.decode(octets, type=kind)


@dataclass
class Program:
    """A process that shows what a test says."""

    instance: str
    spiffe_id: SpiffeId
    selectors: frozenset[Selector]
    now: Callable[[], float]
    problem: NodeError | None = None
    changed: NodeError | None = None
    closed: bool = False
    looked: int = field(default=0)

    def alive(self) -> bool:
        return not self.closed

    def among(self, state: ServerState) -> tuple[Entry, ...]:
        return tuple(entry for entry in state.entries_of(self.spiffe_id) if entry.selectors <= self.selectors)

    def check(self) -> None:
        if self.closed:
            raise NodeError("launch_ended")
        if self.changed is not None:
            raise self.changed

    async def evidence(self) -> Evidence:
        self.looked += 1
        if self.problem is not None:
            raise self.problem
        selectors = sorted(map(str, self.selectors))
        return Evidence(kind="launch", collected_at=int(self.now()), selectors=selectors, posture="node-uid")

    def close(self) -> None:
        self.closed = True


class Side:
    """The node's side of a world with the node ``laptop``."""

    def __init__(self, world: World, peer: X509Svid) -> None:
        self.world = world
        self.client = Client(world, peer)
        self.state = ServerState(world.registry.trust_domain, world.clock)
        client = cast("ServerClient", self.client)
        self.issuer = Issuer(lambda: client, self.state, "laptop", world.clock)

    def document(self) -> dict[str, Any]:
        """The full state as the server would send it."""
        registry = self.world.registry
        self.world.follow()
        stops = self.world.database.stops().rows
        return {
            "type": "state",
            "seq": registry.seq,
            "entries": [registry.entry_message(entry) for entry in registry.entries_for("laptop")],
            "bundle": msgspec.Raw(domain_bundle(self.world.keeper.authority).build()),
            "stops": [
                {"kind": row.name.kind, "id": row.name.id, "seq": row.seq, "blocked": row.blocked} for row in stops
            ],
            "settings": SETTINGS,
        }

    def tell(self, document: dict[str, Any] | None = None) -> None:
        """Apply a line, by default the full state."""
        line = msgspec.json.encode(self.document() if document is None else document)
        self.state.apply(messages.read(line, self.state.trust_domain))

    def tenant(self, name: str = "researcher", *selectors: Selector) -> Tenant:
        """The process of an agent; follows the state."""
        process = Program(
            self.world.instance(),
            SpiffeId.agent(self.state.trust_domain, name),
            frozenset(selectors) or frozenset({PROFILE.selector(), Selector("unix", "uid:1000")}),
            self.world.clock.now,
        )
        tenant = Tenant(process, self.state, self.issuer, self.world.clock)
        self.state.on_change(tenant.news)
        return tenant


@asynccontextmanager
async def watching(tenant: Tenant) -> AsyncGenerator[Stream, None]:
    """A stream of the tenant's states."""
    states = tenant.watch()
    try:
        yield Stream(states)
    finally:
        await states.aclose()


@dataclass
class Stream:
    states: AsyncGenerator[IdentityState, None]

    async def next(self) -> IdentityState:
        return await asyncio.wait_for(anext(self.states), PATIENCE)


def svids(state: IdentityState) -> list[X509Svid]:
    """The X509-SVIDs of a state."""
    return [x509_svid.read(identity.chain) for identity in state.x509]
