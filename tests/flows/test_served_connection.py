"""Connections of a service under the SDK: requests end and have bounds, answers may last, silence keeps nobody out."""

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

from aims.credentials.mtls import spiffe_client_context
from aims.sdk import served_connection, serving
from aims.tls import public_server_context

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]
Peer: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
LIMIT = 20.0
TOOL_END, AGENT_END = Workload(TOOL), Workload(AGENT)
CLIENT = spiffe_client_context(AGENT_END.identity, BUNDLES, CLOCK, expected=TOOL)
HEAD = " HTTP/1.1\r\nhost: localhost\r\n"
BODY = b"x" * 200_000  # more than uvicorn takes in before the application reads


class _Shown:
    """The part of an identity that a service serves with."""

    def server_context(self) -> ssl.SSLContext:
        return public_server_context(TOOL_END.identity)


async def _app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    path = scope["path"]
    if path == "/late":
        await asyncio.sleep(1.2)
    if path in {"/late", "/read"}:
        while (await receive()).get("more_body"):
            pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-path", path.encode())]})
    for _ in range(6 if path == "/stream" else 0):
        await send({"type": "http.response.body", "body": b"tick", "more_body": True})
        await asyncio.sleep(0.2)
    await send({"type": "http.response.body", "body": b"done"})


@asynccontextmanager
async def _serving() -> AsyncIterator[int]:
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serving.serve(_app, _Shown(), port=0, ready=port.set_result))
    async with asyncio.timeout(LIMIT):
        yield await port
        signal.raise_signal(signal.SIGINT)
        await task


async def _open(port: int, octets: bytes = b"") -> Peer:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=CLIENT)
    writer.write(octets)
    return reader, writer


async def _rest(peer: Peer) -> bytes:
    """What comes until the connection ends; b"" for one that was aborted in silence."""
    octets = b""
    with suppress(OSError):
        octets = await peer[0].read()
    peer[1].transport.abort()
    return octets


async def _ask(port: int, path: str = "/here") -> None:
    peer = await _open(port, f"GET {path}{HEAD}\r\n".encode())
    assert (await peer[0].readuntil(b"done")).startswith(b"HTTP/1.1 200")
    peer[1].transport.abort()


@LOOPS
def test_a_request_to_a_service_that_does_not_end_loses_its_connection(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_connection, "REQUEST_SECONDS", 0.5)

    async def trickle(peer: Peer) -> None:
        with suppress(OSError):
            while not peer[0].at_eof():
                peer[1].write(b"a")
                await asyncio.sleep(0.1)

    async def flow() -> None:
        async with _serving() as port:
            half = f"POST /read{HEAD}content-length: 10\r\n\r\nx".encode()
            late = [await _open(port, octets) for octets in (b"", b"GET /here HTTP/1.1\r\nx: ", half)]
            slow = await _open(port, b"GET /here HTTP/1.1\r\nx: ")
            again = await _open(port, f"GET /here{HEAD}\r\n".encode())
            assert await again[0].readuntil(b"0\r\n\r\n")
            again[1].write(b"GET /he")  # the second request of a connection has the same time
            dripping = asyncio.create_task(trickle(slow))
            began = asyncio.get_running_loop().time()
            assert [await _rest(peer) for peer in (*late, slow, again)] == [b""] * 5
            assert asyncio.get_running_loop().time() - began < 5
            await dripping
            # an answer does not lend time to the rest of the request
            early = await _open(port, half.replace(b"/read", b"/here"))
            assert (await _rest(early)).endswith(b"0\r\n\r\n")
            await _ask(port)

    run(flow())


@LOOPS
def test_an_answer_of_a_service_and_its_own_slowness_are_no_late_request(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_connection, "REQUEST_SECONDS", 0.5)

    async def flow() -> None:
        async with _serving() as port:
            stream = await _open(port, f"GET /stream{HEAD}connection: close\r\n\r\n".encode())
            # whole requests, of which the application reads the body later than the time of a request
            late = f"POST /late{HEAD}connection: close\r\ncontent-length: {len(BODY)}\r\n"
            full = await _open(port, late.encode() + b"\r\n" + BODY)
            asking = await _open(port, late.encode() + b"expect: 100-continue\r\n\r\n")
            assert await asking[0].readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            asking[1].write(BODY)
            assert (await _rest(stream)).count(b"tick") == 6
            assert b"done" in await _rest(full)
            assert b"done" in await _rest(asking)

    run(flow())


