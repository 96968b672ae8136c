"""Transports of httpx2 whose pooled connections end as soon as their peer is refused, in use or not.

httpx2 keeps connections for later requests and judges a peer only in the handshake. These tell the context of each
connection that they open how to end it. Only a `RotatingContext` can ask for that; over any other they are plain.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final
from weakref import ref

import httpx2

from aims.tls import RotatingContext

_TRACE: Final = "trace"
_MADE: Final = "connection.start_tls.complete"


class EndingTransport(httpx2.AsyncHTTPTransport):
    """`httpx2.AsyncHTTPTransport` over one context, without what the environment says. Belongs to one event loop."""

    def __init__(self, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(verify=context, trust_env=False, **options)
        self._context = context
        self._ending: set[asyncio.Task[None]] = set()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if isinstance(self._context, RotatingContext):
            request.extensions[_TRACE] = self._trace(self._context, request.extensions.get(_TRACE))
        return await super().handle_async_request(request)

    def _trace(
        self, context: RotatingContext, given: Callable[[str, Any], Awaitable[None]] | None
    ) -> Callable[[str, Any], Awaitable[None]]:
        async def trace(name: str, facts: Any) -> None:
            if name == _MADE:
                stream = facts["return_value"]
                # The context keeps the way to end for as long as the connection lives, so it must not keep that alive.
                weak = ref(stream)
                context.end_when_refused(stream.get_extra_info("ssl_object"), lambda: self._end(weak()))
            if given is not None:
                await given(name, facts)

        return trace

    def _end(self, stream: Any) -> None:
        if stream is not None:
            task = asyncio.get_running_loop().create_task(_closed(stream))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


class BlockingEndingTransport(httpx2.HTTPTransport):
    """The same for `httpx2.Client`, in any thread."""

    def __init__(self, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(verify=context, trust_env=False, **options)
        self._context = context

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if isinstance(self._context, RotatingContext):
            request.extensions[_TRACE] = _blocking_trace(self._context, request.extensions.get(_TRACE))
        return super().handle_request(request)


def _blocking_trace(context: RotatingContext, given: Callable[[str, Any], None] | None) -> Callable[[str, Any], None]:
    def trace(name: str, facts: Any) -> None:
        if name == _MADE:
            connection = facts["return_value"].get_extra_info("socket")
            weak = ref(connection)
            context.end_when_refused(connection, lambda: _shut(weak()))
        if given is not None:
            given(name, facts)

    return trace


async def _closed(stream: Any) -> None:
    # Whoever waits in the connection hears of it; that it is half closed already is no matter.
    with suppress(Exception):
        await stream.aclose()


def _shut(connection: ssl.SSLSocket | None) -> None:
    """Wake whoever waits in the connection. To close it here would free its number while they still use it."""
    if connection is not None:
        with suppress(OSError):
            # That of the socket itself: the one of TLS would let the other thread go on in clear text.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
