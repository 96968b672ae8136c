"""The plan's statements on PostgreSQL: set statements over arrays, keys in ascending order.

Batches of all servers share one advisory lock: those that may number changes take it alone, all others together. So
numbers appear in order, and a batch that has read the stops commits before the next stop does, never after.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import errors
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql.dml import UpdateBase

from aims.storage.engine import Location, connect_postgresql
from aims.storage.errors import StorageError
from aims.storage.plan import last_stops
from aims.storage.pruning import deletions
from aims.storage.session import ClashError, Failure, Fault, Numbered
from aims.storage.statement import Compiler
from aims.storage.write import Name

CHANNEL = "aims_feed"
_FEED_LOCK = 0x61696D735F666565  # "aims_fee"

_AGAIN = frozenset({"40P01", "40001", "55P03"})
_DOWN = {"53100": "full", "25006": "read_only", "58030": "io", "53200": "busy", "53300": "busy"}


class PostgresqlSession:
    """The writing connection of one process: a direct one, never through a pooler."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._compiler = Compiler(PGDialect_psycopg(paramstyle="format"))  # type: ignore[no-untyped-call] # SQLAlchemy leaves it bare
        self._connection = connect_postgresql(location, name="aims-writer")

    def begin(self, *, exclusive: bool) -> None:
        shared = "" if exclusive else "_shared"
        self._connection.execute(
            f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock{shared}({_FEED_LOCK})", prepare=False
        )

    def stops(self, names: Collection[Name]) -> Mapping[Name, tuple[int, bool]]:
        ordered = list(names)
        rows = self._connection.execute(
            "SELECT u.i, s.seq, s.blocked FROM unnest(%b::text[], %b::text[]) WITH ORDINALITY AS u (kind, id, i)"
            " JOIN stop s ON s.kind = u.kind AND s.id = u.id",
            ([str(name.kind) for name in ordered], [name.id for name in ordered]),
        ).fetchall()
        return {ordered[i - 1]: (seq, blocked) for i, seq, blocked in rows}

    def claim(self, keys: Sequence[tuple[bytes, int]]) -> Collection[bytes]:
        rows = self._connection.execute(
            "INSERT INTO claim (k, expires) SELECT * FROM unnest(%b::bytea[], %b::bigint[])"
            " ON CONFLICT DO NOTHING RETURNING k",
            ([key for key, _ in keys], [expires for _, expires in keys]),
            binary=True,
        ).fetchall()
        return {key for (key,) in rows}

    def consume(self, uses: Sequence[tuple[str, bytes, str]], now: int) -> Collection[tuple[str, bytes]]:
        kinds, hashes, users = [list(column) for column in zip(*uses, strict=True)]
        # Locked in order first: an UPDATE over a join locks in the order of its plan.
        free = self._connection.execute(
            "SELECT o.kind, o.id_hash FROM once o JOIN unnest(%b::text[], %b::bytea[]) AS u (kind, id_hash)"
            " ON o.kind = u.kind AND o.id_hash = u.id_hash WHERE o.used_by IS NULL AND o.expires > %s"
            " ORDER BY o.kind, o.id_hash FOR UPDATE OF o",
            (kinds, hashes, now),
        ).fetchall()
        if not free:
            return ()
        rows = self._connection.execute(
            "UPDATE once SET used_by = u.used_by FROM unnest(%b::text[], %b::bytea[], %b::text[])"
            " AS u (kind, id_hash, used_by) WHERE once.kind = u.kind AND once.id_hash = u.id_hash"
            " AND once.used_by IS NULL AND once.expires > %s RETURNING once.kind, once.id_hash",
            (kinds, hashes, users, now),
        ).fetchall()
        return {(kind, bytes(id_hash)) for kind, id_hash in rows}

    def apply(
        self, statement: UpdateBase, rows: Sequence[Mapping[str, Any]], *, must_match: bool
    ) -> Sequence[int] | None:
        compiled = self._compiler.compiled(statement, rows[0], must_match=must_match)
        values = [compiled.values(row) for row in rows]
        try:
            if must_match:
                with self._connection.pipeline():
                    cursors = [self._connection.execute(compiled.sql, row) for row in values]
                return [cursor.rowcount for cursor in cursors]
            if len(values) == 1:
                self._connection.execute(compiled.sql, values[0])
            elif compiled.rows_sql:
                self._connection.execute(compiled.rows_sql, [list(column) for column in zip(*values, strict=True)])
            else:
                self._connection.cursor().executemany(compiled.sql, values)
        except (errors.UniqueViolation, errors.ForeignKeyViolation) as error:
            raise ClashError from error
        return None

    def advance(self, count: int) -> int:
        row = self._connection.execute("UPDATE feed_head SET seq = seq + %s RETURNING seq", (count,)).fetchone()
        if row is None:
            raise StorageError("not_migrated", "feed_head has no row")
        return int(row[0])

    def publish(self, lines: Sequence[Numbered]) -> None:
        self._connection.execute(
            "INSERT INTO change (seq, at, kind, id, body, stop_kind, stop_id, stop_blocked) SELECT * FROM unnest("
            "%b::bigint[], %b::bigint[], %b::text[], %b::text[], %b::bytea[], %s::text[], %s::text[], %s::boolean[])",
            [list(column) for column in zip(*(line.row for line in lines), strict=True)],
        )
        stops = last_stops(lines)
        if stops:
            self._connection.execute(
                "INSERT INTO stop (kind, id, seq, blocked)"
                " SELECT * FROM unnest(%b::text[], %b::text[], %b::bigint[], %b::boolean[])"
                " ON CONFLICT (kind, id) DO UPDATE SET seq = excluded.seq, blocked = excluded.blocked",
                (
                    [str(name.kind) for name, _, _ in stops],
                    [name.id for name, _, _ in stops],
                    [seq for _, seq, _ in stops],
                    [blocked for _, _, blocked in stops],
                ),
            )

    def record(self, writer: str, reached: int, bodies: Sequence[bytes]) -> None:
        last = reached + len(bodies)
        with self._connection.pipeline():
            self._connection.execute(
                "INSERT INTO outbox (writer, n, body) SELECT %s, * FROM unnest(%b::bigint[], %b::bytea[])",
                (writer, list(range(reached + 1, last + 1)), list(bodies)),
            )
            raised = self._connection.execute(
                "UPDATE writer SET n = %s WHERE writer = %s AND n = %s", (last, writer, reached)
            )
        if raised.rowcount != 1:
            raise StorageError("internal", "the row of this writer is gone or not where it was left")

    def announce(self, seq: int) -> None:
        self._connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, str(seq)))

    def commit(self) -> None:
        # COMMIT of a transaction that has failed is answered with ROLLBACK, not with an error.
        if self._connection.execute("COMMIT").statusmessage != "COMMIT":
            raise StorageError("internal", "the transaction had failed before its commit")

    def rollback(self) -> None:
        with suppress(psycopg.Error):
            if not self._connection.closed:
                self._connection.execute("ROLLBACK")

    def join(self, writer: str) -> None:
        self._connection.execute("INSERT INTO writer (writer, n) VALUES (%s, 0)", (writer,))

    def reached(self, writer: str) -> int:
        # The row lock waits for a COMMIT that the server still works on after its connection broke.
        row = self._connection.execute("SELECT n FROM writer WHERE writer = %s FOR UPDATE", (writer,)).fetchone()
        if row is None:
            raise StorageError("internal", "the row of this writer is gone")
        return int(row[0])

    def probe(self, writer: str) -> None:
        with self._connection.transaction():
            self._connection.execute(
                "INSERT INTO outbox (writer, n, body) VALUES (%s, 0, decode(repeat('00', 65535), 'hex'))", (writer,)
            )
            self._connection.execute("DELETE FROM outbox WHERE writer = %s AND n = 0", (writer,))

    def prune(self, now: int, limit: int) -> int:
        return sum(self._connection.execute(sql, (bound, limit)).rowcount for sql, bound in deletions(now, "%s"))

    def reopen(self) -> None:
        self._connection.close()
        self._connection = connect_postgresql(self._location, name="aims-writer")

    def close(self) -> None:
        self._connection.close()

    def judge(self, error: Exception) -> Fault:
        if isinstance(error, ClashError):
            return Fault(Failure.CLASH)
        if self._connection.closed:
            return Fault(Failure.LOST, "unreachable")
        if isinstance(error, StorageError):
            return Fault(Failure.DOWN, error.reason)
        return _judge(getattr(error, "sqlstate", None) or "")


def _judge(state: str) -> Fault:
    if state in _AGAIN:
        return Fault(Failure.AGAIN, "busy")
    if state in _DOWN:
        return Fault(Failure.DOWN, _DOWN[state])
    if state.startswith(("08", "57P")):
        return Fault(Failure.LOST, "unreachable")
    return Fault(Failure.POISON)
