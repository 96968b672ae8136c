"""The plan's statements on SQLite: row by row on the driver, behind a baton that processes of one host pass around."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.sql.dml import UpdateBase

from aims.storage.engine import Location, connect_sqlite, sqlite_failure
from aims.storage.errors import StorageError
from aims.storage.plan import last_stops
from aims.storage.pruning import deletions
from aims.storage.session import ClashError, Failure, Fault, Numbered
from aims.storage.statement import Compiler
from aims.storage.write import Name

_CLASHES = frozenset(
    {
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
        sqlite3.SQLITE_CONSTRAINT_ROWID,
        sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY,
    }
)


class SqliteSession:
    """The writing connection of one process.

    ``BEGIN IMMEDIATE`` behind the busy handler lets one process starve another for most of a second. A ``flock`` on
    a file beside the database is passed on in order, and falls by itself when its holder dies.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._compiler = Compiler(SQLiteDialect_pysqlite(paramstyle="qmark"))
        self._connection = connect_sqlite(location)
        self._cursor = self._connection.cursor()
        self._file = _identity(location)
        self._baton = _open_baton(location)

    def begin(self, *, exclusive: bool) -> None:  # noqa: ARG002 - one writer at a time is always exclusive
        fcntl.flock(self._baton, fcntl.LOCK_EX)
        self._require_same_file()
        self._cursor.execute("BEGIN IMMEDIATE")

    def _require_same_file(self) -> None:
        # What is written to a file that has lost its name is answered, and gone at the next start.
        if _identity(self._location) != self._file:
            raise StorageError("replaced", str(self._location.path))

    def stops(self, names: Collection[Name]) -> Mapping[Name, tuple[int, bool]]:
        found = {}
        for name in names:
            row = self._cursor.execute(
                "SELECT seq, blocked FROM stop WHERE kind = ? AND id = ?", (name.kind, name.id)
            ).fetchone()
            if row is not None:
                found[name] = (row[0], bool(row[1]))
        return found

    def claim(self, keys: Sequence[tuple[bytes, int]]) -> Collection[bytes]:
        sql = "INSERT INTO claim (k, expires) VALUES (?, ?) ON CONFLICT DO NOTHING"
        return {key for key, expires in keys if self._cursor.execute(sql, (key, expires)).rowcount}

    def consume(self, uses: Sequence[tuple[str, bytes, str]], now: int) -> Collection[tuple[str, bytes]]:
        sql = "UPDATE once SET used_by = ? WHERE kind = ? AND id_hash = ? AND used_by IS NULL AND expires > ?"
        return {
            (kind, id_hash)
            for kind, id_hash, used_by in uses
            if self._cursor.execute(sql, (used_by, kind, id_hash, now)).rowcount
        }

    def apply(
        self, statement: UpdateBase, rows: Sequence[Mapping[str, Any]], *, must_match: bool
    ) -> Sequence[int] | None:
        compiled = self._compiler.compiled(statement, rows[0], must_match=must_match)
        try:
            if must_match:
                return [self._cursor.execute(compiled.sql, compiled.values(row)).rowcount for row in rows]
            if len(rows) == 1:
                self._cursor.execute(compiled.sql, compiled.values(rows[0]))
            else:
                self._cursor.executemany(compiled.sql, [compiled.values(row) for row in rows])
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode in _CLASHES:
                raise ClashError from error
            raise
        return None

    def advance(self, count: int) -> int:
        row = self._cursor.execute("UPDATE feed_head SET seq = seq + ? RETURNING seq", (count,)).fetchone()
        return int(row[0])

    def publish(self, lines: Sequence[Numbered]) -> None:
        self._cursor.executemany(
            "INSERT INTO change (seq, at, kind, id, body, stop_kind, stop_id, stop_blocked)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [line.row for line in lines],
        )
        self._cursor.executemany(
            "INSERT INTO stop (kind, id, seq, blocked) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (kind, id) DO UPDATE SET seq = excluded.seq, blocked = excluded.blocked",
            [(name.kind, name.id, seq, blocked) for name, seq, blocked in last_stops(lines)],
        )

    def record(self, writer: str, reached: int, bodies: Sequence[bytes]) -> None:
        self._cursor.executemany(
            "INSERT INTO outbox (writer, n, body) VALUES (?, ?, ?)",
            [(writer, n, body) for n, body in enumerate(bodies, reached + 1)],
        )
        self._cursor.execute(
            "UPDATE writer SET n = ? WHERE writer = ? AND n = ?", (reached + len(bodies), writer, reached)
        )
        if self._cursor.rowcount != 1:
            raise StorageError("internal", "the row of this writer is gone or not where it was left")

    def announce(self, seq: int) -> None:
        """Nothing: processes of one host are woken by the feed."""

    def commit(self) -> None:
        self._cursor.execute("COMMIT")
        fcntl.flock(self._baton, fcntl.LOCK_UN)

    def rollback(self) -> None:
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._cursor.execute("ROLLBACK")
        fcntl.flock(self._baton, fcntl.LOCK_UN)

    def join(self, writer: str) -> None:
        self.begin(exclusive=False)
        self._cursor.execute("INSERT INTO writer (writer, n) VALUES (?, 0)", (writer,))
        self.commit()

    def reached(self, writer: str) -> int:
        row = self._cursor.execute("SELECT n FROM writer WHERE writer = ?", (writer,)).fetchone()
        if row is None:
            raise StorageError("internal", "the row of this writer is gone")
        return int(row[0])

    def probe(self, writer: str) -> None:
        self.begin(exclusive=False)
        self._cursor.execute("INSERT INTO outbox (writer, n, body) VALUES (?, 0, zeroblob(65535))", (writer,))
        self._cursor.execute("DELETE FROM outbox WHERE writer = ? AND n = 0", (writer,))
        self.commit()

    def prune(self, now: int, limit: int) -> int:
        self.begin(exclusive=False)
        gone = sum(self._cursor.execute(sql, (bound, limit)).rowcount for sql, bound in deletions(now, "?"))
        self.commit()
        return gone

    def reopen(self) -> None:
        self._require_same_file()
        self._connection.close()
        self._connection = connect_sqlite(self._location)
        self._cursor = self._connection.cursor()

    def close(self) -> None:
        self._connection.close()
        os.close(self._baton)

    def judge(self, error: Exception) -> Fault:
        if isinstance(error, StorageError):
            return Fault(Failure.DOWN, error.reason)
        if isinstance(error, ClashError):
            return Fault(Failure.CLASH)
        reason = sqlite_failure(error)
        if reason:
            return Fault(Failure.DOWN, reason)
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Fault(Failure.AGAIN, "busy")
        if isinstance(error, OSError):
            return Fault(Failure.DOWN, "io")
        return Fault(Failure.POISON)


def _identity(location: Location) -> tuple[int, int]:
    try:
        found = location.path.stat()
    except FileNotFoundError as error:
        raise StorageError("replaced", f"{location.path} is gone") from error
    return found.st_dev, found.st_ino


def _open_baton(location: Location) -> int:
    path = location.path.with_name(location.path.name + "-baton")
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError("read_only", f"{path}: {error.strerror}") from error
