"""``aims doctor`` on set-ups that are broken in different ways: each is named, with its fix."""

from __future__ import annotations

import asyncio
import os
import platform
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from tests.postgres import until

from aims.cli import doctor as room
from aims.cli.doctor import Place, examine
from aims.demo.processes import Process, aims, output_of


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="aims-t-") as name:
        yield Path(name)


@pytest_asyncio.fixture
async def running(folder: Path) -> AsyncIterator[Process]:
    process = await Process.start(
        "aims up",
        aims("up", "--state-dir", str(folder / "s"), "--run-dir", str(folder / "r"), "--port", "0", "--mtls-port", "0"),
        log=folder / "log",
    )
    await process.until("ready")
    yield process
    await process.end()
    await process.kill()


async def doctor(folder: Path, *arguments: str) -> tuple[int, dict[str, dict[str, object]]]:
    status, text = await output_of(
        aims("doctor", "--output", "json", *(arguments or ("--state-dir", f"{folder}/s", "--run-dir", f"{folder}/r")))
    )
    return status, {finding["check"]: finding for finding in msgspec.json.decode(text)}


async def test_a_healthy_set_up_has_six_good_findings(folder: Path, running: Process) -> None:
    status, findings = await doctor(folder)
    assert status == 0, findings
    assert len(findings) == 6
    assert all(finding["ok"] for finding in findings.values())


async def test_without_a_server_the_first_fix_is_to_start_it(folder: Path) -> None:
    status, findings = await doctor(folder)
    assert status == 1
    assert "aims up" in str(findings["server and its socket"]["fix"])
    assert not findings["node"]["ok"]


async def test_a_key_that_others_may_read_is_named_with_the_command(folder: Path, running: Process) -> None:
    key = next((folder / "s" / "server" / "keys").glob("*.pem"))
    key.chmod(0o644)
    status, findings = await doctor(folder)
    assert status == 1
    assert findings["key files"]["fix"] == f"chmod 0600 {key}"
    assert findings["server and its socket"]["ok"]


async def test_an_overlong_folder_is_named(folder: Path) -> None:
    status, findings = await doctor(folder, "--run-dir", str(folder / ("x" * 100)))
    assert status == 1
    assert "shorter folder" in str(findings["server and its socket"]["fix"])


async def test_a_node_without_its_server_is_named(folder: Path, running: Process) -> None:
    node = int((folder / "r" / "node.pid").read_text())
    os.kill(node, 19)  # SIGSTOP: it is there, and answers nobody
    try:
        status, findings = await doctor(folder)
        assert status == 1
        assert "node's log" in str(findings["node"]["fix"])
        assert findings["database"]["ok"]
    finally:
        os.kill(node, 18)
    await asyncio.to_thread(until, (folder / "r" / "workload.sock").exists)


def test_a_clock_that_is_off_and_an_old_kernel_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-18-amd64")
    place = Place(tmp_path, tmp_path, {"time": 0.0, "database": "sqlite", "writable": False})
    findings = {check.__name__: check(place) for check in room.CHECKS}
    assert "NTP" in findings["_clock"].fix
    assert "6.5" in findings["_kernel"].fix
    assert "disk" in findings["_database"].fix
    assert len(list(examine(Place(tmp_path, tmp_path)))) == len(room.CHECKS)
