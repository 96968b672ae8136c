"""A server on a bad day: what it says when it cannot start, and what holds when it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.postgres import until

from aims.demo.processes import Process, aims, output_of
from aims.errors import AimsError
from aims.server.admin_client import AdminClient

QUESTION = {
    "principal": {"type": "Operator", "id": "uid:1", "attributes": {"roles": ["operator"]}},
    "action": "administer",
    "resource": {"type": "Resource", "id": "status", "attributes": {"kind": "admin-route", "writes": False}},
    "context": {"launched": False},
}
CALLERS = 20


class Server:
    """An ``aims up`` in a folder of its own; the path is short, because sockets live in it."""

    def __init__(self, folder: Path, database: str = "", workers: int = 1) -> None:
        self.state = folder / "state"
        self.run = folder / "run"
        self.log = folder / "log"
        self.database = database
        self.workers = workers
        self.process: Process | None = None

    def argv(self, **other: str) -> tuple[str, ...]:
        options = {
            "state-dir": str(self.state),
            "run-dir": str(self.run),
            "port": "0",
            "mtls-port": "0",
            "workers": str(self.workers),
        }
        if self.database:
            options["database"] = self.database
        options |= {name.replace("_", "-"): value for name, value in other.items()}
        return aims("up", *(part for name, value in options.items() for part in (f"--{name}", value)))

    async def start(self) -> Process:
        self.process = await Process.start("aims up", self.argv(), log=self.log)
        await self.process.until("ready")
        return self.process

    def admin(self) -> AdminClient:
        return AdminClient(self.run / "admin.sock")

    async def status(self) -> dict[str, Any]:
        """What the administrator sees."""

        def ask() -> dict[str, Any]:
            with self.admin() as client:
                answer: dict[str, Any] = client.call("GET", "/admin/v1/status")
                return answer

        return await asyncio.to_thread(ask)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="aims-t-") as name:
        yield Path(name)


@pytest_asyncio.fixture
async def server(folder: Path) -> AsyncIterator[Server]:
    server = Server(folder)
    yield server
    if server.process is not None:
        await server.process.end()
        await server.process.kill()


async def test_a_second_supervisor_is_refused_with_the_fix(server: Server) -> None:
    process = await server.start()
    status, text = await output_of(server.argv())
    assert status == 1
    assert "storage.locked" in text
    assert f"is held by process {process.pid}" in text
    assert "fix: Stop the process that holds it (its number is in the detail)" in text
    answer = await server.status()
    assert answer["writable"]


@pytest.mark.parametrize("option", ["port", "mtls_port"])
async def test_a_port_in_use_is_named(server: Server, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, text = await output_of(server.argv(**{option: port}))
    assert status == 1
    assert "server.port_in_use" in text
    assert port in text


async def test_a_folder_that_others_may_read_is_refused_with_the_fix(server: Server) -> None:
    server.state.mkdir(mode=0o755)
    status, text = await output_of(server.argv())
    assert status == 1
    assert "server.folder" in text
    assert f"chmod 0700 {server.state}" in text


async def test_a_socket_path_that_is_too_long_is_refused(server: Server, folder: Path) -> None:
    status, text = await output_of(server.argv(run_dir=str(folder / ("x" * 100))))
    assert status == 1
    assert "server.socket_path_too_long" in text


@pytest.mark.parametrize(
    ("option", "value"), [("workers", "0"), ("workers", "65"), ("port", "70000"), ("database", "mysql://x/y")]
)
async def test_settings_that_cannot_be_are_refused(server: Server, option: str, value: str) -> None:
    status, text = await output_of(server.argv(**{option: value}))
    assert status == 1
    assert "server.bad_setting" in text


async def test_an_unreachable_postgresql_is_named(server: Server) -> None:
    server.database = "postgresql://nobody@127.0.0.1:9/none"
    status, text = await output_of(server.argv())
    assert status == 1
    assert "storage.unreachable" in text


async def test_a_postgresql_without_tables_names_the_command(server: Server, cluster: object) -> None:
    name = cluster.fresh()  # type: ignore[attr-defined]  # the fixture's own type is private to the tests' root
    url = cluster.url(name)  # type: ignore[attr-defined]  # as above
    server.database = url
    status, text = await output_of(server.argv())
    assert status == 1
    assert "storage.not_migrated" in text
    assert "aims server migrate" in text
    status, text = await output_of(aims("server", "migrate", "--database", url))
    assert status == 0, text
    await server.start()
    answer = await server.status()
    assert answer["database"] == "postgresql"


async def test_workers_end_with_their_supervisor_and_the_next_one_starts_over_the_stale_socket(server: Server) -> None:
    process = await server.start()
    children = _children(process.pid)
    assert children
    os.kill(process.pid, signal.SIGKILL)
    await asyncio.to_thread(until, lambda: not any(_lives(child) for child in children))
    assert (server.run / "admin.sock").exists()
    await process.kill()
    await server.start()
    answer = await server.status()
    assert answer["writable"]


async def test_a_restart_keeps_what_was_said_of_this_hosts_node(server: Server) -> None:
    await server.start()
    with server.admin() as client:
        client.call("POST", "/admin/v1/nodes/token", {"node": "local", "selectors": ["node:rack-7"]})
    assert server.process is not None
    await server.process.end()
    await server.start()
    with server.admin() as client:
        (node,) = client.call("GET", "/admin/v1/nodes")
    assert (node["id"], node["state"], node["selectors"]) == ("local", "active", ["node:rack-7"])


async def test_a_worker_that_dies_is_started_again(server: Server) -> None:
    process = await server.start()
    (worker,) = _children(process.pid)
    os.kill(worker, signal.SIGKILL)

    def another() -> bool:
        return _children(process.pid) not in ([], [worker])

    await asyncio.to_thread(until, another)
    assert (await server.status())["writable"]


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_every_answer_has_its_record_after_kill_minus_nine_under_load(
    server: Server, backend: str, request: pytest.FixtureRequest
) -> None:
    if backend == "postgresql":
        server.database = request.getfixturevalue("postgresql_url")
    server.workers = 2
    answered: list[str] = []
    for _ in range(3):
        process = await server.start()
        unanswered = [0]
        callers = [
            asyncio.create_task(asyncio.to_thread(_ask_until_killed, server, answered, unanswered))
            for _ in range(CALLERS)
        ]
        seen = len(answered)
        await asyncio.to_thread(until, lambda: len(answered) >= seen + 200, 30.0)  # noqa: B023  # this round's
        await process.kill()
        await asyncio.gather(*callers)
        assert unanswered[0] >= CALLERS // 2, "the kill did not hit requests in flight"
    await server.start()
    assert server.process is not None
    await server.process.end()
    status, text = await output_of(aims("audit", "verify", "--state-dir", str(server.state)))
    assert (status, text.splitlines()[0]) == (0, "consistent, tail unwitnessed")
    status, text = await output_of(
        aims("audit", "tail", "--count", "1000000", "--state-dir", str(server.state), "--output", "json")
    )
    recorded = [msgspec.json.decode(line)["id"] for line in text.splitlines()]
    assert len(recorded) == len(set(recorded)), "a record stands twice"
    assert set(answered) <= set(recorded), "an answer without its record"


def _ask_until_killed(server: Server, answered: list[str], unanswered: list[int]) -> None:
    with server.admin() as client, contextlib.suppress(AimsError):
        while True:
            unanswered[0] += 1
            answered.append(client.call("POST", "/admin/v1/policy/check", QUESTION)["record"])
            unanswered[0] -= 1


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    return [int(child) for child in found if b"aims.server.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]
