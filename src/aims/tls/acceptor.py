"""Connections of a TLS listener from ``accept`` to the end of their handshake: bounded in number and in time.

uvicorn leaves this to the event loop, which counts nothing and waits a minute. A socket that connects and says nothing
would hold memory and a descriptor for that long, and an address can open thousands of them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

HANDSHAKE_SECONDS: Final = 8.0
MOST_HANDSHAKES: Final = 512
PAUSE_SECONDS: Final = 0.1
_AT_ONCE: Final = 64
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log = logging.getLogger("aims.tls")


class Handshakes:
    """The unfinished handshakes of one listener.

    When there are too many, the oldest ends: an honest client needs milliseconds, and whoever says nothing gets old.
    ``make_room`` is asked to end connections behind their handshake when the process has no descriptors left.
    """

    def __init__(
        self,
        factory: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        *,
        make_room: Callable[[], None] | None = None,
    ) -> None:
        self._factory = factory
        self._context = context
        self._make_room = make_room
        self._open: dict[asyncio.Task[None], None] = {}  # in the order of their beginning

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, connection: socket.socket) -> None:
        """Take over an accepted connection."""
        if len(self._open) >= MOST_HANDSHAKES:
            self.end_oldest()
        task = asyncio.get_running_loop().create_task(self._shake(connection))
        self._open[task] = None
        task.add_done_callback(lambda done: self._open.pop(done, None))

    def end_oldest(self) -> None:
        """End the handshake that has lasted longest, if there is any."""
        oldest = next(iter(self._open), None)
        if oldest is not None:
            del self._open[oldest]
            oldest.cancel()

    def make_room(self) -> None:
        """Give descriptors back to a process that has none left."""
        self.end_oldest()
        if self._make_room is not None:
            self._make_room()

    def close(self) -> None:
        """End all of them."""
        while self._open:
            self.end_oldest()

    async def _shake(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._factory, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except OSError as error:
            # What strangers do at the door is no event; who was refused by a check is told so in the handshake.
            _log.debug("no handshake", extra={"detail": str(error)[:200]})


class Acceptor:
    """Accepts from one listening socket, until it is closed. What uvicorn asks of an `asyncio.Server`, it has."""

    def __init__(self, listener: socket.socket, handshakes: Handshakes) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._handshakes = handshakes
        self._pause: asyncio.TimerHandle | None = None
        self._resume()

    def close(self) -> None:
        """Accept nothing more, and end what has not got through its handshake."""
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.remove_reader(self._listener)
        self._handshakes.close()

    async def wait_closed(self) -> None:
        """There is nothing to wait for."""

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                _log.warning("no more connections can be accepted at present", extra={"detail": error.strerror})
                self._handshakes.make_room()
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(PAUSE_SECONDS, self._resume)
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._handshakes.begin(connection)
