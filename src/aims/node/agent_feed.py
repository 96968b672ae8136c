"""What the server's one stream tells this node, fanned out to the enforcement points on the host.

Each watcher gets the full state first and then line after line, every line with the number of the one before it, so
that a line that went missing cannot stay unnoticed. A watcher that is too slow gets the full state again instead of a
growing queue. The node adds nothing of its own: where the server falls silent, so does this.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from typing import Annotated, Final, TypeAlias

import msgspec

from aims.clock import Clock
from aims.identifiers import TrustDomain
from aims.node.errors import NodeError
from aims.node.messages import BundleChanged, FullState, Heartbeat, Message, Settings, Stop, StopKey, Stopped
from aims.node.workload_errors import WorkloadApiError
from aims.proto import node_pb2 as pb

MOST_WAITING: Final = 1_000  # lines of one watcher
STOPS_IN_MESSAGE: Final = 1_500  # each with an id of at most 2 KiB: below 4 MiB

_Line: TypeAlias = Stop | Heartbeat | BundleChanged


class AgentFeed:
    """The node's memory of stops and settings, told by ``hear``. Belongs to one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stops: dict[StopKey, Stop] = {}
        self._sequences: dict[TrustDomain, int] = {}
        self._settings: pb.Settings | None = None
        self._seq = 0
        self._heard = (-1, 0.0)  # number and time of the last heartbeat
        self._watchers: set[_Watcher] = set()
        self._ready = asyncio.Event()

    def hear(self, message: Message) -> None:
        """Take a line of the server's stream, in its order."""
        match message:
            case FullState():
                self._settings = settings_message(message.settings)
                self._stops = {stop.key: stop for stop in message.stops}
                self._sequences = {message.bundle.trust_domain: message.bundle.sequence or 0}
                self._seq, self._heard = message.seq, (-1, 0.0)
                self._ready.set()
                for watcher in self._watchers:
                    watcher.again()
            case Stopped(stop):
                self._stops[stop.key] = stop
                self._seq = max(self._seq, stop.seq)
                self._tell(stop)
            case Heartbeat(seq):
                self._seq = max(self._seq, seq)
                self._heard = seq, self._clock.monotonic()
                self._tell(message)
            case BundleChanged(bundle):
                self._sequences[bundle.trust_domain] = bundle.sequence or 0
                self._tell(message)
            case _:
                pass  # entries are the node's own affair

    def settings(self) -> pb.Settings:
        """Return what the server last said about itself.

        Raises: WorkloadApiError ``not_ready`` before it said anything.
        """
        if self._settings is None:
            raise WorkloadApiError("not_ready", "nothing was heard from the server yet")
        return self._settings

    async def watch(self) -> AsyncGenerator[pb.WatchResponse, None]:
        """Yield the full state once there is one, then each line; for ever."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            await self._ready.wait()
            told = 0
            while True:
                if watcher.fresh:
                    watcher.begin()
                    told = self._seq
                    for part in self._state():
                        yield part
                    if self._heard[0] == told:
                        yield self._response(told, told, Heartbeat(told))
                while watcher.lines and not watcher.fresh:
                    line = watcher.lines.popleft()
                    seq = max(told, told if isinstance(line, BundleChanged) else line.seq)
                    yield self._response(told, seq, line)
                    told = seq
                await watcher.news()
        finally:
            self._watchers.discard(watcher)

    def _tell(self, line: _Line) -> None:
        for watcher in self._watchers:
            watcher.put(line)

    def _state(self) -> Iterator[pb.WatchResponse]:
        stops = [_stop(stop) for stop in self._stops.values()]
        seq, settings, sequences = self._seq, self.settings(), self._sequences
        for at in range(0, max(1, len(stops)), STOPS_IN_MESSAGE):
            part = pb.State(stops=stops[at : at + STOPS_IN_MESSAGE], more=at + STOPS_IN_MESSAGE < len(stops))
            if not part.more:
                part.settings.CopyFrom(settings)
                part.bundles.CopyFrom(_bundles(sequences))
            yield pb.WatchResponse(after=0, seq=seq, state=part)

    def _response(self, after: int, seq: int, line: _Line) -> pb.WatchResponse:
        response = pb.WatchResponse(after=after, seq=seq)
        match line:
            case Stop():
                response.stop.CopyFrom(_stop(line))
            case Heartbeat():
                # Counted when it is sent, for it may have waited here.
                response.age_ms = min(2**31, max(0, int((self._clock.monotonic() - self._heard[1]) * 1000)))
                response.heartbeat.SetInParent()
            case BundleChanged():
                response.bundles.CopyFrom(_bundles(self._sequences))
        return response


class _Watcher:
    """The lines that one watcher has still to be told."""

    __slots__ = ("_changed", "fresh", "lines")

    def __init__(self) -> None:
        self.lines: deque[_Line] = deque()
        self.fresh = True  # needs the full state
        self._changed = asyncio.Event()

    def begin(self) -> None:
        self.fresh = False
        self.lines.clear()

    def again(self) -> None:
        self.fresh = True
        self.lines.clear()
        self._changed.set()

    def put(self, line: _Line) -> None:
        if isinstance(line, Heartbeat) and self.lines and isinstance(self.lines[-1], Heartbeat):
            self.lines.pop()  # the newer one says more
        if len(self.lines) >= MOST_WAITING:
            self.again()
        elif not self.fresh:
            self.lines.append(line)
            self._changed.set()

    async def news(self) -> None:
        if self.fresh or self.lines:
            return
        self._changed.clear()
        await self._changed.wait()


class _Resource(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    spiffe_id: str
    profile: str
    audiences: list[str] = []
    max_stale: Annotated[int, msgspec.Meta(ge=1)] = 10


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    trust_domain: str
    issuer: str
    public_url: str
    mtls_url: str
    server: str
    tls_ca: str
    resources: dict[str, _Resource]


def settings_message(settings: Settings) -> pb.Settings:
    """Return the server's settings as agents get them.

    Raises: NodeError ``server_answer``.
    """
    try:
        found = msgspec.convert(settings.document, _Document, strict=True)
    except msgspec.ValidationError as error:
        raise NodeError("server_answer", str(error)[:200]) from error
    return pb.Settings(
        trust_domain=found.trust_domain,
        issuer=found.issuer,
        public_url=found.public_url,
        mtls_url=found.mtls_url,
        server=found.server,
        tls_ca=found.tls_ca,
        resources=[
            pb.Resource(
                url=url,
                id=row.id,
                spiffe_id=row.spiffe_id,
                profile=row.profile,
                audiences=row.audiences,
                max_stale=row.max_stale,
            )
            for url, row in found.resources.items()
        ],
        max_stale=settings.max_stale,
        heartbeat=settings.heartbeat,
    )


def _stop(stop: Stop) -> pb.Stop:
    return pb.Stop(kind=stop.key[0], id=stop.key[1], seq=stop.seq, blocked=stop.blocked)


def _bundles(sequences: dict[TrustDomain, int]) -> pb.Bundles:
    return pb.Bundles(sequences={domain.uri: number for domain, number in sequences.items()})
