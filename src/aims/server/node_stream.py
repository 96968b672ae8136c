"""The stream that tells a node what changed: entries, bundle, stops, and every two seconds that nothing was missed.

A line of the change feed becomes the least that a node needs to hear; where that cannot be said, everything is sent
again. A heartbeat is sent only while this worker itself has read the feed to its head; one that hangs goes silent, and
whoever listens to it stops trusting what it knows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from aims.authorization.flood import note
from aims.credentials.x509_svid import X509Svid
from aims.errors import AimsError
from aims.provisioning.bundles import domain_bundle
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry.memory import Applied
from aims.provisioning.routes import node_of, refusal, version_refusal
from aims.server.core import HEARTBEAT_SECONDS, Core, News
from aims.server.errors import ServerError
from aims.server.http import Answer, Receive, Scope, Send, header, respond
from aims.storage.reading import StopRow
from aims.tls import peer

LATE_SECONDS: Final = 0.05
MOST_WAITING: Final = 1_000
VERSION_HEADER: Final = b"aims-node-version"

_encode = msgspec.json.Encoder().encode


class NodeStreams:
    """``GET /node/v1/watch`` as a raw ASGI callable."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = await refused_version(scope)
        if refused is None:
            try:
                node_id = node_of(peer_svid(scope), self._core.registry.trust_domain)
                self._core.require_live_node(node_id)
            except AimsError as error:
                await note(scope, error)
                refused = refusal(error)
        if refused is not None:
            await respond(send, Answer(*refused))
            return
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")],
            }
        )
        gone = asyncio.create_task(_gone(receive))
        try:
            await _Telling(self._core, node_id, send).until(gone)
        finally:
            gone.cancel()
        # The client may be gone already; ending the response is then nobody's loss.
        with contextlib.suppress(OSError):
            await send({"type": "http.response.body", "body": b""})


class _Telling:
    """What one node still has to be told."""

    def __init__(self, core: Core, node_id: str, send: Send) -> None:
        self._core = core
        self._node_id = node_id
        self._send = send
        self._waiting: asyncio.Queue[News] = asyncio.Queue(MOST_WAITING)
        self._overflow = False
        self._due = 0.0

    async def until(self, gone: asyncio.Task[None]) -> None:
        """Tell everything, then what changes, until the client goes away or its node is stopped."""
        loop = asyncio.get_running_loop()
        with self._core.hearing(self._hear):
            await self._everything()
            while not gone.done():
                # News does not put the heartbeat off: a busy hour would look like a cut stream.
                news = await self._next(gone, self._due - loop.time())
                if self._overflow:
                    await self._start_over()
                elif news is not None:
                    await self._tell(news)
                if not self._core.node_is_live(self._node_id):
                    return
                if loop.time() >= self._due:
                    await self._beat()

    def _hear(self, news: News) -> None:
        try:
            self._waiting.put_nowait(news)
        except asyncio.QueueFull:
            self._overflow = True

    async def _next(self, gone: asyncio.Task[None], seconds: float) -> News | None:
        """Return the next news, or None when it is time for a heartbeat or the client went away."""
        get = asyncio.ensure_future(self._waiting.get())
        done, _ = await asyncio.wait({get, gone}, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
        if get in done:
            return get.result()
        get.cancel()
        return None

    async def _start_over(self) -> None:
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self._overflow = False
        await self._everything()

    async def _everything(self) -> None:
        # Enforcement points let nobody in between a full state and the heartbeat after it.
        await self._line(self._state())
        await self._beat()

    async def _tell(self, news: News) -> None:
        for message in self._messages(news):
            await self._line(message)
        if news.everything:
            await self._beat()

    async def _beat(self) -> None:
        """Say that nothing was missed. While news waits, its number would promise more than was told: soon, then."""
        now = asyncio.get_running_loop().time()
        if self._waiting.empty() and self._core.database.feed.fresh():
            self._due = now + HEARTBEAT_SECONDS
            await self._line({"type": "heartbeat", "seq": self._core.seq})
        else:
            self._due = now + LATE_SECONDS

    def _state(self) -> dict[str, Any]:
        registry = self._core.registry
        return {
            "type": "state",
            "seq": self._core.seq,
            "entries": [registry.entry_message(entry) for entry in registry.entries_for(self._node_id)],
            "bundle": self._bundle(),
            "stops": [_stop(row) for row in self._core.stops.values()],
            "settings": self._core.node_settings(),
        }

    def _messages(self, news: News) -> Iterator[dict[str, Any]]:
        if news.everything:
            yield self._state()
            return
        if news.stop is not None:
            yield {"type": "stop", "seq": news.seq, **_stop(news.stop)}
        if news.bundle:
            yield {"type": "bundle", "seq": news.seq, "bundle": self._bundle()}
        if news.applied is not None:
            yield from self._entries(news.seq, news.applied)

    def _entries(self, seq: int, applied: Applied) -> Iterator[dict[str, Any]]:
        registry = self._core.registry
        difference = registry.difference(applied, self._node_id)
        if difference is None:
            yield self._state()
            return
        entries, removed = difference
        if entries or removed:
            yield {
                "type": "entries",
                "seq": seq,
                "set": [registry.entry_message(entry) for entry in entries],
                "removed": list(removed),
            }

    def _bundle(self) -> msgspec.Raw:
        return msgspec.Raw(domain_bundle(self._core.authority).build())

    async def _line(self, message: dict[str, Any]) -> None:
        await self._send({"type": "http.response.body", "body": _encode(message) + b"\n", "more_body": True})


async def refused_version(scope: Scope) -> tuple[int, bytes] | None:
    """Return the 426 for a request of another version of the node protocol, recorded; None for one of ours."""
    try:
        said = header(scope, VERSION_HEADER)
    except ServerError:  # twice is no version
        said = None
    refused = version_refusal(said)
    if refused is not None:
        await note(scope, ProvisioningError("version"))
    return refused


def peer_svid(scope: Scope) -> X509Svid | None:
    """Return the X509-SVID that the mTLS handshake of this connection verified, None without one."""
    from aims.server.protocol import peer_of

    connection = peer_of(scope)
    try:
        return peer(connection, X509Svid)
    except (AimsError, TypeError):
        return None


def _stop(row: StopRow) -> dict[str, Any]:
    return {"kind": row.name.kind, "id": row.name.id, "seq": row.seq, "blocked": row.blocked}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
