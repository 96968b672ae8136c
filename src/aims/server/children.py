"""Child processes that are kept alive: started again when they end, ended when their keeper is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from aims.clock import Clock
from aims.server.errors import ServerError

READY_SECONDS: Final = 30.0
STOP_SECONDS: Final = 15.0
RESTART_SECONDS: Final = (0.1, 0.5, 2.0, 10.0)
STABLE_SECONDS: Final = 30.0

_log = logging.getLogger("aims.server")


@dataclass(slots=True)
class Child:
    """A Python module of AIMS as a process of its own.

    ``order`` is what it reads on its standard input at each start; ``descriptors`` it inherits. ``ready`` is set once
    it said ``ready`` on its standard output, and stays set over restarts.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    order: Callable[[], Awaitable[bytes]]
    descriptors: tuple[int, ...]
    clock: Clock
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def keep(self) -> None:
        """Run the process for ever; before its first ``ready`` its death is the keeper's.

        Raises:
            ServerError: ``worker``.
        """
        failures = 0
        while True:
            begun = self.clock.monotonic()
            process = await self._start()
            try:
                if process.stdout is not None and await process.stdout.readline() == b"ready\n":
                    self.ready.set()
                await process.wait()
            finally:
                await end(process)
            if not self.ready.is_set():
                raise ServerError("worker", f"{self.name} ended with {process.returncode}")
            failures = 0 if self.clock.monotonic() - begun > STABLE_SECONDS else failures + 1
            pause = RESTART_SECONDS[min(failures, len(RESTART_SECONDS)) - 1] if failures else 0.0
            _log.error("a process ended", extra={"child": self.name, "status": process.returncode, "pause": pause})
            await asyncio.sleep(pause)

    async def _start(self) -> asyncio.subprocess.Process:
        order = await self.order()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # else the folder in which somebody starts a server is the first on its import path
            "-m",
            self.module,
            *self.arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=self.descriptors,
        )
        if process.stdin is None:
            raise ServerError("worker", f"no pipe to {self.name}")
        with contextlib.suppress(ConnectionError):
            process.stdin.write(order)
            await process.stdin.drain()
        process.stdin.close()
        return process


async def end(process: asyncio.subprocess.Process) -> None:
    """End a child in order, then by force; cancellation does not leave it behind."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
