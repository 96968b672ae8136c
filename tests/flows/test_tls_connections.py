"""TLS between processes' worth of machinery: asyncio, uvloop, an HTTP client, and a listener that rotates."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import httpx2
import pytest
import uvloop
from tests.properties.tls_material import (
    AGENT,
    BUNDLES,
    CLOCK,
    FOREIGN,
    IMPOSTOR,
    OWN_BUNDLES,
    TD,
    TOOL,
    A,
    B,
    Workload,
)

from aims.credentials.mtls import peer_check, peer_svid, renew, spiffe_client_context, spiffe_server_context
from aims.credentials.x509_svid import read
from aims.identifiers import SpiffeId
from aims.tls import PeerRefused, RotatingContext, mtls_server_context

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
AGENT_END, TOOL_END = Workload(AGENT), Workload(TOOL)
LIMIT = 10.0


class Listener:
    """A server that notes every octet of every request, and who sent it."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.peers: list[SpiffeId] = []
        self.open: list[asyncio.StreamWriter] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(peer_svid(writer.get_extra_info("ssl_object")).spiffe_id)
        self.open.append(writer)
        try:
            while data := await reader.read(4096):
                self.received += data
                if b"\r\n\r\n" in self.received:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                else:
                    writer.write(data)
                await writer.drain()
        except (OSError, ssl.SSLError):
            return
        finally:
            writer.transport.abort()


@asynccontextmanager
async def _listening(context: ssl.SSLContext) -> AsyncIterator[Listener]:
    listener = Listener()
    async with asyncio.timeout(LIMIT):
        server = await asyncio.start_server(listener.serve, "127.0.0.1", 0, ssl=context)
        listener.port = server.sockets[0].getsockname()[1]
        try:
            yield listener
        finally:
            for writer in listener.open:
                writer.transport.abort()
            server.close()
            await server.wait_closed()


def _client(end: Workload = AGENT_END, expected: SpiffeId = TOOL) -> ssl.SSLContext:
    return spiffe_client_context(end.identity, BUNDLES, CLOCK, expected=expected, own=TD)


def _anybody(end: Workload) -> ssl.SSLContext:
    """An impostor's listener: it takes whoever comes and reads whatever it gets."""
    return mtls_server_context(end.identity, (A.root, B.root), read)


async def _attempt(port: int, context: ssl.SSLContext) -> None:
    """Connect and read: in TLS 1.3 a client learns of its refusal with its first read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    try:
        await reader.readexactly(1)
    finally:
        writer.transport.abort()


@LOOPS
def test_a_request_reaches_the_expected_peer_alone(run: Run) -> None:
    async def flow() -> None:
        async with _listening(spiffe_server_context(TOOL_END.identity, BUNDLES, CLOCK, own=TD)) as tool:
            for name in ("localhost", ""):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", tool.port, ssl=_client(), server_hostname=name
                )
                assert peer_svid(writer.get_extra_info("ssl_object")).spiffe_id == TOOL
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"hello"
                writer.transport.abort()
            assert tool.peers == [AGENT, AGENT]
        async with _listening(_anybody(Workload(IMPOSTOR))) as impostor:
            for name in ("localhost", ""):
                with pytest.raises(PeerRefused) as caught:
                    await asyncio.open_connection("127.0.0.1", impostor.port, ssl=_client(), server_hostname=name)
                assert caught.value.refusal.code == "credentials.x509_unexpected_peer"
            # the impostor does receive what is meant for it
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", impostor.port, ssl=_client(expected=IMPOSTOR), server_hostname="localhost"
            )
            writer.write(b"for you")
            assert await reader.readexactly(7) == b"for you"
            assert impostor.received == b"for you"
            writer.transport.abort()

    run(flow())


@LOOPS
def test_an_http_client_sends_nothing_to_an_impostor(run: Run) -> None:
    async def flow() -> None:
        async with (
            _listening(spiffe_server_context(TOOL_END.identity, BUNDLES, CLOCK, own=TD)) as tool,
            _listening(_anybody(Workload(IMPOSTOR))) as impostor,
            httpx2.AsyncClient(verify=_client(), trust_env=False) as client,
        ):
            answer = await client.post(f"https://localhost:{tool.port}/", content=b"secret")
            assert (answer.status_code, answer.content) == (200, b"ok")
            assert b"secret" in tool.received
            with pytest.raises(httpx2.ConnectError):
                await client.post(f"https://localhost:{impostor.port}/", content=b"secret")
            with pytest.raises(httpx2.ConnectError):
                await client.post(f"https://127.0.0.1:{impostor.port}/", content=b"secret")
            assert impostor.received == b""

    run(flow())


@LOOPS
def test_an_http_client_keeps_one_context_while_its_svid_rotates(run: Run) -> None:
    async def flow() -> None:
        check = peer_check(lambda: BUNDLES, CLOCK, expected=TOOL, own=TD)
        context = RotatingContext.client(AGENT_END.identity, (A.root,), check)
        seen: list[object] = []
        limits = httpx2.Limits(max_keepalive_connections=0)
        async with (
            _listening(spiffe_server_context(TOOL_END.identity, BUNDLES, CLOCK, own=TD)) as tool,
            httpx2.AsyncClient(verify=context, trust_env=False, limits=limits) as client,
        ):
            for end in (AGENT_END, Workload(AGENT)):
                context.update(end.identity, (A.root,), check)
                assert (await client.get(f"https://localhost:{tool.port}/")).status_code == 200
                found = peer_svid(tool.open[-1].get_extra_info("ssl_object"))
                assert found.leaf == end.svid.leaf
                seen.append(found.leaf)
            assert seen[0] != seen[1]

    run(flow())


@LOOPS
def test_a_removed_trust_domain_loses_its_open_connection(run: Run) -> None:
    async def flow() -> None:
        context = spiffe_server_context(TOOL_END.identity, BUNDLES, CLOCK, own=TD)
        async with _listening(context) as tool:

            def close_refused() -> None:
                for writer in tool.open:
                    if not context.still_accepts(writer.get_extra_info("ssl_object")):
                        writer.transport.abort()

            context.on_change(close_refused)
            ends = []
            for end in (Workload(FOREIGN, B), AGENT_END):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", tool.port, ssl=_client(end), server_hostname="localhost"
                )
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"hello"
                ends.append((reader, writer))
            assert tool.peers == [FOREIGN, AGENT]
            renew(context, Workload(TOOL).identity, OWN_BUNDLES, CLOCK, own=TD)
            (foreign, foreign_writer), (own, own_writer) = ends
            with pytest.raises((OSError, ssl.SSLError, asyncio.IncompleteReadError)):
                await foreign.readexactly(1)
            own_writer.write(b"still here")
            assert await own.readexactly(10) == b"still here"
            for writer in (foreign_writer, own_writer):
                writer.transport.abort()
            with pytest.raises((OSError, ssl.SSLError, asyncio.IncompleteReadError)):
                await _attempt(tool.port, _client(Workload(FOREIGN, B)))
            assert tool.peers == [FOREIGN, AGENT]

    run(flow())
