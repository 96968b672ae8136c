"""Tables of the log's order: which record got which place, and how far each writer has been taken.

A place is given in a transaction before any file is written, and never changes. All statements run on a SQLAlchemy
connection of the caller; transactions are the sequencer's.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from aims.audit.errors import AuditError
from aims.storage.engine import Location, connect_postgresql, connect_sqlite
from aims.storage.schema import Number, metadata, outbox, writer

audit_sequence = sa.Table(
    "audit_sequence",
    metadata,
    sa.Column("seq", Number, primary_key=True, autoincrement=False),
    sa.Column("writer", sa.String(26), nullable=False),
    sa.Column("n", Number, nullable=False),
    sa.Column("recorded", Number, nullable=False),
    sa.UniqueConstraint("writer", "n"),
)
"""The places. ``recorded`` (Unix milliseconds) is part of what is hashed."""

audit_cursor = sa.Table(
    "audit_cursor",
    metadata,
    sa.Column("writer", sa.String(26), primary_key=True),
    sa.Column("n", Number, nullable=False),
)
"""The number of the last record that was taken from each writer."""

audit_head = sa.Table(
    "audit_head",
    metadata,
    sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("origin", sa.String(200), nullable=False),
    sa.Column("size", Number, nullable=False),
    sa.Column("published", Number, nullable=False),
    sa.Column("recorded", Number, nullable=False),
    sa.CheckConstraint("one = 1", name="one"),
)
"""One row: places given, places published in a checkpoint, and the time of the last place."""


@dataclass(frozen=True, slots=True)
class Head:
    """How far the log is. ``published`` is never above ``size``."""

    origin: str
    size: int
    published: int
    recorded: int


class Waiting(NamedTuple):
    """A writer with records that have no place yet: numbers ``first`` to ``last``."""

    writer: str
    first: int
    last: int


class Place(NamedTuple):
    """The place of one record, with its body."""

    seq: int
    writer: str
    n: int
    recorded: int
    body: bytes


def sequencing_engine(location: Location) -> sa.Engine:
    """Make the engine of a ``Sequencer``: one durable connection; on SQLite transactions take the lock at once.

    Raises ``StorageError`` at the first use, as the storage room does.
    """
    if location.backend == "postgresql":
        return sa.create_engine(
            "postgresql+psycopg://",
            creator=lambda: _by_hand(connect_postgresql(location, name="aims-log")),
            poolclass=sa.QueuePool,
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
        )
    engine = sa.create_engine(
        "sqlite://", creator=lambda: connect_sqlite(location), poolclass=sa.QueuePool, pool_size=1, max_overflow=0
    )
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def turn(location: Location) -> Callable[[], AbstractContextManager[object]]:
    """Return what a ``Sequencer`` holds around its transactions.

    On SQLite that is the lock which committers pass on, so that none of them waits behind a busy handler; PostgreSQL
    needs none.
    """
    if location.backend == "postgresql":
        return nullcontext
    path = location.path.with_name(location.path.name + "-baton")

    @contextmanager
    def held() -> Iterator[None]:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    return held


def _by_hand(connection: Any) -> Any:
    connection.autocommit = False
    return connection


def head(connection: sa.Connection) -> Head | None:
    """Return how far the log is; None before its first record."""
    row = connection.execute(sa.select(audit_head)).one_or_none()
    return None if row is None else Head(row.origin, row.size, row.published, row.recorded)


def begin(connection: sa.Connection, origin: str) -> Head:
    """Make the row of a new log."""
    connection.execute(sa.insert(audit_head).values(one=1, origin=origin, size=0, published=0, recorded=0))
    return Head(origin, 0, 0, 0)


def advance(connection: sa.Connection, old: Head, new: Head) -> None:
    """Move the head, and keep every other sequencer out until the transaction ends.

    Raises ``AuditError("sequencer_displaced")`` unless the head is still ``old``.
    """
    statement = (
        sa.update(audit_head)
        .where(
            audit_head.c.one == 1,
            audit_head.c.origin == old.origin,
            audit_head.c.size == old.size,
            audit_head.c.published == old.published,
        )
        .values(size=new.size, published=new.published, recorded=new.recorded)
    )
    if connection.execute(statement).rowcount != 1:
        raise AuditError("sequencer_displaced")


def waiting(connection: sa.Connection) -> list[Waiting]:
    """Return the writers that have committed more than was taken, by name.

    To be read before the records: a record that a writer counts is then visible, or gone.
    """
    taken = sa.func.coalesce(audit_cursor.c.n, 0)
    statement = (
        sa.select(writer.c.writer, taken + 1, writer.c.n)
        .select_from(writer.outerjoin(audit_cursor, writer.c.writer == audit_cursor.c.writer))
        .where(writer.c.n > taken)
        .order_by(writer.c.writer)
    )
    return [Waiting(*row) for row in connection.execute(statement)]


def bodies(connection: sa.Connection, of: Waiting, limit: int) -> dict[int, bytes]:
    """Return at most ``limit`` waiting records of one writer by their numbers, the lowest first."""
    statement = (
        sa.select(outbox.c.n, outbox.c.body)
        .where(outbox.c.writer == of.writer, outbox.c.n >= of.first, outbox.c.n <= of.last)
        .order_by(outbox.c.n)
        .limit(limit)
    )
    return {row.n: bytes(row.body) for row in connection.execute(statement)}


def taken(connection: sa.Connection, name: str) -> int:
    """Return the number of the last record that was taken from a writer, 0 for none."""
    statement = sa.select(audit_cursor.c.n).where(audit_cursor.c.writer == name)
    return connection.execute(statement).scalar_one_or_none() or 0


def give(connection: sa.Connection, places: Sequence[Place], cursors: Mapping[str, int], own: str) -> None:
    """Store places and cursors; the bodies of the log's ``own`` records go into the outbox beside all others."""
    if places:
        connection.execute(
            sa.insert(audit_sequence),
            [{"seq": p.seq, "writer": p.writer, "n": p.n, "recorded": p.recorded} for p in places],
        )
    mine = [{"writer": own, "n": p.n, "body": p.body} for p in places if p.writer == own]
    if mine:
        connection.execute(sa.insert(outbox), mine)
    for name, n in cursors.items():
        moved = sa.update(audit_cursor).where(audit_cursor.c.writer == name).values(n=n)
        if connection.execute(moved).rowcount == 0:
            connection.execute(sa.insert(audit_cursor).values(writer=name, n=n))


