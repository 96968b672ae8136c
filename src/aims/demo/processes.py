"""Real processes for the story: started, awaited for one line, and ended with everything below them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

START_SECONDS: Final = 40.0
END_SECONDS: Final = 15.0
MOST_LINE: Final = 1024 * 1024
MOST_LAST_WORDS: Final = 2000


class DemoError(RuntimeError):
    """A process of the story did not do what the next step needs."""


class Process:
    """A child in a process group of its own, whose standard output is read line by line."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, log: Path) -> None:
        self._process = process
        self._log = log
        self.name = name

    @classmethod
    async def start(
        cls,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        commanded: bool = False,
    ) -> Process:
        """Start ``argv``; its standard error goes to ``log``. One that is ``commanded`` reads lines from ``ask``."""
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE if commanded else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                env=dict(environment) if environment is not None else None,
                start_new_session=True,
                limit=MOST_LINE,
            )
        return cls(process, name, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def line(self, seconds: float = START_SECONDS) -> str:
        """Return the next line of output.

        Raises:
            DemoError: the process ended, or said nothing in time.
        """
        stream = self._process.stdout
        if stream is None:
            raise DemoError(f"{self.name} has no output")
        try:
            octets = await asyncio.wait_for(stream.readline(), seconds)
        except TimeoutError as error:
            raise DemoError(f"{self.name} said nothing for {seconds:.0f} s") from error
        if not octets:
            raise DemoError(f"{self.name} ended with status {await self._process.wait()}: {self._last_words()}")
        return octets.decode("utf-8", "replace").rstrip("\n")

    def _last_words(self) -> str:
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - MOST_LAST_WORDS))
            return file.read().decode("utf-8", "replace").strip()

    async def until(self, last: str, seconds: float = START_SECONDS) -> list[str]:
        """Return all lines up to the one that is ``last``."""
        lines: list[str] = []
        async with asyncio.timeout(seconds):
            while not lines or lines[-1] != last:
                lines.append(await self.line(seconds))
        return lines

    async def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Give a sample program one command and return its answer, whole.

        Raises:
            DemoError: it has no input, ended, or said nothing in time.
        """
        stream = self._process.stdin
        if stream is None:
            raise DemoError(f"{self.name} takes no commands")
        stream.write(msgspec.json.encode({"do": do, **arguments}) + b"\n")
        await stream.drain()
        answer: dict[str, Any] = msgspec.json.decode(await self.line())
        return answer

    def children(self, module: str) -> list[int]:
        """The pids of its child processes that run ``module``."""
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text("ascii").split()
        return [int(pid) for pid in found if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]

    async def end(self) -> int:
        """Ask the process to end, force the whole group after a while, and return its status."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            return await asyncio.wait_for(self._process.wait(), END_SECONDS)
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """``kill -9`` the whole group and return the leader's status."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return await self._process.wait()


def aims(*arguments: str) -> tuple[str, ...]:
    """The argument vector of the ``aims`` command in this very installation."""
    return (sys.executable, "-P", "-m", "aims", *arguments)


async def output_of(argv: Sequence[str], seconds: float = START_SECONDS) -> tuple[int, str]:
    """Run a program to its end; return its status and its standard output without the last line end."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        octets, _ = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise DemoError(f"{argv[-1]} took more than {seconds:.0f} s") from error
    return process.returncode or 0, octets.decode("utf-8", "replace").rstrip("\n")
