"""Measuring at ``launch.sock``: nothing is read for a launch that is refused anyway or that nobody waits for."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.flows.launch_world import PATIENCE, Client, Table, start, streams_of
from tests.flows.workload_api_fake import until

from aims.attestation import LaunchProfile
from aims.clock import IdSource, SystemClock
from aims.node import launch as launch_module
from aims.node.errors import NodeError
from aims.node.launch import Launcher
from aims.node.launch_protocol import Refused, Started
from aims.node.measure import Measurer
from aims.node.program import resolve
from aims.node.reports import Refusal

SHELL = "/bin/sh"


class Place:
    """A launcher with one approved program, of whose code there are three files."""

    def __init__(self, launcher: Launcher, sockets: Path, code: Path, refused: list[Refusal]) -> None:
        self.launcher, self.sockets, self.code, self.refused = launcher, sockets, code, refused
        self.script = str(code / "run")

    def client(self, *argv: str) -> Client:
        client = Client(self.sockets)
        with streams_of() as streams:
            client.send(start(*argv), streams)
        return client


@pytest.fixture
async def place(tmp_path: Path, clock: SystemClock, ids: IdSource) -> AsyncIterator[Place]:
    sockets, code = tmp_path / "sockets", tmp_path / "code"
    sockets.mkdir()
    code.mkdir()
    (code / "run").write_text("while :; do sleep 60; done\n")
    for name in ("a", "b"):
        (code / name).write_text(name)
    with resolve([SHELL, str(code / "run")], cwd="/") as program:
        profile = LaunchProfile.of(Measurer(clock).measure(program, roots=[str(code)]).measurement)
    table = Table()
    table.approve("alpha", profile)
    refused: list[Refusal] = []
    launcher = Launcher(table, node="laptop", folder=sockets, clock=clock, ids=ids, on_refuse=refused.append, grace=0.5)
    await launcher.start()
    yield Place(launcher, sockets, code, refused)
    await launcher.stop()


async def test_nothing_is_read_for_a_launch_that_its_words_refuse(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = tmp_path / "big"
    big.mkdir()
    with (big / "sparse").open("wb") as sparse:
        sparse.truncate(2 * 1024**3)
    read: list[str] = []
    measured = Measurer._file

    def file(self: Measurer, descriptor: int, name: str) -> Any:
        read.append(name)
        return measured(self, descriptor, name)

    monkeypatch.setattr(Measurer, "_file", file)

    async def differs(*argv: str) -> tuple[str, ...]:
        with place.client(*argv) as client:
            answer = await client.receive()
        assert isinstance(answer, Refused)
        assert answer.code == "node.launch_mismatch"
        return answer.differs

    assert await differs(SHELL, str(big / "sparse")) == ("arguments", "roots")
    assert await differs(SHELL, place.script, "more") == ("arguments",)
    assert await differs("/bin/true") == ("executable", "arguments")
    assert {os.path.basename(name) for name in read} <= {"sh", "true"}  # noqa: PTH119
    # nobody reads a large executable to name it
    read.clear()
    monkeypatch.setattr(launch_module, "NAMED_OCTETS", 0)
    assert await differs("/bin/true") == ("arguments",)
    assert read == []


async def test_code_is_read_only_behind_the_approved_executable(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    row = place.launcher._approvals.approved("alpha")
    assert row is not None
    assert isinstance(row.profile, LaunchProfile)
    other = LaunchProfile(executable="0" * 64, head=row.profile.head, roots=row.profile.roots)
    place.launcher._approvals.approve("alpha", other)  # type: ignore[attr-defined]  # the table of this test
    monkeypatch.setattr(Measurer, "_roots", lambda *_: pytest.fail("code was read"))
    with place.client(SHELL, place.script) as client:
        answer = await client.receive()
    assert isinstance(answer, Refused)
    assert (answer.code, answer.differs) == ("node.launch_mismatch", ("executable",))


async def test_launches_do_not_delay_the_look_before_a_renewal(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    executed = asyncio.Event()
    place.launcher._on_start = lambda _: executed.set()
    with place.client(SHELL, place.script) as client:
        assert isinstance(await client.receive(), Started)
        await until(executed.is_set)
        (launch,) = place.launcher.running()
        held = threading.Event()
        busy = threading.Semaphore(0)

        def hold(*_: object, **__: object) -> object:
            busy.release()
            held.wait(PATIENCE)
            raise NodeError("stopping")

        look = Launcher._look
        monkeypatch.setattr(Launcher, "_look", hold)
        crowd = [place.client(SHELL, place.script) for _ in range(5)]
        try:
            for _ in range(launch_module.MEASURING):
                assert await asyncio.to_thread(busy.acquire, timeout=PATIENCE)
            async with asyncio.timeout(PATIENCE / 2):
                await place.launcher.recheck(launch)
        finally:
            monkeypatch.setattr(Launcher, "_look", look)
            for each in crowd:
                each.socket.close()
            held.set()


async def test_measuring_ends_when_nobody_waits_for_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    reached, go_on = threading.Event(), threading.Event()
    path_of = Measurer._path

    def path(self: Measurer, name: bytes) -> Any:
        read.append(name)
        reached.set()
        go_on.wait(PATIENCE)
        return path_of(self, name)

    monkeypatch.setattr(Measurer, "_path", path)
    monkeypatch.setattr(place.launcher, "_measuring", asyncio.Semaphore(1))
    first = place.client(SHELL, place.script)
    assert await asyncio.to_thread(reached.wait, PATIENCE)
    second = place.client(SHELL, place.script)  # waits for its turn
    await until(lambda: len(place.launcher._launching) == 2)
    await asyncio.sleep(0.1)
    for client in (first, second):
        client.socket.close()
    go_on.set()
    await until(lambda: len(place.refused) == 2)
    assert [refusal.error.code for refusal in place.refused] == ["node.peer_gone"] * 2
    assert len(read) == 1
    assert place.launcher.running() == ()
