"""agent.sock: what the node offers to agents and services beside the Workload API (``aims.node.v1``).

    server = ApiServer(AgentApi(identities, feed, window, clock), peer_of)
    await server.start(Path("/run/aims/agent.sock"))

Whoever the Workload API entitles to an identity may call; whoever loses its last identity loses its calls. An addition
of AIMS, not a standard.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

from aims.authentication.errors import AuthenticationError
from aims.authentication.replay import ReplayWindow
from aims.clock import Clock
from aims.identifiers import SpiffeId
from aims.node.grpc_guard import Answers
from aims.node.identities import C, Identities, IdentityState
from aims.node.window_share import Shares
from aims.node.workload_errors import WorkloadApiError
from aims.proto import node_pb2 as pb
from aims.proto import node_service as service
from aims.proto.workload_service import Method

SOCKET_NAME: Final = "agent.sock"
DEFAULT_SHARE: Final = 131_072  # ids: half of the window's default capacity
_TIME: Final = 4  # octets of an id that say until when it counts

T = TypeVar("T")


class News(Protocol):
    """Where stops and settings come from; `aims.node.agent_feed.AgentFeed`."""

    def settings(self) -> pb.Settings:
        """Return the settings. Raises: WorkloadApiError ``not_ready``."""
        ...

    def watch(self) -> AsyncGenerator[pb.WatchResponse, None]:
        """Yield the full state, then each line; ends only by an exception."""
        ...


class AgentApi(Generic[C]):
    """The answers of agent.sock, one method per remote procedure; knows nothing of connections."""

    def __init__(
        self, identities: Identities[C], news: News, window: ReplayWindow, clock: Clock, *, share: int = DEFAULT_SHARE
    ) -> None:
        """Let each identity hold at most ``share`` living ids of the window."""
        self._identities = identities
        self._news = news
        self._window = window
        self._shares = Shares(clock, share)

    def answers(self) -> Mapping[Method, Answers[C]]:
        """Return who serves which method."""
        return {service.SETTINGS: self.settings, service.WATCH: self.watch, service.CLAIM: self.claim}

    async def settings(self, caller: C, _: pb.SettingsRequest) -> AsyncGenerator[pb.SettingsResponse, None]:
        """Say who the caller is and where everything else is."""
        async with self._entitled(caller) as entitled:
            yield pb.SettingsResponse(spiffe_id=str(entitled.spiffe_id), settings=self._news.settings())

    async def watch(self, caller: C, _: pb.WatchRequest) -> AsyncGenerator[pb.WatchResponse, None]:
        """Stream stops, bundle numbers and heartbeats."""
        async with self._entitled(caller) as entitled, contextlib.aclosing(self._news.watch()) as lines:
            while (line := await entitled.first(lines)) is not None:
                yield line

    async def claim(
        self, caller: C, requests: AsyncGenerator[pb.ClaimRequest, None]
    ) -> AsyncGenerator[pb.ClaimResponse, None]:
        """Spend ids in the window that this host shares.

        An id counts for the caller's identity alone: nobody spends what is meant for somebody else.
        """
        async with self._entitled(caller) as entitled:
            while (request := await entitled.first(requests)) is not None:
                yield await self._claimed(str(entitled.spiffe_id), request.ids)

    async def _claimed(self, holder: str, octets: bytes) -> pb.ClaimResponse:
        if len(octets) % service.ID_OCTETS or len(octets) > service.MAX_IDS * service.ID_OCTETS:
            raise WorkloadApiError("call_malformed", "ids")
        ids = [octets[at : at + service.ID_OCTETS] for at in range(0, len(octets), service.ID_OCTETS)]
        try:
            self._shares.require(holder, len(ids))
            found = await self._window.claim([_scoped(holder, id_) for id_ in ids])
        except AuthenticationError:
            return pb.ClaimResponse(unavailable=True, complete_since=self._window.complete_since)
        self._shares.note(holder, (id_ for id_, fresh in zip(ids, found, strict=True) if fresh))
        return pb.ClaimResponse(fresh=bits_of(found), complete_since=self._window.complete_since)

    @contextlib.asynccontextmanager
    async def _entitled(self, caller: C) -> AsyncIterator[_Entitled]:
        async with contextlib.aclosing(self._identities.subscribe(caller)) as states:
            spiffe_id = _default(await anext(states))
            entitled = _Entitled(spiffe_id, asyncio.ensure_future(_until_lost(states)))
            try:
                yield entitled
            finally:
                entitled.lost.cancel()
                await asyncio.wait({entitled.lost})


class _Entitled:
    """A caller for as long as it has an identity; ``lost`` ends with the error that took the last one away."""

    __slots__ = ("lost", "spiffe_id")

    def __init__(self, spiffe_id: SpiffeId, lost: asyncio.Future[None]) -> None:
        self.spiffe_id = spiffe_id
        self.lost = lost

    async def first(self, source: AsyncGenerator[T, None]) -> T | None:
        """Return the next value of ``source``, None at its end; raises what ``lost`` ends with if that comes first."""
        step = asyncio.ensure_future(_next(source))
        try:
            waited: set[asyncio.Future[Any]] = {step, self.lost}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self.lost.done():
                self.lost.result()
                raise WorkloadApiError("not_ready", "the source of identities ended")
            return step.result()
        finally:
            if not step.done():
                step.cancel()
                await asyncio.wait({step})


def bits_of(found: Sequence[bool]) -> bytes:
    """Pack answers, most significant bit first."""
    octets = bytearray(-(-len(found) // 8))
    for index, one in enumerate(found):
        if one:
            octets[index // 8] |= 0x80 >> index % 8
    return bytes(octets)


def _default(state: IdentityState) -> SpiffeId:
    found = [*(one.spiffe_id for one in state.x509), *(one.spiffe_id for one in state.wit)]
    if not found:
        raise WorkloadApiError("not_entitled")
    return found[0]


def _scoped(holder: str, id_: bytes) -> bytes:
    return id_[:_TIME] + hashlib.sha256(holder.encode() + b"\0" + id_).digest()[: service.ID_OCTETS - _TIME]


async def _next(source: AsyncGenerator[T, None]) -> T | None:
    return await anext(source, None)


async def _until_lost(states: AsyncGenerator[IdentityState, None]) -> None:
    async for _ in states:
        pass
