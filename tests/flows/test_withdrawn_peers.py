"""Open connections whose peer is refused from now on: the server's listener and the SDK's pools end them alone."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeAlias

import httpx2
import pytest
import uvloop
from tests.flows.sdk_world import AGENT, OTHER, TOOL, Seat, Workload, World, knows, resource, world
from tests.flows.workload_api_fake import until
from tests.properties import tls_material as tls
from tests.properties.x509_material import Domain

from aims.credentials.bundle import BundleSet
from aims.credentials.errors import CredentialError
from aims.credentials.mtls import peer_check, renew, spiffe_client_context, spiffe_server_context
from aims.identifiers import SpiffeId
from aims.keys import KeyStoreError
from aims.sdk.blocking import BlockingIdentity
from aims.sdk.errors import SdkError
from aims.sdk.open_connections import EndingTransport
from aims.sdk.tokens import AuthorizationServer
from aims.server import listeners
from aims.server.core import News
from aims.server.http import Answer, Listener, Scope, answering
from aims.server.listeners import Listeners
from aims.server.sockets import listen_tcp
from aims.server.worker import _server
from aims.tls import RotatingContext, TlsIdentity, public_server_context

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
LIMIT = 20.0
ASKING = b"GET /here HTTP/1.1\r\nhost: localhost:8441\r\n\r\n"


async def _here(_: Scope, __: bytes) -> Answer:
    return Answer(200, b"here")


@LOOPS
def test_a_withdrawn_authority_ends_the_connections_of_the_servers_listener(run: Run) -> None:
    async def flow() -> None:
        sockets = listen_tcp(0)
        context = spiffe_server_context(tls.Workload(tls.TOOL).identity, tls.BUNDLES, tls.CLOCK)
        server = _server(Listener(frozenset({"localhost:8441"}), {("GET", "/here"): answering(_here)}), context)
        serving = asyncio.create_task(server.serve(sockets=sockets))
        async with asyncio.timeout(LIMIT):
            await server.listening.wait()
            ends = []
            # more than are judged in one go
            for end in [tls.Workload(tls.FOREIGN, tls.B) for _ in range(20)] + [tls.Workload(tls.AGENT)]:
                client = spiffe_client_context(end.identity, tls.BUNDLES, tls.CLOCK, expected=tls.TOOL)
                reader, writer = await asyncio.open_connection("127.0.0.1", sockets[0].getsockname()[1], ssl=client)
                writer.write(ASKING)
                await reader.readuntil(b"here")
                ends.append((reader, writer))
            renew(context, tls.Workload(tls.TOOL).identity, tls.OWN_BUNDLES, tls.CLOCK)
            for reader, _ in ends[:-1]:
                assert await _ended(reader)
            ends[-1][1].write(ASKING)
            assert (await ends[-1][0].readuntil(b"here")).startswith(b"HTTP/1.1 200"), "who is accepted stays"
        for _, writer in ends:
            writer.transport.abort()
        server.should_exit = server.force_exit = True
        await serving

    run(flow())


async def test_no_failure_keeps_a_withdrawn_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "KEEPING_SECONDS", 0.02)
    told: list[Callable[[News], None]] = []
    asked: list[float] = []
    broken = [CredentialError("bundle_malformed")]

    @contextmanager
    def hearing(listener: Callable[[News], None]) -> Iterator[None]:
        told.append(listener)
        yield

    async def turn(now: float) -> None:
        asked.append(now)
        raise KeyStoreError("unavailable")

    def bundles() -> BundleSet:
        if broken:
            raise broken.pop()
        return tls.OWN_BUNDLES

    core: Any = SimpleNamespace(hearing=hearing, clock=tls.CLOCK, keeper=SimpleNamespace(turn=turn))
    kept = Listeners(core)
    shown: Any = SimpleNamespace(identity=tls.Workload(tls.TOOL).identity)
    kept._mtls_shown = shown
    kept.mtls_context = spiffe_server_context(shown.identity, tls.BUNDLES, tls.CLOCK)
    monkeypatch.setattr(kept, "_bundles", bundles)
    changes: list[int] = []
    kept.mtls_context.on_change(lambda: changes.append(len(asked)))
    keeping = asyncio.create_task(kept.keep())
    async with asyncio.timeout(LIMIT):
        await until(lambda: len(asked) == 2)
        assert not changes, "nothing has changed yet"
        told[0](News(1, bundle=True))
        await until(lambda: bool(changes))
        await until(lambda: len(asked) > changes[0] + 1)
    assert (broken, len(changes)) == ([], 1)
    keeping.cancel()


class Tool:
    """A service that answers at ``/`` and, at ``/never``, does not; it knows its open connections."""

    def __init__(self) -> None:
        self.port = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.opened = 0
        self.hanging = False

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        self.opened += 1
        try:
            while not (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /never"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            self.hanging = True
            await reader.read()
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open.discard(writer)
            writer.transport.abort()


@asynccontextmanager
async def _tool(identity: TlsIdentity) -> AsyncIterator[Tool]:
    tool = Tool()
    context = public_server_context(identity)
    server = await asyncio.start_server(tool.serve, "127.0.0.1", 0, ssl=context)
    tool.port = server.sockets[0].getsockname()[1]
    try:
        yield tool
    finally:
        for writer in tuple(tool.open):
            writer.transport.abort()
        server.close()


class Place:
    """An agent, and two services that it may call."""

    def __init__(self, node: World, seat: Seat, tool: Tool, other: Tool) -> None:
        self.node, self.seat, self.tool, self.other = node, seat, tool, other

    def stop_tool(self) -> None:
        """The tool itself is stopped."""
        self.node.stop("agent", TOOL)

    def withdraw_authority(self) -> None:
        """Nothing that the trust domain's old authority signed counts any more."""
        self.node.bundle = replace(self.node.bundle, x509_authorities=(Domain("a.test").root,), sequence=2)
        self.seat.renew()

    def withdraw_identity(self) -> None:
        """The agent itself is nobody any more."""
        self.seat.withdraw()


