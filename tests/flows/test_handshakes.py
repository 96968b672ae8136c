"""Connections that never finish their handshake are bounded in number and time; an honest client gets through."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import pytest
import uvloop
from tests.flows.workload_api_fake import until
from tests.properties.tls_material import AGENT, BUNDLES, CLOCK, TOOL, Workload

from aims.credentials.mtls import spiffe_client_context, spiffe_server_context
from aims.sdk.open_calls import App
from aims.sdk.serving import serve
from aims.server.http import Answer, Listener, Scope, answering
from aims.server.sockets import listen_tcp
from aims.server.worker import _server
from aims.tls import acceptor, public_server_context
from aims.tls.acceptor import Acceptor, Handshakes

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
KINDS = pytest.mark.parametrize("kind", ["public", "mtls", "sdk"])
LIMIT = 20.0
TOOL_END, AGENT_END = Workload(TOOL), Workload(AGENT)
CLIENT = spiffe_client_context(AGENT_END.identity, BUNDLES, CLOCK, expected=TOOL)


class _Plain:
    """An application without a lifespan of its own."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self._app(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})


async def _here(_: Scope, __: bytes) -> Answer:
    return Answer(200, b"here")


@asynccontextmanager
async def _listening(kind: str) -> AsyncIterator[int]:
    app = Listener(frozenset({"localhost:8441"}), {("GET", "/here"): answering(_here)})
    if kind == "sdk":
        async with _serving(_Plain(app)) as port:
            yield port
        return
    context = (
        public_server_context(TOOL_END.identity)
        if kind == "public"
        else spiffe_server_context(TOOL_END.identity, BUNDLES, CLOCK)
    )
    sockets = listen_tcp(0)
    server = _server(app, context)
    serving = asyncio.create_task(server.serve(sockets=sockets))
    async with asyncio.timeout(LIMIT):
        await server.listening.wait()
        yield sockets[0].getsockname()[1]
    server.should_exit = server.force_exit = True
    await serving


async def _ask(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=CLIENT)
    writer.write(b"GET /here HTTP/1.1\r\nhost: localhost:8441\r\n\r\n")
    await reader.readuntil(b"here")
    writer.transport.abort()


class _Shown:
    """The part of an identity that a service serves with."""

    def server_context(self) -> ssl.SSLContext:
        return public_server_context(TOOL_END.identity)


@asynccontextmanager
async def _serving(app: App) -> AsyncIterator[int]:
    """A service of the SDK, which ends on Ctrl-C."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(app, _Shown(), port=0, ready=port.set_result))
    async with asyncio.timeout(LIMIT):
        yield await port
        signal.raise_signal(signal.SIGINT)
        await serving


async def _silent(port: int, count: int) -> list[asyncio.StreamReader]:
    readers = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        reader._aims_writer = writer  # type: ignore[attr-defined]  # kept open for as long as the reader
        readers.append(reader)
    return readers


@LOOPS
@KINDS
def test_an_honest_client_gets_through_a_crowd_that_says_nothing(
    run: Run, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "MOST_HANDSHAKES", 8)

    async def flow() -> None:
        async with _listening(kind) as port:
            crowd = await _silent(port, 40)
            await _ask(port)
            # one of the last eight had to go for the honest client
            for reader in crowd[:33]:
                assert await _closed(reader)
            held = [asyncio.ensure_future(_closed(reader)) for reader in crowd[33:]]
            await _ask(port)
            assert sum(not task.done() for task in held) >= 6
            for task in held:
                task.cancel()
            _let_go(crowd)

    run(flow())


@LOOPS
@KINDS
def test_a_handshake_that_does_not_end_is_ended(run: Run, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "HANDSHAKE_SECONDS", 0.3)

    async def flow() -> None:
        async with _listening(kind) as port:
            (silent, half) = await _silent(port, 2)
            half._aims_writer.write(b"\x16\x03\x01\x02\x00\x01")  # type: ignore[attr-defined]  # how a hello begins
            assert await _closed(silent)
            assert await _closed(half)
            await _ask(port)
            _let_go([silent, half])

    run(flow())


class _Exhausted(socket.socket):
    """A listening socket for which the process has no descriptors, twice."""

    left = 2

    def accept(self) -> Any:
        if self.left:
            self.left -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return super().accept()


@LOOPS
def test_a_process_without_descriptors_accepts_again_when_it_has_some(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "PAUSE_SECONDS", 0.05)

    async def flow() -> None:
        plain, *others = listen_tcp(0)
        port = plain.getsockname()[1]
        made: list[asyncio.Protocol] = []

        def factory() -> asyncio.Protocol:
            made.append(asyncio.Protocol())
            return made[-1]

        handshakes = Handshakes(factory, public_server_context(TOOL_END.identity))
        listener = _Exhausted(fileno=plain.detach())
        accepting = Acceptor(listener, handshakes)
        async with asyncio.timeout(LIMIT):
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=CLIENT)
            await until(lambda: len(handshakes) == 0)
        assert (len(made), listener.left) == (1, 0)
        writer.transport.abort()
        accepting.close()
        for each in (listener, *others):
            each.close()

    run(flow())


async def _closed(reader: asyncio.StreamReader) -> bool:
    with suppress(OSError):
        await reader.read()
    return True


def _let_go(readers: list[asyncio.StreamReader]) -> None:
    for reader in readers:
        reader._aims_writer.transport.abort()  # type: ignore[attr-defined]
