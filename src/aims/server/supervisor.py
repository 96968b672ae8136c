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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from sqlalchemy.exc import DBAPIError

from aims.clock import Clock
from aims.errors import AimsError
from aims.server.children import READY_SECONDS, Child
from aims.server.errors import ServerError
from aims.server.settings import Settings
from aims.server.sockets import listen_tcp, listen_unix

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

    ``seal`` is one step of the audit log's sequencer (blocking, runs in a thread). With ``node``, which returns a join
    token, this host's node is started too. ``run`` returns when ``stop`` was called or a signal arrived, after
    everything that was started has ended.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock,
        seal: Callable[[], object],
        node: Callable[[Settings], Awaitable[str]] | None = None,
    ) -> None:
        self._settings = settings
        self._node = node
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
        workers = [self._worker(number, order) for number in range(order.settings.workers)]
        async with asyncio.TaskGroup() as tasks:
            keepers = [tasks.create_task(worker.keep()) for worker in workers]
            sealing = tasks.create_task(self._keep_sealing())
            if await self._answer(workers, keepers) and self._node is not None:
                node = self._node_child(order.settings, self._node)
                keepers.append(tasks.create_task(node.keep()))
                await self._answer([node], keepers)
            if not self._stopping.is_set():
                await ready(Running(order.settings))
            await self._stopping.wait()
            # The node goes first: it tells the server which of its agents ended.
            for keeper in reversed(keepers):
                keeper.cancel()
                await asyncio.wait([keeper])
            sealing.cancel()

    async def _answer(self, children: Sequence[Child], keepers: Sequence[asyncio.Task[None]]) -> bool:
        """Wait until all children answer; False when a stop came first.

        Raises:
            ServerError: ``worker`` when one does not answer in time.
        """
        waits = [asyncio.create_task(child.ready.wait()) for child in children]
        stop = asyncio.create_task(self._stopping.wait())
        try:
            for child, wait in zip(children, waits, strict=True):
                done, _ = await asyncio.wait(
                    {wait, stop, *keepers}, timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    raise ServerError("worker", f"{child.name} did not answer within {READY_SECONDS:.0f} s")
                if wait not in done:
                    return False
        finally:
            for task in (*waits, stop):
                task.cancel()
        return True

    def _worker(self, number: int, order: WorkerOrder) -> Child:
        async def words() -> bytes:
            return msgspec.json.encode(order, enc_hook=str)

        return Child(
            name=f"worker {number}",
            module="aims.server.worker",
            arguments=(),
            order=words,
            descriptors=(*order.public, *order.mtls, order.admin, order.life),
            clock=self._clock,
        )

    def _node_child(self, settings: Settings, join_token: Callable[[Settings], Awaitable[str]]) -> Child:
        async def token() -> bytes:
            return (await join_token(settings)).encode("ascii") + b"\n"

        return Child(
            name="node",
            module="aims.node",
            arguments=(
                *("--state-dir", str(settings.state_dir / "node")),
                *("--run-dir", str(settings.run_dir)),
                *("--join-token", "-"),
                *("--life", str(self._life_read)),
            ),
            order=token,
            descriptors=(self._life_read,),
            clock=self._clock,
        )

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