def unpublished(connection: sa.Connection, begin_at: int, end: int, limit: int = 1_000) -> Iterator[Place]:
    """Yield the places [begin_at, end) with their bodies, in order and without a hole.

    Raises ``AuditError("assignment_lost")`` if one of them is no longer there.
    """
    joined = audit_sequence.join(
        outbox, sa.and_(audit_sequence.c.writer == outbox.c.writer, audit_sequence.c.n == outbox.c.n)
    )
    statement = (
        sa.select(
            audit_sequence.c.seq, audit_sequence.c.writer, audit_sequence.c.n, audit_sequence.c.recorded, outbox.c.body
        )
        .select_from(joined)
        .where(audit_sequence.c.seq >= sa.bindparam("low"), audit_sequence.c.seq < end)
        .order_by(audit_sequence.c.seq)
        .limit(limit)
    )
    at = begin_at
    while at < end:
        rows = connection.execute(statement, {"low": at}).all()
        for row in rows:
            if row.seq != at:
                break
            yield Place(row.seq, row.writer, row.n, row.recorded, bytes(row.body))
            at += 1
        else:
            if rows:
                continue
        if at < end:
            raise AuditError("assignment_lost", f"seq {at}")


def place_of(connection: sa.Connection, name: str, n: int) -> int | None:
    """Return the ``seq`` of the record that a writer committed as number ``n``; None while it has none."""
    statement = sa.select(audit_sequence.c.seq).where(audit_sequence.c.writer == name, audit_sequence.c.n == n)
    return connection.execute(statement).scalar_one_or_none()


_PUBLISHED: Final = (
    sa.select(audit_sequence.c.seq)
    .where(
        audit_sequence.c.writer == outbox.c.writer,
        audit_sequence.c.n == outbox.c.n,
        audit_sequence.c.seq < sa.bindparam("below"),
    )
    .exists()
)
_PRUNE: Final = sa.delete(outbox).where(_PUBLISHED)


def prune(connection: sa.Connection, below: int) -> int:
    """Remove published bodies of places under ``below``, which the tiles have too; return how many."""
    known = head(connection)
    limit = min(below, known.published) if known else 0
    return connection.execute(_PRUNE, {"below": limit}).rowcount
