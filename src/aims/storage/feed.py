"""Read the change feed: every process learns of every change, in order, and can prove that it is up to date.

A reader wakes when somebody commits a change (datagram on one host, NOTIFY between hosts) and reads once a second in
any case. That read is the proof of being alive: ``fresh`` says whether this process knew not long ago that it had
applied everything up to ``head``.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitedTooLong
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from aims.clock import Clock
from aims.storage.engine import Location, connect_postgresql, connect_sqlite
from aims.storage.errors import StorageError
from aims.storage.postgresql import CHANNEL
from aims.storage.wakeup import Wakeup
from aims.storage.write import Name, Stop

READ_LIMIT = 1_000
READ_SECONDS = 1.0

_log = logging.getLogger(__name__)

# Head and lines in one statement, so that both are of one moment.
_SQL = (
    "SELECT h.seq, c.seq, c.kind, c.id, c.body, c.stop_kind, c.stop_id, c.stop_blocked"
    " FROM feed_head h LEFT JOIN change c ON c.seq > {0} ORDER BY c.seq LIMIT {1}"
)


class Event(NamedTuple):
    """A line of the feed."""

    seq: int
    kind: str
    id: str
    body: bytes
    stop: Stop | None


Handler = Callable[[Event], None]


@dataclass(slots=True, eq=False)
class _Subscriber:
    handler: Handler
    reload: Callable[[], None]
    stale: bool = True


class _Source(Protocol):
    def read(self, last: int) -> tuple[int, list[Event]]: ...
    def fileno(self) -> int | None: ...
    def close(self) -> None: ...


class Feed:
    """The reader of this process: ``subscribe``, ``start``, ``close``.

    Handlers run on the event loop given to ``start``, or on the reader's thread without one. They must not block and
    must bear to see a line whose effect a reload has brought already.
    """

    def __init__(self, location: Location, wakeup: Wakeup, clock: Clock) -> None:
        self._location = location
        self._wakeup = wakeup
        self._clock = clock
        self._subscribers: list[_Subscriber] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._last = -1
        self._applied: tuple[int, float | None] = (0, None)

    @property
    def head(self) -> int:
        """The number up to which all subscribers have seen everything: the ``seen`` of a ``Write``."""
        return self._applied[0]

    def fresh(self, seconds: float = READ_SECONDS) -> bool:
        """Whether a heartbeat may say that this process has read to the head at most so many seconds ago."""
        at = self._applied[1]
        return at is not None and self._clock.monotonic() - at <= seconds

    def subscribe(self, handler: Handler, reload: Callable[[], None]) -> Callable[[], None]:
        """Have ``reload`` called for a full load, now and whenever lines were missed, and ``handler`` for each line.

        Returns a function that ends the subscription. While a reload fails the process does not count as up to date.
        """
        subscriber = _Subscriber(handler, reload)
        self._subscribers.append(subscriber)
        if self._thread is not None:
            self._wakeup.ring()
        return lambda: self._subscribers.remove(subscriber)

    def start(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Read from now on; the first thing that subscribers see is a reload."""
        self._loop = loop
        self._thread = threading.Thread(target=self._work, args=(self._wakeup.listen(),), name="aims-feed", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reading. A handler that runs at this moment on another thread is not waited for."""
        self._closing.set()
        if self._thread is not None:
            self._wakeup.ring()
            self._thread.join(READ_SECONDS * 5)
            self._thread = None

    # From here on: the reader's thread.

    def _work(self, bell: socket.socket) -> None:
        source: _Source | None = None
        while not self._closing.is_set():
            more = False
            try:
                source = source or _open(self._location)
                more = self._turn(source)
            except Exception as error:  # noqa: BLE001 - whatever broke, the reader opens anew
                if not self._closing.is_set():
                    _log.warning("the change feed cannot be read: %s", error)
                if source is not None:
                    source.close()
                source = None
            if not more:
                self._wait(bell, source)
        if source is not None:
            source.close()

    def _turn(self, source: _Source) -> bool:
        at = self._clock.monotonic()
        head, events = source.read(self._last)
        reached = events[-1].seq if events else self._last
        whole = [event.seq for event in events] == list(range(self._last + 1, reached + 1))
        missed = self._last < 0 or not whole or reached > head or (reached < head and len(events) < READ_LIMIT)
        if missed:
            events, reached = [], head
        if not self._deliver(events, reached, at if reached == head else None, missed=missed):
            return False
        self._last = reached
        return reached < head

    def _deliver(self, events: list[Event], reached: int, at: float | None, *, missed: bool) -> bool:
        if self._loop is None:
            self._apply(events, reached, at, missed=missed)
            return True
        done: Future[None] = Future()

        def on_loop() -> None:
            self._apply(events, reached, at, missed=missed)
            done.set_result(None)

        self._loop.call_soon_threadsafe(on_loop)
        while not self._closing.is_set():
            with suppress(WaitedTooLong):
                done.result(READ_SECONDS)
                return True
        return False

    def _apply(self, events: list[Event], reached: int, at: float | None, *, missed: bool) -> None:
        current = True
        for subscriber in tuple(self._subscribers):
            subscriber.stale = subscriber.stale or missed
            try:
                if not subscriber.stale:
                    for event in events:
                        subscriber.handler(event)
                    continue
            except Exception:  # noqa: BLE001 - a defect of one room may not blind the others
                _log.exception("a subscriber of the change feed failed and is loaded anew")
                subscriber.stale = True
            try:
                subscriber.reload()
                subscriber.stale = False
            except Exception:  # noqa: BLE001 - the same
                _log.exception("a subscriber of the change feed could not load")
                current = False
        if current:
            self._applied = (reached, self._applied[1] if at is None else at)

    def _wait(self, bell: socket.socket, source: _Source | None) -> None:
        number = None if source is None else source.fileno()
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        if number is not None:
            poll.register(number, select.POLLIN)
        if bell.fileno() in dict(poll.poll(int(READ_SECONDS * 1_000))):
            with suppress(BlockingIOError):
                while bell.recv(16):
                    continue


def _open(location: Location) -> _Source:
    return _SqliteSource(location) if location.backend == "sqlite" else _PostgresqlSource(location)


def _events(rows: list[tuple[Any, ...]]) -> tuple[int, list[Event]]:
    if not rows:
        raise StorageError("not_migrated", "feed_head has no row")
    events = []
    for _, seq, kind, id_, body, stop_kind, stop_id, blocked in rows:
        if seq is not None:
            stop = None if stop_kind is None else Stop(Name(stop_kind, stop_id), bool(blocked))
            events.append(Event(seq, kind, id_, bytes(body), stop))
    return int(rows[0][0]), events


class _SqliteSource:
    def __init__(self, location: Location) -> None:
        self._connection = connect_sqlite(location, query_only=True)

    def read(self, last: int) -> tuple[int, list[Event]]:
        return _events(self._connection.execute(_SQL.format("?", "?"), (last, READ_LIMIT)).fetchall())

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        self._connection.close()


class _PostgresqlSource:
    def __init__(self, location: Location) -> None:
        self._connection = connect_postgresql(location, name="aims-feed")
        # The text of a notification is not needed: the read that follows has everything.
        self._connection.add_notify_handler(lambda _: None)
        try:
            self._connection.execute(f"LISTEN {CHANNEL}")
        except BaseException:
            self._connection.close()
            raise

    def read(self, last: int) -> tuple[int, list[Event]]:
        return _events(self._connection.execute(_SQL.format("%s", "%s"), (last, READ_LIMIT)).fetchall())

    def fileno(self) -> int | None:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()
