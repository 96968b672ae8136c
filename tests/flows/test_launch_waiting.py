"""Who waits at ``launch.sock``: silence takes no place from others, and the places are bounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.flows.launch_world import PATIENCE, Client, Table, start, streams_of

from aims.clock import IdSource, SystemClock
from aims.node import launch as launch_module
from aims.node import launch_socket
from aims.node.connection_limits import ConnectionLimits
from aims.node.errors import NodeError
from aims.node.launch import Launcher
from aims.node.launch_protocol import Ended, Refused, Started

# twenty processes, because the bound of one process is not to be the one that is shown
_CROWD = """
import os, socket, sys, time
for _ in range(20):
    if os.fork() == 0:
        held = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(8)]
        for each in held:
            each.connect(sys.argv[1])
        os.write(1, b".")
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""


Start = Callable[[ConnectionLimits], Awaitable[Launcher]]


@pytest.fixture
async def launcher_of(tmp_path: Path, clock: SystemClock, ids: IdSource) -> AsyncIterator[Start]:
    """Start a launcher with these limits."""
    table = Table()
    table.approve("alpha")
    started: list[Launcher] = []

    async def make(limits: ConnectionLimits) -> Launcher:
        launcher = Launcher(table, node="laptop", folder=tmp_path, clock=clock, ids=ids, grace=0.5, waiting=limits)
        await launcher.start()
        started.append(launcher)
        return launcher

    yield make
    for launcher in started:
        await launcher.stop()


@pytest.fixture
def streams() -> Iterator[list[int]]:
    with streams_of() as streams:
        yield streams


async def test_who_says_nothing_takes_no_place_from_others(
    launcher_of: Start, tmp_path: Path, streams: list[int]
) -> None:
    launcher = await launcher_of(launch_module.WAITING)
    with contextlib.ExitStack() as crowd:
        # more than there are places, in this process and in others
        silent = [crowd.enter_context(Client(tmp_path)) for _ in range(40)]
        others = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _CROWD, str(tmp_path / "launch.sock")),
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert others.stdout is not None
        async with asyncio.timeout(PATIENCE):
            await others.stdout.readexactly(20)
        began = time.monotonic()
        with Client(tmp_path) as honest:
            honest.send(start("/bin/true"), streams)
            assert isinstance(await honest.receive(), Started)
            assert await honest.receive() == Ended(status=0, signal=0)
        assert time.monotonic() - began < launch_socket.PATIENCE / 2
        answer = await silent[0].receive()
        assert isinstance(answer, Refused)
        assert answer.code == "node.request_slow"
        assert len(launcher._seats) <= launch_module.WAITING.total
        os.killpg(others.pid, signal.SIGKILL)
        await others.wait()


async def test_the_number_of_waiting_clients_is_bounded(
    launcher_of: Start, tmp_path: Path, streams: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = await launcher_of(ConnectionLimits(total=2, per_uid=2, per_process=2))
    look = asyncio.Event()

    async def hold(*_: object) -> None:
        await look.wait()
        raise NodeError("stopping")

    with monkeypatch.context() as patched, Client(tmp_path) as first, Client(tmp_path) as second:
        # whoever has asked keeps the place until the answer
        patched.setattr(launcher, "_execute", hold)
        for client in (first, second):
            client.send(start("/bin/true"), streams)
        with Client(tmp_path) as third:
            answer = await third.receive()
        assert isinstance(answer, Refused)
        assert answer.code == "node.launches_full"
        look.set()
        for client in (first, second):
            answer = await client.receive()
            assert isinstance(answer, Refused)
            assert answer.code == "node.stopping"
    # a launch gives its place back when the program runs
    with contextlib.ExitStack() as running:
        for _ in range(3):
            client = running.enter_context(Client(tmp_path))
            client.send(start("/bin/sleep", "60"), streams)
            assert isinstance(await client.receive(), Started)
    monkeypatch.setattr(launch_module, "MAX_LAUNCHES", 0)
    with Client(tmp_path) as client:
        client.send(start("/bin/true"), streams)
        answer = await client.receive()
    assert isinstance(answer, Refused)
    assert answer.code == "node.launches_full"
