"""The launcher in this process: what reaches its socket and is refused, and whom it recognises."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.flows.launch_world import PATIENCE, Client, Table, start, streams_of

from aims.cli.run_client import measure_for_registration
from aims.clock import IdSource, SystemClock
from aims.node import grpc_guard, launch_socket, peer
from aims.node import launch as launch_module
from aims.node.errors import NodeError
from aims.node.launch import Launcher
from aims.node.launch_protocol import MAX_PACKET, Ended, Refused, Signal, Started, encode
from aims.node.launches import Launches
from aims.node.peer import Peer, peer_of

PYTHON = os.path.realpath(sys.executable)


@pytest.fixture
def table() -> Table:
    table = Table()
    table.approve("alpha")
    return table


@pytest.fixture
async def launcher(table: Table, tmp_path: Path, clock: SystemClock, ids: IdSource) -> AsyncIterator[Launcher]:
    launcher = Launcher(table, node="laptop", folder=tmp_path, clock=clock, ids=ids, grace=0.5)
    await launcher.start()
    yield launcher
    await launcher.stop()
    assert not launcher.running()


@pytest.fixture
def streams() -> Iterator[list[int]]:
    with streams_of() as streams:
        yield streams


GOOD = msgspec.msgpack.decode(start("/bin/true"))
HOSTILE = {
    "nothing that is a message": b"\xff\xff",
    "text": b'{"argv": []}',
    "empty array": msgspec.msgpack.encode([]),
    "unknown kind": msgspec.msgpack.encode(["stop", 1]),
    "a signal first": encode(Signal(number=15)),
    "one member too few": msgspec.msgpack.encode(GOOD[:-1]),
    "one member too many": msgspec.msgpack.encode([*GOOD, 0]),
    "trailing octets": msgspec.msgpack.encode(GOOD) + b"\0",
    "other version": msgspec.msgpack.encode([*GOOD[:1], 2, *GOOD[2:]]),
    "empty name": msgspec.msgpack.encode([*GOOD[:2], "", *GOOD[3:]]),
    "no arguments": msgspec.msgpack.encode([*GOOD[:3], [], *GOOD[4:]]),
    "zero octet in an argument": msgspec.msgpack.encode([*GOOD[:3], [b"/bin/true", b"a\0b"], *GOOD[4:]]),
    "variable twice": msgspec.msgpack.encode([*GOOD[:4], [[b"A", b"1"], [b"A", b"2"]], *GOOD[5:]]),
    "variable without a name": msgspec.msgpack.encode([*GOOD[:4], [[b"", b"1"]], *GOOD[5:]]),
    "variable with =": msgspec.msgpack.encode([*GOOD[:4], [[b"A=B", b"1"]], *GOOD[5:]]),
    "too many items": msgspec.msgpack.encode([*GOOD[:3], [b""] * 40_000, *GOOD[4:]]),
    "umask": msgspec.msgpack.encode([*GOOD[:5], 0o1777, GOOD[6]]),
    "terminal": msgspec.msgpack.encode([*GOOD[:6], 3]),
    "deep": b"\x91" * 5000,
}


@pytest.mark.parametrize("packet", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_packet_that_is_no_request_is_refused(
    launcher: Launcher, tmp_path: Path, streams: list[int], packet: bytes
) -> None:
    with Client(tmp_path) as client:
        client.send(packet, streams)
        answer = await client.receive()
    assert isinstance(answer, Refused)
    assert (answer.code, answer.exit_code) == ("node.request_malformed", 125)
    assert not launcher.running()


async def test_an_oversize_packet_is_refused(launcher: Launcher, tmp_path: Path, streams: list[int]) -> None:
    with Client(tmp_path) as client:
        client.send(b"\x93" + b"x" * MAX_PACKET, streams)
        answer = await client.receive()
    assert isinstance(answer, Refused)
    assert answer.code == "node.request_too_large"
    with pytest.raises(NodeError, match="request_too_large"):
        start("/bin/true", "x" * MAX_PACKET)


def _open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_wrong_descriptors_are_refused_and_closed(launcher: Launcher, tmp_path: Path, streams: list[int]) -> None:
    null, folder = streams[0], streams[3]
    block = os.open("/", os.O_RDONLY)
    only_path = os.open("/dev/null", os.O_PATH)
    pidfd = os.pidfd_open(os.getpid())
    before = _open_descriptors()
    cases = [
        [],
        [null, null, null],
        [null] * 4,
        [null, null, null, folder, folder],
        [null] * 40,
        [folder, null, null, folder],
        [null, block, null, folder],
        [null, null, only_path, folder],
        [pidfd, null, null, folder],
    ]
    for descriptors in cases:
        with Client(tmp_path) as client:
            client.send(start("/bin/true"), descriptors)
            answer = await client.receive()
        assert isinstance(answer, Refused), descriptors
        assert answer.code == "node.descriptors", descriptors
    # a terminal that is none
    with Client(tmp_path) as client:
        client.send(start("/bin/true", terminal=0), streams)
        answer = await client.receive()
    assert isinstance(answer, Refused)
    assert answer.code == "node.descriptors"
    assert _open_descriptors() == before
    for descriptor in (block, only_path, pidfd):
        os.close(descriptor)


async def test_a_client_that_says_nothing_is_sent_away(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_socket, "PATIENCE", 0.1)
    with Client(tmp_path) as silent, Client(tmp_path) as gone:
        gone.socket.close()
        answer = await silent.receive()
    assert isinstance(answer, Refused)
    assert answer.code == "node.request_slow"


async def test_the_socket_is_private_and_its_path_is_bounded(
    launcher: Launcher, tmp_path: Path, table: Table, clock: SystemClock, ids: IdSource
) -> None:
    assert (tmp_path / "launch.sock").stat().st_mode & 0o777 == 0o600
    long = Launcher(table, node="laptop", folder=tmp_path / ("x" * 100), clock=clock, ids=ids)
    with pytest.raises(NodeError, match="socket_path"):
        await long.start()


async def test_what_a_client_says_after_its_start_is_a_signal_or_the_end(
    launcher: Launcher, tmp_path: Path, streams: list[int]
) -> None:
    for packet in (b"garbage", msgspec.msgpack.encode(["signal", 9]), start("/bin/true")):
        with Client(tmp_path) as client:
            client.send(start("/bin/sleep", "60"), streams)
            assert isinstance(await client.receive(), Started)
            client.send(packet, [streams[0]] * 20)
            assert await client.receive() == Ended(status=0, signal=signal.SIGHUP)


async def _connected(folder: Path) -> tuple[socket.socket, asyncio.Future[socket.socket]]:
    """Listen where a launched program connects to; return the listener and its first connection to come."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(folder / "workload.sock"))
    listener.listen()
    listener.setblocking(False)

    async def accept() -> socket.socket:
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        return connection

    return listener, asyncio.ensure_future(accept())


CONNECT = (
    "import os, socket, select\n"
    "peer = socket.socket(socket.AF_UNIX)\n"
    "peer.connect(os.environ['SPIFFE_ENDPOINT_SOCKET'].removeprefix('unix://'))\n"
    "peer.recv(1)\n"
)


@pytest.mark.parametrize("pidfs", [True, False], ids=["pidfs-inode", "pid-in-fdinfo"])
async def test_a_launch_is_known_by_its_pidfd_until_it_ends(
    launcher: Launcher, tmp_path: Path, streams: list[int], pidfs: bool
) -> None:
    launcher._launches = Launches(pidfs=pidfs)
    listener, connection = await _connected(tmp_path)
    with listener, Client(tmp_path) as client:
        client.send(start(PYTHON, "-I", "-c", CONNECT), streams)
        started = await client.receive()
        assert isinstance(started, Started)
        async with asyncio.timeout(PATIENCE):
            accepted = await connection
        with accepted, peer_of(accepted) as found:
            launch = launcher.launched(found)
            assert launch is not None
            assert (launch.pid, launch.instance) == (started.pid, started.instance)
            assert launcher.nested(found)
            await launcher.recheck(launch)
            # this very process is nobody
            mine = Peer(pid=os.getpid(), uid=0, gid=0, pidfd=os.pidfd_open(os.getpid()))
            with mine:
                assert launcher.launched(mine) is None
                assert not launcher.nested(mine)
            client.send(encode(Signal(number=signal.SIGTERM)))
            assert await client.receive() == Ended(status=0, signal=signal.SIGTERM)
            assert launcher.launched(found) is None
            with pytest.raises(NodeError, match="launch_ended"):
                await launcher.recheck(launch)
            with pytest.raises(NodeError, match="peer_gone"):
                peer_of(accepted)
            with pytest.raises(NodeError, match="peer_gone"):
                launcher.nested(found)