@LOOPS
def test_a_request_to_a_service_that_is_out_of_bounds_is_refused(run: Run) -> None:
    async def flow() -> None:
        async with _serving() as port:
            for octets, status in (
                ("GET /" + "x" * 9000 + HEAD + "\r\n", 414),
                (f"GET /here{HEAD}a: {'x' * 33_000}\r\n\r\n", 431),
                (f"GET /here{HEAD}" + "".join(f"h{n}: v\r\n" for n in range(80)) + "\r\n", 431),
                (f"GET /here{HEAD}a: " + "x" * 60_000, 431),
                ("NONSENSE\r\n\r\n", 400),
                ("\r\n", 400),
                (f"POST /read{HEAD}transfer-encoding: chunked\r\n\r\nno number\r\n", 400),
            ):
                answer = await _rest(await _open(port, octets.encode()))
                assert answer.startswith(b"HTTP/1.1 %d " % status), octets[:20]
                assert answer.count(b"HTTP/1.1") == 1
            # in the middle of an answer there is no place for another
            broken = await _open(port, f"POST /stream{HEAD}transfer-encoding: chunked\r\n\r\n".encode())
            await broken[0].readuntil(b"tick")
            broken[1].write(b"no number\r\n")
            assert b"HTTP/1.1" not in await _rest(broken)
            large = f"GET /here{HEAD}a: {'x' * 30_000}\r\n\r\n"
            three = await _open(port, (large * 2 + large.replace("a:", "connection: close\r\na:")).encode())
            assert (await _rest(three)).count(b"HTTP/1.1 200") == 3

    run(flow())


@LOOPS
def test_an_idle_connection_of_a_service_ends(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "KEEP_ALIVE_SECONDS", 0.3)

    async def flow() -> None:
        async with _serving() as port:
            idle = await _open(port, f"GET /here{HEAD}\r\n".encode())
            # answered before its end, and ended then
            early = await _open(port, f"POST /here{HEAD}content-length: 1\r\n\r\n".encode())
            await early[0].readuntil(b"0\r\n\r\n")
            early[1].write(b"x")
            began = asyncio.get_running_loop().time()
            assert (await _rest(idle)).endswith(b"0\r\n\r\n")
            assert await _rest(early) == b""
            assert asyncio.get_running_loop().time() - began < 5

    run(flow())


@LOOPS
def test_who_waits_longest_at_a_service_gives_way_and_a_stream_does_not(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_connection, "MOST_CONNECTIONS", 5)
    monkeypatch.setattr(served_connection, "REQUEST_SECONDS", 3 * LIMIT)  # it is not for lateness that they go

    async def flow() -> None:
        async with _serving() as port:
            stream = await _open(port, f"GET /stream{HEAD}connection: close\r\n\r\n".encode())
            await stream[0].readuntil(b"tick")
            strangers = [await _open(port, b"GET /here HTTP/1.1\r\nx: ") for _ in range(12)]
            await _ask(port)
            assert [await _rest(peer) for peer in strangers[:8]] == [b""] * 8
            assert not any(peer[0].at_eof() for peer in strangers[10:])
            assert (await _rest(stream)).count(b"tick") == 5
            for _, writer in strangers:
                writer.transport.abort()

    run(flow())


class _Exhausted(socket.socket):
    """A listening socket for which the process has no descriptors once, when told so."""

    left = 0

    def accept(self) -> Any:
        if self.left:
            self.left -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return super().accept()


@LOOPS
def test_a_service_without_descriptors_takes_them_from_who_waits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    listening = serving.listening
    listeners: list[_Exhausted] = []

    def exhausted(*given: Any, **options: Any) -> socket.socket:
        listeners.append(_Exhausted(fileno=listening(*given, **options).detach()))
        listeners[-1].setblocking(False)
        return listeners[-1]

    monkeypatch.setattr(serving, "listening", exhausted)
    monkeypatch.setattr(served_connection, "_MADE_FREE", 2)
    monkeypatch.setattr(served_connection, "REQUEST_SECONDS", 3 * LIMIT)

    async def flow() -> None:
        async with _serving() as port:
            stream = await _open(port, f"GET /stream{HEAD}connection: close\r\n\r\n".encode())
            await stream[0].readuntil(b"tick")
            strangers = [await _open(port) for _ in range(3)]
            await _ask(port)
            listeners[0].left = 1
            await _ask(port)
            await until(lambda: strangers[0][0].at_eof() and strangers[1][0].at_eof())
            assert not strangers[2][0].at_eof()
            assert (await _rest(stream)).count(b"tick") == 5
            strangers[2][1].transport.abort()

    run(flow())
