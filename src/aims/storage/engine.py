"""Open a database from its URL, with the settings that durability needs, checked.

``sqlite:///relative/path``, ``sqlite:////absolute/path`` or ``postgresql://user@host/name`` (psycopg 3). The writer and
the feed use raw DBAPI connections; reading goes through a SQLAlchemy engine whose transactions are one snapshot each
and cannot write.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psycopg
from sqlalchemy import URL, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from aims.storage.errors import StorageError

Backend = Literal["sqlite", "postgresql"]

BUSY_SECONDS = 2.0
_FULL = 2  # PRAGMA synchronous
_READ_ONLY = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH})


@dataclass(frozen=True, slots=True)
class Location:
    """Where a database is. ``path`` is the file of SQLite. The representation hides a password."""

    backend: Backend
    path: Path = Path()
    url: URL = field(default_factory=lambda: URL.create("sqlite"))

    @classmethod
    def parse(cls, text: str) -> Location:
        """Read a database URL. Raises ``StorageError`` ``url``."""
        try:
            url = make_url(text)
        except (ArgumentError, ValueError) as error:
            raise StorageError("url") from error
        if url.drivername == "sqlite":
            if not url.database or url.database.startswith((":", "file:")) or url.host or url.query:
                raise StorageError("url", "SQLite needs the path of a file and nothing else")
            return cls("sqlite", Path(url.database).absolute(), url)
        if url.drivername in ("postgresql", "postgresql+psycopg"):
            if not url.database:
                raise StorageError("url", "PostgreSQL needs the name of a database")
            return cls("postgresql", url=url.set(drivername="postgresql"))
        raise StorageError("url", "only sqlite and postgresql are known")


def sqlite_failure(error: BaseException) -> str:
    """Name the reason of a SQLite error that concerns the whole database, or return ""."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return ""
    primary = code & 0xFF
    if primary == sqlite3.SQLITE_FULL:
        return "full"
    if primary in _READ_ONLY:
        return "read_only"
    if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOLFS):
        return "io"
    if primary == sqlite3.SQLITE_NOTADB:
        return "not_a_database"
    return "damaged" if primary == sqlite3.SQLITE_CORRUPT else ""


def connect_sqlite(location: Location, *, create: bool = False, query_only: bool = False) -> sqlite3.Connection:
    """Open the file with WAL, ``synchronous=FULL`` and foreign keys; transactions are begun by hand.

    Raises ``StorageError``: ``not_migrated`` (no file and not ``create``), ``read_only``, ``full``, ``io``,
    ``not_a_database``, ``damaged``, ``settings``.
    """
    path = location.path
    try:
        if create:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        elif not path.exists():
            raise StorageError("not_migrated", f"{path} does not exist")
    except OSError as error:
        raise StorageError("read_only", f"{path}: {error.strerror}") from error
    try:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            set_up_sqlite(connection, query_only=query_only)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise StorageError(sqlite_failure(error) or "io", f"{path}: {error}") from error
    return connection


def set_up_sqlite(connection: sqlite3.Connection, *, query_only: bool) -> None:
    """Apply the settings and read them back, because SQLite ignores in silence what it cannot do."""
    wanted = {"journal_mode": "wal", "synchronous": _FULL, "foreign_keys": 1}
    for name, value in wanted.items():
        connection.execute(f"PRAGMA {name} = {value}").fetchall()
        (got,) = connection.execute(f"PRAGMA {name}").fetchone()
        if got != value:
            raise StorageError("settings", f"SQLite keeps {name} = {got}")
    if query_only:
        connection.execute("PRAGMA query_only = ON")


def connect_postgresql(location: Location, *, name: str = "aims") -> psycopg.Connection[tuple[Any, ...]]:
    """Open an autocommit connection that commits synchronously and cannot wait or idle for ever.

    Raises ``StorageError``: ``unreachable``, ``settings``.
    """
    text = location.url.render_as_string(hide_password=False)
    try:
        connection = psycopg.connect(
            text,
            autocommit=True,
            application_name=name,
            connect_timeout=5,
            tcp_user_timeout=10_000,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
        )
    except psycopg.Error as error:
        raise StorageError("unreachable", str(error).strip().replace("\n", " ")) from error
    try:
        connection.execute("SET synchronous_commit = on")
        connection.execute("SET lock_timeout = '5s'")
        connection.execute("SET statement_timeout = '30s'")
        # A process that hangs inside a transaction would keep every other server waiting for its locks.
        connection.execute("SET idle_in_transaction_session_timeout = '10s'")
        _check_durability(connection)
    except psycopg.Error as error:
        connection.close()
        raise StorageError("unreachable", str(error).strip().replace("\n", " ")) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _check_durability(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    for setting in ("synchronous_commit", "fsync"):
        row = connection.execute(f"SHOW {setting}").fetchone()
        if row is None or row[0] != "on":
            raise StorageError("settings", f"PostgreSQL has {setting} = {row and row[0]}")


def reading_engine(location: Location) -> Engine:
    """Make the engine for reads: each transaction is one snapshot, and a statement that writes is refused."""
    if location.backend == "postgresql":
        return create_engine(
            location.url.set(drivername="postgresql+psycopg"),
            isolation_level="REPEATABLE READ",
            connect_args={
                "options": "-c default_transaction_read_only=on",
                "connect_timeout": 5,
                "application_name": "aims-read",
            },
            pool_pre_ping=True,
        )
    engine = create_engine("sqlite://", creator=lambda: connect_sqlite(location, query_only=True), poolclass=QueuePool)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine
