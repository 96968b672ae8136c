"""The one process that owns a data folder: it binds, starts and watches the others, and seals the audit log.

It serves no request itself. What it holds, and nobody else: the lock on the folder, the listening sockets, the audit
log's sequencer and signing key. A worker that dies is started again; when the supervisor dies, however, its end of a
pipe closes and every worker and the node end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from sqlalchemy.exc import DBAPIError

from aims.clock import Clock
from aims.errors import AimsError
from aims.server.errors import ServerError
from aims.server.settings import Settings
from aims.server.sockets import listen_tcp, listen_unix

READY_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
RESTART_SECONDS: Final = (0.1, 0.5, 2.0, 10.0)
STABLE_SECONDS: Final = 30.0
SEAL_SECONDS: Final = 0.25
SEAL_PAUSE_SECONDS: Final = 2.0

_log = logging.getLogger("aims.server")


class WorkerOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker reads on its standard input: the settings and the descriptors that it inherited."""

    settings: Settings
    public: tuple[int, ...]
    mtls: tuple[int, ...]
    admin: int
    life: int


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers: the settings with the ports that were really taken."""

    settings: Settings


class Supervisor:
    """Start, watch and stop the processes of one server.

    ``seal`` is one step of the audit log's sequencer (blocking, runs in a thread). ``run`` returns when ``stop`` was
    called or a signal arrived, after everything that was started has ended.
    """

    def __init__(self, settings: Settings, *, clock: Clock, seal: Callable[[], object]) -> None:
        self._settings = settings
        self._clock = clock
        self._seal = seal
        self._stopping = asyncio.Event()
        self._life_read, self._life_write = os.pipe()
        self._sockets: list[socket.socket] = []

    def stop(self) -> None:
        """Ask for an orderly end."""
        self._stopping.set()

    async def run(self, ready: Callable[[Running], Awaitable[None]]) -> None:
        """Bind, start the workers, call ``ready`` once they answer, and stay until ``stop``.

        Raises:
            ServerError: ``port_in_use``, ``folder``, ``already_running``, ``worker``.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stopping.set)
        try:
            public = listen_tcp(self._settings.public_port)
            self._sockets.extend(public)
            mtls = listen_tcp(self._settings.mtls_port)
            self._sockets.extend(mtls)
            admin = listen_unix(self._settings.admin_socket, 0o600)
            self._sockets.append(admin)
            settings = msgspec.structs.replace(
                self._settings, public_port=public[0].getsockname()[1], mtls_port=mtls[0].getsockname()[1]
            )
            order = WorkerOrder(
                settings=settings,
                public=tuple(listener.fileno() for listener in public),
                mtls=tuple(listener.fileno() for listener in mtls),
                admin=admin.fileno(),
                life=self._life_read,
            )
            await asyncio.to_thread(self._seal)
            try:
                await self._supervise(order, ready)
            except* AimsError as group:
                raise _first(group) from None
            await asyncio.to_thread(self._seal)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)
            for listener in self._sockets:
                listener.close()
            for descriptor in (self._life_read, self._life_write):
                os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                self._settings.admin_socket.unlink()

    async def _supervise(self, order: WorkerOrder, ready: Callable[[Running], Awaitable[None]]) -> None:
        async with asyncio.TaskGroup() as tasks:
            answering = [asyncio.Event() for _ in range(order.settings.workers)]
            workers = [tasks.create_task(self._keep(number, order, event)) for number, event in enumerate(answering)]
            sealing = tasks.create_task(self._keep_sealing())
            await self._all_ready(answering, workers)
            if not self._stopping.is_set():
                await ready(Running(order.settings))
            await self._stopping.wait()
            for task in workers:
                task.cancel()
            await asyncio.wait(workers)
            sealing.cancel()

    async def _all_ready(self, answering: Sequence[asyncio.Event], workers: Sequence[asyncio.Task[None]]) -> None:
        waits = [asyncio.create_task(event.wait()) for event in answering]
        stop = asyncio.create_task(self._stopping.wait())
        try:
            for wait in waits:
                done, _ = await asyncio.wait(
                    {wait, stop, *workers}, timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    raise ServerError("worker", f"no answer within {READY_SECONDS:.0f} s")
                if stop in done:
                    return
        finally:
            for task in (*waits, stop):
                task.cancel()

    async def _keep(self, number: int, order: WorkerOrder, answering: asyncio.Event) -> None:
        """Keep one worker alive; before its first answer its death is ours."""
        failures = 0
        while True:
            begun = self._clock.monotonic()
            process = await self._start(order)
            try:
                await self._greet(process, answering)
                await process.wait()
            finally:
                await _end(process)
            if not answering.is_set():
                raise ServerError("worker", f"worker {number} ended with {process.returncode}")
            failures = 0 if self._clock.monotonic() - begun > STABLE_SECONDS else failures + 1
            pause = RESTART_SECONDS[min(failures, len(RESTART_SECONDS)) - 1] if failures else 0.0
            _log.error("worker ended", extra={"worker": number, "status": process.returncode, "pause": pause})
            await asyncio.sleep(pause)

    async def _start(self, order: WorkerOrder) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "aims.server.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(*order.public, *order.mtls, order.admin, order.life),
        )
        if process.stdin is None or process.stdout is None:
            raise ServerError("worker", "no pipe to the worker")
        with contextlib.suppress(ConnectionError):
            process.stdin.write(msgspec.json.encode(order, enc_hook=str))
            await process.stdin.drain()
        process.stdin.close()
        return process

    async def _greet(self, process: asyncio.subprocess.Process, answering: asyncio.Event) -> None:
        if process.stdout is not None and await process.stdout.readline() == b"ready\n":
            answering.set()

    async def _keep_sealing(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._seal)
                pause = SEAL_SECONDS
            except (AimsError, OSError, DBAPIError) as error:
                # Records wait in the database and lose nothing; an unwritable disk or a lost database may come back.
                _log.error("the audit log cannot go on", extra={"detail": str(error)})  # no trace needed
                pause = SEAL_PAUSE_SECONDS
            await asyncio.sleep(pause)


def _first(group: BaseExceptionGroup[AimsError]) -> AimsError:
    """The first error of a group, however deep it stands."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, AimsError):
        raise TypeError(type(error).__name__)
    return error


async def _end(process: asyncio.subprocess.Process) -> None:
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