async def test_each_launch_is_an_instance_of_its_own(launcher: Launcher, tmp_path: Path, streams: list[int]) -> None:
    with Client(tmp_path) as first, Client(tmp_path) as second:
        for client in (first, second):
            client.send(start("/bin/sleep", "60"), streams)
        answers = [await first.receive(), await second.receive()]
        instances = {answer.instance for answer in answers if isinstance(answer, Started)}
        assert len(instances) == 2
        assert {launch.instance for launch in launcher.running()} == instances


async def test_an_executable_written_between_measuring_and_running_gets_no_credential(
    launcher: Launcher, table: Table, tmp_path: Path, streams: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "tool"
    shutil.copy("/bin/sleep", tool)
    table.approve("alpha", measure_for_registration([str(tool), "60"], tmp_path))
    look = Launcher._look

    def swap(*arguments: object, **options: object) -> object:
        found = look(*arguments, **options)  # type: ignore[arg-type]
        # in place: the inode and so the descriptor stay
        with tool.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
        return found

    monkeypatch.setattr(Launcher, "_look", swap)
    executed = asyncio.Event()
    launcher._on_start = lambda _: executed.set()
    with Client(tmp_path) as client:
        client.send(start(str(tool), "60"), streams)
        assert isinstance(await client.receive(), Started)
        (launch,) = launcher.running()
        async with asyncio.timeout(PATIENCE):
            await executed.wait()
        assert peer.executable(launch.pid).st_ino == tool.stat().st_ino
        with pytest.raises(NodeError, match="exe_changed"):
            await launcher.recheck(launch)


async def test_an_executable_replaced_between_measuring_and_running_does_not_run(
    launcher: Launcher, table: Table, tmp_path: Path, streams: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "tool"
    shutil.copy("/bin/true", tool)
    shutil.copy("/bin/false", tmp_path / "other")
    table.approve("alpha", measure_for_registration([str(tool)], tmp_path))
    look = Launcher._look

    def swap(*arguments: object, **options: object) -> object:
        found = look(*arguments, **options)  # type: ignore[arg-type]
        (tmp_path / "other").replace(tool)
        return found

    monkeypatch.setattr(Launcher, "_look", swap)
    with Client(tmp_path) as client:
        client.send(start(str(tool)), streams)
        assert isinstance(await client.receive(), Started)
        # the measured file ran: /bin/false would end with 1
        assert await client.receive() == Ended(status=0, signal=0)


async def test_a_node_without_descriptors_rests_and_serves_again(
    launcher: Launcher, tmp_path: Path, streams: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_module, "BREATH", 0.05)
    assert launcher._listener is not None
    listener: socket.socket = launcher._listener
    calls = []

    class Empty:
        def fileno(self) -> int:
            return listener.fileno()

        def accept(self) -> tuple[socket.socket, object]:
            calls.append(1)
            if len(calls) < 3:
                raise OSError(errno.EMFILE, "")
            return listener.accept()

        def close(self) -> None:
            listener.close()

    asyncio.get_running_loop().remove_reader(listener)
    launcher._listener = Empty()  # type: ignore[assignment]  # stands in for a full table of descriptors
    launcher._listen()
    with Client(tmp_path) as client:
        client.send(start("/bin/true"), streams)
        assert isinstance(await client.receive(), Started)
    assert len(calls) == 3


async def test_an_upgrade_under_a_running_program_is_no_change_of_it_but_a_written_file_is(
    launcher: Launcher, table: Table, tmp_path: Path, streams: list[int]
) -> None:
    tool = tmp_path / "tool"
    shutil.copy("/bin/sleep", tool)
    shutil.copy("/bin/false", tmp_path / "other")
    table.approve("alpha", measure_for_registration([str(tool), "60"], tmp_path))
    executed = asyncio.Event()
    launcher._on_start = lambda _: executed.set()
    with Client(tmp_path) as client:
        client.send(start(str(tool), "60"), streams)
        assert isinstance(await client.receive(), Started)
        async with asyncio.timeout(PATIENCE):
            await executed.wait()
        (launch,) = launcher.running()
        await launcher.recheck(launch)
        os.link(tool, tmp_path / "kept")
        (tmp_path / "other").replace(tool)
        await launcher.recheck(launch)
        os.utime(tmp_path / "kept")
        with pytest.raises(NodeError, match="exe_changed"):
            await launcher.recheck(launch)


async def test_a_peer_outside_of_the_pid_namespace_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = socket.socketpair()
    with here, there:
        with peer_of(here) as found:
            assert (found.pid, found.uid) == (os.getpid(), os.getuid())
            assert found.evidence().path == PYTHON
        monkeypatch.setattr(peer, "_CREDENTIALS", _Zero())
        with pytest.raises(NodeError, match="peer_unknown"):
            peer_of(here)


class _Zero:
    size = 12

    def unpack(self, _: bytes) -> tuple[int, int, int]:
        return 0, 65534, 65534


def test_a_peer_may_have_any_uid() -> None:
    largest = 4_294_967_294  # user ids are unsigned
    raw = struct.pack("iII", os.getpid(), largest, largest)

    class Connection(socket.socket):
        def getsockopt(self, _: int, option: int, *__: object) -> bytes:  # type: ignore[override]
            return struct.pack("i", os.pidfd_open(os.getpid())) if option == peer.SO_PEERPIDFD else raw

    with Connection(socket.AF_UNIX) as connection, peer_of(connection) as found:
        assert (found.pid, found.uid, found.gid) == (os.getpid(), largest, largest)
        assert found.evidence().uid == largest
    assert grpc_guard._CREDENTIALS.unpack(raw) == (os.getpid(), largest, largest)


async def test_an_old_kernel_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = socket.socketpair()
    monkeypatch.setattr(peer, "SO_PEERPIDFD", 250)
    with here, there, pytest.raises(NodeError, match="kernel_too_old"):
        peer_of(here)


async def test_a_refusal_names_what_differs_and_keeps_its_detail(
    launcher: Launcher, table: Table, tmp_path: Path, streams: list[int]
) -> None:
    table.approve("alpha", measure_for_registration(["/bin/true"], tmp_path))
    with Client(tmp_path) as client:
        client.send(start("/bin/echo", "x"), streams)
        answer = await client.receive()
    assert isinstance(answer, Refused)
    assert answer.code == "node.launch_mismatch"
    assert answer.differs == ("executable", "arguments")
    with Client(tmp_path) as client:
        client.send(start("/bin/true", name="beta"), streams)
        answer = await client.receive()
    assert isinstance(answer, Refused)
    assert (answer.code, answer.differs) == ("node.not_registered", ())
