"""How a supervisor starts its processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aims.clock import SystemClock
from aims.server.children import Child
from aims.server.errors import ServerError


async def test_no_process_loads_code_from_the_folder_where_the_server_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: SystemClock
) -> None:
    (tmp_path / "planted.py").write_text("print('ready', flush=True)\n")
    monkeypatch.chdir(tmp_path)

    async def nothing() -> bytes:
        return b""

    child = Child(name="c", module="planted", arguments=(), order=nothing, descriptors=(), clock=clock)
    async with asyncio.timeout(30):
        with pytest.raises(ServerError) as caught:
            await child.keep()
    assert caught.value.reason == "worker"
    assert not child.ready.is_set()
