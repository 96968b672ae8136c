"""Guarded writes per second through the committer, beside what the database does without it.

Each Write has one name fence, one claim, one insert effect and a record of 1,100 octets; 512 callers wait at a time.
The baselines insert the same record: one row per transaction, and 256 rows per transaction.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid
from sqlalchemy import insert
from tests.postgres import Cluster, programs

from aims.clock import SystemClock, SystemIds
from aims.server.database import migrate
from aims.storage.database import Database
from aims.storage.engine import Location, connect_postgresql, connect_sqlite
from aims.storage.schema import once
from aims.storage.write import Claim, Effect, Name, Outcome, Verdict, Write

RECORD = b"r" * 1_100
CALLERS = 512
WRITES = 20_000
SINGLE_SECONDS = 1.5
BATCH = 256
INSERT = insert(once)


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the table."""

    back_end: str
    what: str
    operations: int
    seconds: float
    median: float = 0.0
    p99: float = 0.0

    @property
    def rate(self) -> float:
        return self.operations / self.seconds


def main() -> None:
    lines: list[Measured] = []
    for url, back_end in _databases():
        migrate(url)
        lines += [_single(url, back_end), _batch(url, back_end), asyncio.run(_guarded(url, back_end))]
    grid = Grid("back end", "operation", "done", "seconds", "per second", "median ms", "p99 ms")
    for line in lines:
        waits = [f"{1000 * wait:.1f}" if wait else "" for wait in (line.median, line.p99)]
        cells = (line.back_end, line.what, f"{line.operations:,}", f"{line.seconds:.2f}", f"{line.rate:,.0f}", *waits)
        grid.add_row(*cells)
    Console(width=120).print(grid)


def _databases() -> Iterator[tuple[str, str]]:
    # Not in a temporary folder: where that is memory, a synchronous commit costs nothing and proves nothing.
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        yield f"sqlite:///{folder}/aims.db", "SQLite, full sync"
    found = programs()
    if found is None:
        print("PostgreSQL is not installed: left out")
        return
    with _running(found) as cluster:
        yield cluster.url(cluster.fresh()), "PostgreSQL"


@contextmanager
def _running(bin_: Path) -> Iterator[Cluster]:
    cluster = Cluster(bin_, Path("/var/tmp"))  # noqa: S108 - a fresh folder below it
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


def _raw(url: str) -> tuple[Callable[[str], object], Callable[[int, int], object], Callable[[], None]]:
    location = Location.parse(url)
    if location.backend == "sqlite":
        lite = connect_sqlite(location)
        return lite.execute, lambda first, last: _rows_sqlite(lite, first, last), lite.close
    server = connect_postgresql(location)

    def rows(first: int, last: int) -> None:
        server.execute(
            "INSERT INTO outbox (writer, n, body) SELECT 'raw', * FROM unnest(%b::bigint[], %b::bytea[])",
            (list(range(first, last)), [RECORD] * (last - first)),
        )

    return server.execute, rows, server.close


def _rows_sqlite(connection: sqlite3.Connection, first: int, last: int) -> None:
    connection.executemany(
        "INSERT INTO outbox (writer, n, body) VALUES ('raw', ?, ?)", [(n, RECORD) for n in range(first, last)]
    )


def _single(url: str, back_end: str) -> Measured:
    return _transactions(url, back_end, "raw INSERT and COMMIT, one row", 1, first=1)


def _batch(url: str, back_end: str) -> Measured:
    return _transactions(url, back_end, f"raw INSERTs and COMMIT, {BATCH} rows", BATCH, first=10_000_000)


def _transactions(url: str, back_end: str, what: str, size: int, *, first: int) -> Measured:
    execute, rows, close = _raw(url)
    done = 0
    started = time.perf_counter()
    while time.perf_counter() - started < SINGLE_SECONDS:
        execute("BEGIN")
        rows(first + done, first + done + size)
        execute("COMMIT")
        done += size
    seconds = time.perf_counter() - started
    close()
    return Measured(back_end, what, done, seconds)


def _record(_: Outcome) -> bytes:
    return RECORD


async def _guarded(url: str, back_end: str) -> Measured:
    clock = SystemClock()
    ids = SystemIds(clock)
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        database = Database.open(url, clock=clock, ids=ids, folder=Path(folder))
        expires = int(clock.now()) + 60
        left = iter(range(WRITES))

        async def caller() -> None:
            for number in left:
                write = Write(
                    record=_record,
                    names=(Name("agent", f"spiffe://local.test/agents/{number % 100}"),),
                    claims=(Claim("jti", "key", ids.new(), expires),),
                    effects=(
                        Effect(INSERT, {"kind": "grant", "id_hash": ids.new().encode("ascii"), "expires": expires}),
                    ),
                )
                asked = time.perf_counter()
                outcome = await database.commit(write)
                assert outcome.verdict is Verdict.COMMITTED
                waits.append(time.perf_counter() - asked)

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        seconds = time.perf_counter() - started
        with database.reading() as connection:
            records, claims, rows = connection.exec_driver_sql(
                "SELECT (SELECT count(*) FROM outbox WHERE writer <> 'raw'), (SELECT count(*) FROM claim),"
                " (SELECT count(*) FROM once)"
            ).one()
        database.close()
    assert records == claims == rows == WRITES, (records, claims, rows)
    waits.sort()
    what = "guarded Writes (fence, claim, insert, record)"
    return Measured(back_end, what, WRITES, seconds, waits[len(waits) // 2], waits[len(waits) * 99 // 100])
