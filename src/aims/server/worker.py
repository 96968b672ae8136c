"""One worker process: its own memory, its own writer thread, and the listeners that it shares with its siblings.

It reads its order on standard input, says ``ready`` on standard output once it answers, and ends when it is told to,
or at once when the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
import uvloop

from aims.clock import SystemClock, SystemIds
from aims.errors import AimsError
from aims.log import start_logging
from aims.server.admin import AdminDoor
from aims.server.administration import routes
from aims.server.core import Core
from aims.server.errors import ServerError
from aims.server.http import App
from aims.server.listeners import Listeners
from aims.server.monitoring_routes import monitoring_of
from aims.server.protocol import BoundedProtocol
from aims.server.supervisor import WorkerOrder
from aims.storage.database import Database
from aims.tls import RotatingContext
from aims.tls.acceptor import Acceptor, Handshakes

LOAD_SECONDS: Final = 20.0
GRACE_SECONDS: Final = 5
ORPHANED: Final = 75
KEEP_ALIVE_SECONDS: Final = 30
AT_ONCE: Final = 16


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: one process has several of it, and one way to stop.

    Over TLS its connections come from our own acceptor, and end when a `RotatingContext` refuses their peer.
    """

    def __init__(self, config: uvicorn.Config, context: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._context = context
        self._reviews: set[asyncio.Task[None]] = set()
        if isinstance(context, RotatingContext):
            context.on_change(self._review)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._context is None:
            await super().startup(sockets)
        else:
            await super().startup([])
            handshakes = Handshakes(self._protocol, self._context)
            acceptors: Any = [Acceptor(listener, handshakes) for listener in sockets or ()]
            self.servers = acceptors
        self.listening.set()

    def _protocol(self) -> BoundedProtocol:
        return BoundedProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _review(self) -> None:
        task = asyncio.get_running_loop().create_task(self._end_refused())
        self._reviews.add(task)
        task.add_done_callback(self._reviews.discard)

    async def _end_refused(self) -> None:
        # Thousands of certificates take a while to verify: the heartbeats of others must not wait for it.
        context = self._context
        assert isinstance(context, RotatingContext)  # noqa: S101 -- only its changes come here
        for number, connection in enumerate(tuple(self.server_state.connections)):
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            if isinstance(connection, BoundedProtocol):
                connection.end_unless(context.still_accepts)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _shared(descriptors: tuple[int, ...]) -> list[socket.socket]:
    return [socket.socket(fileno=descriptor) for descriptor in descriptors]


def _server(app: App, context: ssl.SSLContext | None = None) -> _Server:
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_context_factory=None if context is None else lambda *_: context,
    )
    return _Server(config, context)


async def work(order: WorkerOrder) -> None:
    """Serve until SIGTERM."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    # Ctrl-C reaches the whole group of the terminal; the supervisor decides what it means.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    # The supervisor's end of this pipe closes when it ends, however it ends.
    loop.add_reader(order.life, os._exit, ORPHANED)
    clock = SystemClock()
    ids = SystemIds(clock)
    settings = order.settings
    database = Database.open(settings.database_url, clock=clock, ids=ids, folder=settings.server_dir)
    try:
        core = Core(settings, clock=clock, ids=ids, database=database)
        core.follow()
        database.feed.start(loop)
        await loaded(core)
        listeners = Listeners(core)
        await listeners.open()
        servers = [
            (_server(AdminDoor(core, routes(core))), [socket.socket(fileno=order.admin)]),
            (_server(listeners.public, listeners.public_context), _shared(order.public)),
            (_server(listeners.mtls, listeners.mtls_context), _shared(order.mtls)),
        ]
        async with asyncio.TaskGroup() as tasks:
            keeping = [tasks.create_task(listeners.keep()), tasks.create_task(monitoring_of(core).keep())]
            for server, sockets in servers:
                tasks.create_task(server.serve(sockets=sockets))
            for server, _ in servers:
                await server.listening.wait()
            # What is here now stays for good; collecting garbage need not look at it again and again.
            gc.collect()
            gc.freeze()
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            await stopping.wait()
            for task in keeping:
                task.cancel()
            for server, _ in servers:
                server.should_exit = True
    finally:
        database.close()


async def loaded(core: Core) -> None:
    """Wait until ``core`` has read its state and opened its keys. Raises: ServerError ``loading``."""
    try:
        async with asyncio.timeout(LOAD_SECONDS) as limit:
            await core.loaded.wait()
            await core.keeper.open()
    except TimeoutError as error:
        if not limit.expired():
            raise
        missing = "the keys" if core.loaded.is_set() else "the state"
        raise ServerError("loading", f"{missing}, within {LOAD_SECONDS:g} seconds") from error


def raise_descriptor_limit() -> None:
    """Take as many descriptors as the system allows.

    The usual soft limit of 1024 is used up by a thousand idle connections of a stranger to the public listener, and
    then nobody reaches the other listeners either. Nothing here uses ``select``, for which that limit exists.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Run one worker with the order that stands on standard input."""
    start_logging()
    raise_descriptor_limit()
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=WorkerOrder, dec_hook=lambda _, text: Path(text))
    try:
        uvloop.run(work(order))
    except AimsError as error:
        logging.getLogger("aims.server").critical(str(error), extra={"code": error.code, "hint": error.hint})
        sys.exit(1)


if __name__ == "__main__":
    main()
