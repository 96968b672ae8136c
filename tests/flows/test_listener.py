"""Every listener's connection: bounds on line, headers, body and time, the Host check, and the peer in the scope."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.properties.tls_material import AGENT, BUNDLES, CLOCK, FENCE, TOOL, A, Workload
from tests.properties.x509_material import serial

from aims.credentials.mtls import spiffe_client_context, spiffe_server_context
from aims.credentials.x509_svid import issue
from aims.server import protocol, worker
from aims.server.errors import ServerError
from aims.server.http import Answer, Listener, Scope, answering, json_answer
from aims.server.protocol import UnixPeer, peer_of
from aims.server.sockets import listen_tcp, listen_unix
from aims.server.worker import _server
from aims.tls import TlsIdentity

HOST = "localhost:8440"


async def _echo(_: Scope, body: bytes) -> Answer:
    return json_answer({"octets": len(body)})


async def _who(scope: Scope, _: bytes) -> Answer:
    peer = peer_of(scope)
    return json_answer({"uid": peer.uid, "pid": peer.pid} if isinstance(peer, UnixPeer) else {"peer": str(peer)})


async def _broken(_: Scope, __: bytes) -> Answer:
    raise RuntimeError("a defect that holds a secret")


async def _busy(_: Scope, __: bytes) -> Answer:
    raise ServerError("busy")


@pytest_asyncio.fixture
async def listening() -> AsyncIterator[tuple[int, Path]]:
    """A listener on a TCP port and on a unix socket."""
    app = Listener(
        frozenset({HOST}),
        {
            ("POST", "/echo"): answering(_echo, 1024),
            ("GET", "/who"): answering(_who),
            ("GET", "/broken"): answering(_broken),
            ("GET", "/busy"): answering(_busy),
        },
    )
    with tempfile.TemporaryDirectory(prefix="aims-t-") as folder:
        tcp = listen_tcp(0)
        unix = listen_unix(Path(folder) / "s", 0o600)
        server = _server(app)
        serving = asyncio.create_task(server.serve(sockets=[*tcp, unix]))
        async with asyncio.timeout(10):
            await server.listening.wait()
        yield tcp[0].getsockname()[1], Path(folder) / "s"
        server.should_exit = True
        server.force_exit = True
        await serving


async def exchange(port: int, octets: bytes, *, seconds: float = 10.0) -> bytes:
    """Send octets and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(octets)
        return await asyncio.wait_for(reader.read(-1), seconds)
    finally:
        writer.close()


def request(line: str, *headers: str, host: str = HOST, body: bytes = b"") -> bytes:
    lines = [line, f"host: {host}", "connection: close", *headers]
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def test_a_small_request_is_answered_and_nothing_may_be_cached(listening: tuple[int, Path]) -> None:
    answer = await exchange(listening[0], request("POST /echo HTTP/1.1", body=b"12345"))
    assert status(answer) == 200
    assert answer.endswith(b'{"octets":5}')
    assert b"cache-control: no-store" in answer
    assert b"server:" not in answer.lower()


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (request("GET /who HTTP/1.1", host="attacker.example"), 421),
        (request("GET /who HTTP/1.1", host="127.0.0.1:8440"), 421),
        (request("GET /who HTTP/1.1", f"host: {HOST}"), 421),
        (request("GET /nowhere HTTP/1.1"), 404),
        (request("DELETE /who HTTP/1.1"), 405),
        (request("GET /who/../who HTTP/1.1"), 404),
        (request("POST /echo HTTP/1.1", body=b"x" * 1025), 413),
        (request("GET /" + "x" * 9000 + " HTTP/1.1"), 414),
        (request("GET /who HTTP/1.1", "a: " + "x" * 40_000), 431),
        (request("GET /who HTTP/1.1", *(f"h{n}: v" for n in range(80))), 431),
        (b"NONSENSE\r\n\r\n", 400),
        (request("GET /broken HTTP/1.1"), 500),
        (request("GET /busy HTTP/1.1"), 503),
    ],
)
async def test_what_is_out_of_bounds_is_refused(listening: tuple[int, Path], octets: bytes, expected: int) -> None:
    answer = await exchange(listening[0], octets)
    assert status(answer) == expected
    assert answer.count(b"HTTP/1.1") == 1, "one refusal, one answer"
    assert b"secret" not in answer
    assert (b"retry-after: 1" in answer) == (expected == 503)
    assert (b"allow: GET\r\n" in answer) == (expected == 405), "RFC 9110 15.5.6"


async def test_a_request_that_never_ends_loses_its_connection(
    listening: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "REQUEST_SECONDS", 0.2)
    slow = await asyncio.gather(
        exchange(listening[0], b"POST /echo HTTP/1.1\r\nhost:"),
        exchange(listening[0], b""),
        exchange(listening[0], request("POST /echo HTTP/1.1", "content-length: 10") + b"x"),
        return_exceptions=True,
    )
    # An aborted connection is an end of stream or a reset, never an answer.
    assert all(answer == b"" or isinstance(answer, ConnectionError) for answer in slow), slow
    assert status(await exchange(listening[0], request("POST /echo HTTP/1.1", body=b"1"))) == 200


async def test_a_header_is_refused_before_it_ends(listening: tuple[int, Path]) -> None:
    for unfinished in (b"a: ", b"a"):  # a value, and a name
        reader, writer = await asyncio.open_connection("127.0.0.1", listening[0])
        writer.write(b"GET /who HTTP/1.1\r\nhost: " + HOST.encode() + b"\r\n" + unfinished)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof() and sent < 64 << 20:
                writer.write(b"x" * 16_384)
                await writer.drain()
                sent += 16_384
                await asyncio.sleep(0)
        assert sent < 8 << 20, "somebody keeps what never ends"
        writer.close()
    assert status(await exchange(listening[0], request("POST /echo HTTP/1.1", body=b"1"))) == 200


