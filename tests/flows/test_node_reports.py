"""What a node tells its server of launches that it refused: one by one, and in a flood by number."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.flows.launch_world import Client, Table, start, streams_of

from aims.clock import IdSource, SystemClock
from aims.node.errors import NodeError
from aims.node.launch import Launcher
from aims.node.launch_protocol import Refused
from aims.node.reports import REFUSALS_PER_SECOND, Refusal, Reports
from aims.node.server_client import ServerClient


@pytest.fixture
def streams() -> Iterator[list[int]]:
    with streams_of() as streams:
        yield streams


async def test_a_refused_launch_is_told_under_the_entry_of_its_name_and_a_flood_by_number(clock: SystemClock) -> None:
    told: list[dict[str, Any]] = []

    class Server:
        async def launched(self, **fields: Any) -> None:
            told.append(fields)

    entries: Any = (
        SimpleNamespace(id="e0", agent="alpha", launched=False),
        SimpleNamespace(id="e1", agent="alpha", launched=True),
    )
    reports = Reports(lambda: cast("ServerClient", Server()), lambda: entries, clock)
    sending = asyncio.create_task(reports.send())

    def refuse(name: str) -> None:
        reports.refused(Refusal(name=name, instance="laptop:x", uid=7, error=NodeError("launch_mismatch")))

    clock.offset += 1 - clock.monotonic() % 1
    refuse("stranger")
    refuse("alpha")
    await reports.drain(5)
    detail = {"reason": "node.launch_mismatch", "uid": 7, "more": 0}
    assert told == [{"entry": "e1", "instance": "laptop:x", "event": "refuse", "detail": detail}]
    for _ in range(2 * REFUSALS_PER_SECOND):
        refuse("alpha")
    clock.offset += 1
    refuse("alpha")
    await reports.drain(5)
    assert all(each["event"] == "refuse" for each in told)
    counted = sum(each["detail"]["more"] for each in told)
    assert counted > 0
    assert len(told) + counted == 2 * REFUSALS_PER_SECOND + 2
    sending.cancel()


async def test_the_launcher_says_what_it_refused_to_whom(
    tmp_path: Path, streams: list[int], clock: SystemClock, ids: IdSource
) -> None:
    refused: list[Refusal] = []
    launcher = Launcher(Table(), node="laptop", folder=tmp_path, clock=clock, ids=ids, on_refuse=refused.append)
    await launcher.start()
    with Client(tmp_path) as client:
        client.send(b"nothing that is understood", streams)
        assert isinstance(await client.receive(), Refused)
    assert not refused
    with Client(tmp_path) as client:
        client.send(start("/bin/true", name="nobody"), streams)
        assert isinstance(await client.receive(), Refused)
    await launcher.stop()
    (told,) = refused
    assert (told.name, told.error.code) == ("nobody", "node.not_registered")
    assert told.instance.startswith("laptop:")
