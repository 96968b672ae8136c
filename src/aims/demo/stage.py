"""The stage of the story: one trust domain in a folder of its own, with free ports, gone when the story ends."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from aims.demo.processes import DemoError, Process, aims, output_of
from aims.server.admin_client import AdminClient


@dataclass(slots=True)
class Stage:
    """What the steps act on. ``answered`` is the ledger of the administrator: ids of the records that were promised."""

    folder: Path
    addresses: dict[str, str] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)
    server: Process | None = None

    @classmethod
    def set_up(cls) -> tuple[Stage, tempfile.TemporaryDirectory[str]]:
        """Make the folder; the caller closes it. Its path is short because a socket's path must be."""
        folder = tempfile.TemporaryDirectory(prefix="aims-demo-")
        return cls(Path(folder.name)), folder

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def log_dir(self) -> Path:
        return self.state_dir / "server" / "log"

    async def start_server(self) -> list[str]:
        """Run ``aims up`` and return the lines that it printed until it was ready."""
        self.server = await Process.start(
            "aims up",
            aims(
                "up",
                "--state-dir",
                str(self.state_dir),
                "--run-dir",
                str(self.run_dir),
                "--port",
                "0",
                "--mtls-port",
                "0",
            ),
            log=self.folder / "server.log",
        )
        lines = await self.server.until("ready")
        self.addresses = {name: rest.strip() for name, _, rest in (line.partition("  ") for line in lines[:-1])}
        return lines

    def running(self) -> Process:
        """Return the server's process.

        Raises:
            DemoError: it was never started.
        """
        if self.server is None:
            raise DemoError("the server does not run")
        return self.server

    async def administer(self, method: str, path: str, body: object | None = None) -> dict[str, Any]:
        """Call the administrator's socket from a thread."""

        def call() -> dict[str, Any]:
            with AdminClient(self.run_dir / "admin.sock", "the story") as client:
                answer: dict[str, Any] = client.call(method, path, body)
                return answer

        return await asyncio.to_thread(call)

    async def records(self) -> list[dict[str, Any]]:
        """Return every published record, as ``aims audit tail`` prints them."""
        status, text = await output_of(
            aims("audit", "tail", "--count", "1000000", "--state-dir", str(self.state_dir), "--output", "json")
        )
        if status:
            raise DemoError(text)
        return [msgspec.json.decode(line) for line in text.splitlines()]

    async def close(self) -> None:
        """End everything that still runs."""
        if self.server is not None:
            await self.server.end()
            await self.server.kill()
