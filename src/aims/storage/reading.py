"""Reading: connections whose transactions are one snapshot each, and the stops with the number that they stand for."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError

from aims.storage.engine import Location, reading_engine, sqlite_failure
from aims.storage.errors import StorageError
from aims.storage.schema import feed_head, stop
from aims.storage.write import Name, StopKind

T = TypeVar("T")

_KINDS: dict[str, StopKind] = {kind: kind for kind in ("agent", "person", "grant", "node", "instance")}


@dataclass(frozen=True, slots=True)
class StopRow:
    """A stop: what was issued with an epoch below ``seq`` is dead; while ``blocked`` nothing is issued at all."""

    name: Name
    seq: int
    blocked: bool


@dataclass(frozen=True, slots=True)
class Stops:
    """All stops as they were when the feed stood at ``head``."""

    head: int
    rows: tuple[StopRow, ...]


class Reader:
    """Read access to the tables of all rooms."""

    def __init__(self, location: Location) -> None:
        self._engine: Engine = reading_engine(location)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that sees one snapshot and cannot write.

        Point reads by primary key on SQLite may run on the event loop; everything else goes through ``read``.
        Raises ``StorageError``: ``unreachable``, ``not_migrated``, ``internal`` or what the disk says.
        """
        try:
            with self._engine.connect() as connection, connection.begin():
                yield connection
        except DBAPIError as error:
            raise StorageError(_reason(error), str(error.orig)) from error

    async def read(self, question: Callable[[Connection], T]) -> T:
        """Run ``question`` with a reading connection in a thread: for lists, reports and everything on PostgreSQL."""
        return await asyncio.to_thread(self._ask, question)

    def _ask(self, question: Callable[[Connection], T]) -> T:
        with self.reading() as connection:
            return question(connection)

    def stops(self) -> Stops:
        """Load every stop and the number of the feed that the list stands for."""
        return self._ask(_stops)

    def head(self) -> int:
        """Return the number of the last change."""
        return self._ask(_head)

    def close(self) -> None:
        self._engine.dispose()


def _head(connection: Connection) -> int:
    row = connection.execute(select(feed_head.c.seq)).first()
    if row is None:
        raise StorageError("not_migrated", "feed_head has no row")
    return int(row.seq)


def _stops(connection: Connection) -> Stops:
    head = _head(connection)
    rows = connection.execute(select(stop.c.kind, stop.c.id, stop.c.seq, stop.c.blocked)).all()
    return Stops(head, tuple(StopRow(Name(_KINDS[kind], id_), seq, blocked) for kind, id_, seq, blocked in rows))


def _reason(error: DBAPIError) -> str:
    if error.orig is None:
        return "internal"
    state = getattr(error.orig, "sqlstate", None)
    if state == "42P01" or "no such table" in str(error.orig):
        return "not_migrated"
    if isinstance(error.orig, sqlite3.Error):
        return sqlite_failure(error.orig) or "internal"
    # PostgreSQL gives no state at all for a connection that could not be made or broke.
    return "unreachable" if (state or "08").startswith(("08", "57P")) else "internal"
