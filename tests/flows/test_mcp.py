"""MCP with the official SDK over TLS: who the tools see, whose a session is, and an impostor at the tool's address."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from mcp.server.mcpserver import MCPServer
from tests.flows.sdk_world import AGENT, OTHER, TOOL, Seat, World, knows, resource, world
from tests.flows.workload_api_fake import until

from aims.credentials.mtls import peer_svid
from aims.sdk import served_connection
from aims.sdk.blocking import BlockingIdentity
from aims.sdk.errors import CallRefusedError, SdkError
from aims.sdk.identity import Identity
from aims.sdk.mcp import connect, current, guarded
from aims.sdk.serving import serve

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}
PLAIN = {"accept": "application/json, text/event-stream"}


def tools() -> MCPServer[Any]:
    server: MCPServer[Any] = MCPServer("t")

    @server.tool()
    def sync_caller() -> str:
        return current().agent

    @server.tool()
    async def caller() -> str:
        return current().agent

    @server.tool()
    async def slow() -> str:
        await asyncio.sleep(1.5)
        return current().agent

    return server


class Place:
    def __init__(self, node: World, url: str, tool: Seat) -> None:
        self.node, self.url, self.tool = node, url, tool

    @contextlib.asynccontextmanager
    async def agent(self, name: Any) -> AsyncIterator[Identity]:
        async with (await self.node.seat(name)).identity() as me:
            await until(lambda: me.settings.resources)
            yield me


@contextlib.asynccontextmanager
async def place(**options: Any) -> AsyncIterator[Place]:
    async with world() as node:
        tool = await node.seat(TOOL)
        async with tool.identity() as me:
            listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            app = guarded(tools(), me, paths=["/mcp", "/also"], **options)
            serving = asyncio.create_task(serve(app, me, port=0, ready=listening.set_result))
            async with asyncio.timeout(10):
                base = f"https://localhost:{await listening}"
            node.resources = {
                f"{base}/mcp": resource(f"{base}/mcp"),
                f"{base}/also": resource(f"{base}/also", id="also", profile="wimse-method-bound", audiences=["urn:a"]),
            }
            node.full()
            node.beat()
            await until(lambda: me.settings.resources)
            await knows(me)
            try:
                yield Place(node, f"{base}/mcp", tool)
            finally:
                serving.cancel()
                await asyncio.wait({serving})


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_tool_sees_who_called_it_in_either_wire_form(mode: str) -> None:
    async with place() as it, it.agent(AGENT) as first, it.agent(OTHER) as second:
        async with connect(first, it.url, mode=mode) as one, connect(second, it.url, mode=mode) as two:
            for name in ("caller", "sync_caller"):
                answers = await asyncio.gather(*(session.call_tool(name) for session in (one, two) * 3))
                seen = [answer.structured_content for answer in answers]
                assert seen == [{"result": str(AGENT)}, {"result": str(OTHER)}] * 3
        async with connect(first, it.url.replace("/mcp", "/also"), mode=mode) as bound:
            assert (await bound.call_tool("caller")).structured_content == {"result": str(AGENT)}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_call_of_a_tool_may_last_longer_than_a_request(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_connection, "REQUEST_SECONDS", 0.5)
    async with place() as it, it.agent(AGENT) as me, connect(me, it.url, mode=mode) as client:
        assert (await client.call_tool("slow")).structured_content == {"result": str(AGENT)}
        assert (await client.call_tool("caller")).structured_content == {"result": str(AGENT)}


async def test_a_session_exists_for_its_owner_alone() -> None:
    async with (
        place() as it,
        it.agent(AGENT) as owner,
        it.agent(OTHER) as thief,
        owner.client(headers=PLAIN) as mine,
        thief.client(headers=PLAIN) as theirs,
    ):
        opened = await mine.post(it.url, json=INITIALIZE)
        assert opened.status_code == 200
        held = {"mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
        listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        assert (await theirs.post(it.url, json=listing, headers=held)).status_code == 404
        assert (await theirs.delete(it.url, headers=held)).status_code == 404
        assert (await mine.post(it.url, json=listing, headers=held)).status_code == 200


async def test_a_stop_ends_the_open_stream_of_a_session_and_the_next_call_names_it() -> None:
    async with place() as it, it.agent(AGENT) as me:
        async with me.client(headers=PLAIN) as http:
            opened = await http.post(it.url, json=INITIALIZE)
            held = {"mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
            async with http.stream("GET", it.url, headers=held) as stream:
                assert stream.status_code == 200
                it.node.stop("agent", AGENT)
                async with asyncio.timeout(10):
                    with contextlib.suppress(httpx2.RemoteProtocolError):
                        async for _ in stream.aiter_raw():
                            pass
        it.node.beat()
        with pytest.raises(CallRefusedError) as refused:
            async with connect(me, it.url) as client:
                await client.call_tool("caller")
        assert (refused.value.status, refused.value.service_code) == (401, "authentication.stopped")
        assert refused.value.hint
        assert refused.value.stop == {"kind": "agent", "id": str(AGENT), "seq": it.node.seq, "blocked": True}


async def test_no_octet_of_a_request_reaches_an_impostor_with_a_good_certificate() -> None:
    async with place() as it, it.agent(AGENT) as me, (await it.node.seat(OTHER)).identity() as impostor:
        heard = bytearray()
        connected = asyncio.Event()

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connected.set()
            with contextlib.suppress(OSError, ssl.SSLError):
                while b"words" not in heard and (octets := await reader.read(65536)):
                    heard.extend(octets)
            writer.close()

        server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=impostor.server_context())
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}/mcp"
        async with server:
            it.node.resources = {url: resource(url)}
            it.node.full()
            await until(lambda: me.settings.resources[0].url == url)
            async with me.client() as http:
                with pytest.raises(SdkError) as refused:
                    await http.post(url, json={"secret": "words"})
            assert refused.value.code == "sdk.peer_refused"
            assert f"{OTHER} instead of {TOOL}" in refused.value.detail
            with pytest.raises(SdkError, match=r"sdk\.peer_refused"):
                async with connect(me, url):
                    pass
            # its twin: the same address, expected
            it.node.resources = {url: resource(url, peer=OTHER)}
            it.node.full()
            await until(lambda: me.settings.resources[0].peer == OTHER)
            assert bytes(heard) == b""
            async with me.client(timeout=5) as http:
                with pytest.raises(httpx2.TransportError):
                    await http.post(url, json={"secret": "words"})
            await until(lambda: b"words" in heard)
            assert connected.is_set()


async def test_a_tool_that_was_stopped_is_called_no_more() -> None:
    async with place() as it, it.agent(AGENT) as me:
        await knows(me)
        async with me.client(headers=PLAIN) as http:
            assert (await http.post(it.url, json=INITIALIZE)).status_code == 200
        it.node.stop("instance", it.tool.workload.fence.instance)
        it.node.beat()
        await until(lambda: me.live.enforcement is not None and me.live.enforcement.stops.number == it.node.seq)
        async with me.client(headers=PLAIN) as http:
            with pytest.raises(SdkError) as refused:
                await http.post(it.url, json=INITIALIZE)
        assert refused.value.code == "sdk.peer_refused"
        assert "sdk.peer_stopped" in refused.value.detail


async def test_the_certificate_of_a_service_rotates_while_it_serves() -> None:
    async with place() as it, it.agent(AGENT) as me, me.client(headers=PLAIN) as http:
        assert (await http.post(it.url, json=INITIALIZE)).status_code == 200
        serial = it.tool.workload.svid.serial
        assert await shown(me, it.url) == serial
        it.tool.renew()
        async with asyncio.timeout(10):
            while await shown(me, it.url) == serial:
                pass
        assert await shown(me, it.url) == it.tool.workload.svid.serial
        assert (await http.post(it.url, json=INITIALIZE)).status_code == 200


async def shown(me: Identity, url: str) -> int:
    """The serial number of the certificate that a new connection gets to see."""
    _, writer = await asyncio.open_connection(
        "127.0.0.1", httpx2.URL(url).port, ssl=me.ssl_context(url=url), server_hostname="localhost"
    )
    serial = peer_svid(writer.get_extra_info("ssl_object")).serial
    writer.close()
    return serial


async def test_a_url_that_the_map_does_not_know_gets_no_request() -> None:
    async with place() as it, it.agent(AGENT) as me:
        for url in (it.url.replace("/mcp", "/other"), "https://localhost:1/mcp"):
            with pytest.raises(SdkError, match=r"sdk\.peer_unknown"):
                async with connect(me, url):
                    pass


async def test_code_without_an_event_loop_has_the_same_identity() -> None:
    async with place() as it:
        seat = await it.node.seat(AGENT)

        def work() -> None:
            with BlockingIdentity(seat.address, clock=it.node.clock) as me, me.client(headers=PLAIN) as http:
                assert me.spiffe_id == AGENT
                assert repr(me) == f"BlockingIdentity({AGENT})"
                assert http.post(it.url, json=INITIALIZE).status_code == 200
                assert me.jwt_svid("urn:x") == "jwt-for-urn:x"
                with pytest.raises(SdkError, match=r"sdk\.peer_unknown"):
                    http.get("https://localhost:1/")
                it.node.resources = {it.url: resource(it.url, peer=OTHER)}
                loop.call_soon_threadsafe(it.node.full)
                deadline = time.monotonic() + 10
                while me._identity.settings.resources[0].peer != OTHER:
                    assert time.monotonic() < deadline
                with pytest.raises(SdkError, match=r"sdk\.peer_refused"):
                    http.post(it.url, json=INITIALIZE)
            with pytest.raises(SdkError, match=r"sdk\.not_started"):
                me.jwt_svid("urn:x")

        loop = asyncio.get_running_loop()
        await asyncio.wait_for(asyncio.to_thread(work), 30)
        with pytest.raises(SdkError, match=r"sdk\.no_node"):
            await asyncio.to_thread(_enter, BlockingIdentity(f"{seat.address}-none"))


def _enter(me: BlockingIdentity) -> None:
    with me:
        pass