@asynccontextmanager
async def _place() -> AsyncIterator[Place]:
    async with world() as node, asyncio.timeout(LIMIT):
        seat = await node.seat(AGENT)
        async with _tool(_identity(node, TOOL)) as tool, _tool(_identity(node, OTHER)) as other:
            node.resources = {
                tool.url: resource(tool.url),
                other.url: resource(other.url, peer=OTHER, id="other"),
            }
            node.full()
            node.beat()
            yield Place(node, seat, tool, other)


CAUSES = pytest.mark.parametrize("cause", [Place.stop_tool, Place.withdraw_authority, Place.withdraw_identity])


@CAUSES
async def test_who_is_refused_loses_pooled_connections_and_calls_in_progress(cause: Callable[[Place], None]) -> None:
    async with _place() as place, place.seat.identity() as me:
        await knows(me)
        async with me.client() as http:
            assert (await http.get(place.tool.url)).text == "ok"
            hanging = asyncio.create_task(http.get(place.tool.url + "never"))
            await until(lambda: place.tool.hanging)
            assert (await http.get(place.tool.url)).text == "ok"
            assert place.tool.opened == 2
            assert (await http.get(place.other.url)).text == "ok"
            cause(place)
            await until(lambda: not place.tool.open)
            with pytest.raises((httpx2.HTTPError, SdkError)):
                await hanging
            if cause is Place.stop_tool:
                assert (await http.get(place.other.url)).text == "ok"
                assert (place.other.opened, len(place.other.open)) == (1, 1), "who is accepted stays"
            with pytest.raises(SdkError) as refused:
                await http.get(place.tool.url)
            assert refused.value.reason in {"peer_refused", "peer_unreachable", "stopped"}


async def test_the_connection_to_the_authorization_server_ends_with_its_welcome() -> None:
    async with _place() as place, place.seat.identity() as me:
        await knows(me)
        server = AuthorizationServer(me.settings, me.ssl_context(url=place.tool.url), me.clock, me.ids)
        assert (await server._mtls.get(place.tool.url)).text == "ok"
        place.withdraw_authority()
        await until(lambda: not place.tool.open)
        await server.close()


@CAUSES
async def test_the_blocking_client_loses_its_connections_when_the_peer_is_refused(
    cause: Callable[[Place], None],
) -> None:
    async with _place() as place:
        loop = asyncio.get_running_loop()

        def call() -> None:
            with BlockingIdentity(place.seat.address, clock=place.node.clock) as me, me.client() as http:
                # until the node has told of the resources
                asyncio.run_coroutine_threadsafe(knows(me._identity), loop).result(LIMIT)
                assert http.get(place.tool.url).text == "ok"
                with pytest.raises((httpx2.HTTPError, SdkError)):
                    http.get(place.tool.url + "never")

        thread = asyncio.create_task(asyncio.to_thread(call))
        await until(lambda: place.tool.hanging)
        cause(place)
        await until(lambda: not place.tool.open)
        await thread


@LOOPS
def test_an_ended_connection_is_not_used_again(run: Run) -> None:
    async def flow() -> None:
        check = peer_check(lambda: tls.BUNDLES, tls.CLOCK, expected=tls.TOOL)
        agent = tls.Workload(tls.AGENT).identity
        context = RotatingContext.client(agent, (tls.A.root,), check)
        async with (
            asyncio.timeout(LIMIT),
            _tool(tls.Workload(tls.TOOL).identity) as tool,
            httpx2.AsyncClient(transport=EndingTransport(context)) as http,
        ):
            for round_ in (1, 2, 3):
                assert (await http.get(tool.url)).text == "ok"
                assert (await http.get(tool.url)).text == "ok"
                assert tool.opened == round_
                context.review(lambda _: False)
                await until(lambda: not tool.open)
            context.update(agent, (tls.A.root,), peer_check(lambda: tls.BUNDLES, tls.CLOCK, expected=tls.IMPOSTOR))
            with pytest.raises(httpx2.ConnectError):
                await http.get(tool.url)

    run(flow())


def _identity(node: World, who: SpiffeId) -> TlsIdentity:
    workload = Workload(node, who, epoch=1)
    return TlsIdentity(workload.svid.chain, workload.key)


async def _ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except (OSError, ssl.SSLError):
        return True
