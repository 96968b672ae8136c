"""The stage of the story: one trust domain in a folder of its own, with free ports, gone when the story ends."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from aims.demo.browser import Browser, Page
from aims.demo.policy import write_policy
from aims.demo.processes import DemoError, Process, aims, output_of
from aims.demo.transmitter import Transmitter
from aims.server.admin_client import AdminClient

OWNER: Final = "demo-team"
PORTS: Final = ("public", "mtls", "tool", "impostor", "inner", "receiver")
RECORD_SECONDS: Final = 10.0


@dataclass(slots=True)
class Stage:
    """What the steps act on. ``answered`` is the ledger of the administrator: ids of the records that were promised."""

    folder: Path
    addresses: dict[str, str] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)
    server: Process | None = None
    programs: dict[str, Process] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    transmitter: Transmitter | None = None
    kept: dict[str, str] | None = None
    handed: dict[str, str] = field(default_factory=dict)
    browser: Browser = field(default_factory=lambda: Browser(Path()))
    provider: Transmitter | None = None
    person: str = ""
    consent: tuple[Page, str] = field(default_factory=lambda: (Page(0, ""), ""))
    link: str = ""

    @classmethod
    def set_up(cls) -> tuple[Stage, tempfile.TemporaryDirectory[str]]:
        """Make the folder; the caller closes it. Its path is short because a socket's path must be."""
        folder = tempfile.TemporaryDirectory(prefix="aims-demo-", ignore_cleanup_errors=True)
        stage = cls(Path(folder.name))
        stage.ports = {name: free_port() for name in PORTS}
        write_policy(stage.policy_dir, stage.ports)
        return stage, folder

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def policy_dir(self) -> Path:
        return self.folder / "policy"

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def public_ca(self) -> Path:
        return self.state_dir / "server" / "tls-ca.pem"

    @property
    def log_dir(self) -> Path:
        return self.state_dir / "server" / "log"

    async def start_server(self) -> list[str]:
        """Run ``aims up`` and return the lines that it printed until it was ready."""
        options = {
            "state-dir": self.state_dir,
            "run-dir": self.run_dir,
            "policy": self.policy_dir,
            "port": self.ports["public"],
            "mtls-port": self.ports["mtls"],
        }
        self.server = await Process.start(
            "aims up",
            aims("up", *(part for name, value in options.items() for part in (f"--{name}", str(value)))),
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

    async def administer(self, method: str, path: str, body: object | None = None) -> Any:
        """Call the administrator's socket from a thread, and return what it answers."""

        def call() -> Any:
            with AdminClient(self.run_dir / "admin.sock", "the story") as client:
                return client.call(method, path, body)

        return await asyncio.to_thread(call)

    async def records(self) -> list[dict[str, Any]]:
        """Return every published record, as ``aims audit tail`` prints them."""
        status, text = await output_of(
            aims("audit", "tail", "--count", "1000000", "--state-dir", str(self.state_dir), "--output", "json")
        )
        if status:
            raise DemoError(text)
        return [msgspec.json.decode(line) for line in text.splitlines()]

    async def record(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the newest published record that is ``wanted``; the log is published once a second.

        Raises:
            DemoError: there is none within some seconds.
        """
        deadline = time.monotonic() + RECORD_SECONDS
        while True:
            found: dict[str, Any] | None = next((one for one in reversed(await self.records()) if wanted(one)), None)
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise DemoError("the record is not in the log")
            await asyncio.sleep(0.2)

    async def launch(self, name: str, *command: str, service: bool = False) -> dict[str, Any]:
        """Register ``command`` under a name, start it through the node, and return the first line that it says."""
        await self.register(name, *command, options=("--service",) if service else ())
        process = await Process.start(
            name, launched(self, name, *command), log=self.folder / f"{name}.log", commanded=True
        )
        self.programs[name] = process
        first: dict[str, Any] = msgspec.json.decode(await process.line())
        return first

    async def register(self, name: str, *command: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
        """Register an agent with its command, as an administrator does it.

        Raises:
            DemoError: the command refused.
        """
        status, text = await output_of(
            aims(
                *("agent", "register", name, "--owner", OWNER, "--run-dir", str(self.run_dir), "--output", "json"),
                *(*options, "--", *command),
            )
        )
        if status:
            raise DemoError(text)
        answer: dict[str, Any] = msgspec.json.decode(text)
        return answer

    async def close(self) -> None:
        """End everything that still runs."""
        for process in self.programs.values():
            await process.end()
        if self.server is not None:
            await self.server.end()
            await self.server.kill()


def launched(stage: Stage, name: str, *command: str) -> tuple[str, ...]:
    """The argument vector that starts ``command`` as the agent ``name``."""
    return aims("run", "--as", name, "--run-dir", str(stage.run_dir), "--quiet", "--", *command)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