async def test_large_requests_in_one_piece_are_not_taken_for_unfinished_ones(listening: tuple[int, Path]) -> None:
    big = request("GET /who HTTP/1.1", "a: " + "x" * 30_000).replace(b"connection: close\r\n", b"")
    answer = await exchange(listening[0], big * 3 + request("POST /echo HTTP/1.1", body=b"x" * 1000))
    assert answer.count(b"HTTP/1.1 200") == 4


async def test_empty_lines_after_an_answer_hold_no_connection(
    listening: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "REQUEST_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", listening[0])
    writer.write(request("GET /who HTTP/1.1").replace(b"connection: close\r\n", b""))
    async with asyncio.timeout(10):
        await reader.readuntil(b'"}')
        writer.write(b"\r\n")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()


async def test_a_connection_ends_with_the_certificate_that_opened_it() -> None:
    tool, agent = Workload(TOOL), Workload(AGENT)
    short = TlsIdentity(
        issue(
            A.issuer,
            AGENT,
            public_key=agent.key.public_key(),
            serial=serial(),
            now=CLOCK.now(),
            lifetime=2,
            fence=FENCE,
        ).chain,
        agent.key,
    )
    app = Listener(frozenset({HOST}), {("GET", "/who"): answering(_who)})
    sockets = listen_tcp(0)
    server = _server(app, spiffe_server_context(tool.identity, BUNDLES, CLOCK))
    serving = asyncio.create_task(server.serve(sockets=sockets))
    async with asyncio.timeout(20):
        await server.listening.wait()
        ends = []
        for identity in (short, agent.identity):
            context = spiffe_client_context(identity, BUNDLES, CLOCK, expected=TOOL)
            ends.append(await asyncio.open_connection("127.0.0.1", sockets[0].getsockname()[1], ssl=context))
        asking = request("GET /who HTTP/1.1").replace(b"connection: close\r\n", b"")
        for reader, writer in ends:
            writer.write(asking)
            await reader.readuntil(b'"}')
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert await ends[0][0].read() == b"", "ended by the server, without a request"
        ends[1][1].write(asking)
        assert await ends[1][0].readuntil(b'"}'), "the other one lives on"
    for _, writer in ends:
        writer.transport.abort()
    server.should_exit = server.force_exit = True
    await serving


async def test_the_kernel_says_who_is_at_a_unix_socket(listening: tuple[int, Path]) -> None:
    reader, writer = await asyncio.open_unix_connection(str(listening[1]))
    writer.write(request("GET /who HTTP/1.1", "aims.peer: 0"))
    answer = await asyncio.wait_for(reader.read(-1), 10)
    writer.close()
    assert msgspec.json.decode(answer.rpartition(b"\r\n\r\n")[2]) == {"uid": os.geteuid(), "pid": os.getpid()}
    over_tcp = await exchange(listening[0], request("GET /who HTTP/1.1"))
    assert msgspec.json.decode(over_tcp.rpartition(b"\r\n\r\n")[2]) == {"peer": "None"}


async def test_a_socket_has_its_mode_from_the_start_and_only_a_dead_one_is_replaced(tmp_path: Path) -> None:
    folder = tempfile.mkdtemp(prefix="aims-t-")
    path = Path(folder) / "s"
    first = listen_unix(path, 0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ServerError) as live:
        listen_unix(path, 0o600)
    assert live.value.reason == "already_running"
    first.close()
    listen_unix(path, 0o600).close()
    path.unlink()
    path.write_text("not a socket")
    with pytest.raises(ServerError) as other:
        listen_unix(path, 0o600)
    assert other.value.reason == "folder"
    assert path.read_text() == "not a socket"


def test_a_busy_server_keeps_its_socket() -> None:
    path = Path(tempfile.mkdtemp(prefix="aims-t-")) / "s"
    with socket.socket(socket.AF_UNIX) as living, socket.socket(socket.AF_UNIX) as waiting:
        living.bind(str(path))
        living.listen(0)
        waiting.connect(str(path))
        with pytest.raises(ServerError) as busy:
            listen_unix(path, 0o600)
        assert busy.value.reason == "already_running"
        assert path.is_socket()


async def test_both_loopback_addresses_have_the_same_port() -> None:
    sockets = listen_tcp(0)
    ports = {listener.getsockname()[1] for listener in sockets}
    assert len(ports) == 1
    assert {listener.family for listener in sockets} <= {socket.AF_INET, socket.AF_INET6}
    with pytest.raises(ServerError) as taken:
        listen_tcp(ports.pop())
    assert taken.value.reason == "port_in_use"
    for listener in sockets:
        listener.close()


async def test_a_worker_that_does_not_load_in_time_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        loaded = asyncio.Event()
        keeper: Any

        async def open(self) -> None:
            await asyncio.Event().wait()

    core = Core()
    core.keeper = core
    monkeypatch.setattr(worker, "LOAD_SECONDS", 0.01)
    for missing in ("the state", "the keys"):
        with pytest.raises(ServerError, match=missing) as late:
            await worker.loaded(core)  # type: ignore[arg-type]
        assert late.value.reason == "loading"
        core.loaded.set()


def test_a_worker_takes_all_the_descriptors_that_it_may_have() -> None:
    program = (
        "import resource as r\n"
        "from aims.server.worker import raise_descriptor_limit\n"
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]\n"
        "r.setrlimit(r.RLIMIT_NOFILE, (64, hard))\n"
        "raise_descriptor_limit()\n"
        "assert r.getrlimit(r.RLIMIT_NOFILE) == (hard, hard)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
