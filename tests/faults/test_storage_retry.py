"""What the committer does when a transaction fails for a reason that is nobody's: again, and exactly once."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import bindparam, insert, select, update

from aims.clock import IdSource, SystemClock
from aims.storage.database import Database
from aims.storage.errors import StorageError
from aims.storage.schema import once, outbox, stop
from aims.storage.write import Change, Claim, Effect, Name, Outcome, Stop, Verdict, Write

LATER = 4_000_000_000
ADD = insert(once)
TOUCH = update(once).where(once.c.kind == bindparam("which")).values(used_by=bindparam("by"))


def say(outcome: Outcome) -> bytes:
    return str(outcome.verdict).encode()


def full_write(number: int) -> Write:
    name = Name("agent", str(number))
    return Write(
        record=say,
        claims=(Claim("jti", "key", str(number), LATER),),
        effects=(Effect(ADD, {"kind": f"k{number}", "id_hash": b"1", "expires": LATER}),),
        changes=(Change("stop", name.id, b"{}", Stop(name, blocked=True)),),
    )


def broken(database: Database) -> Exception:
    """The driver's error for a connection that is gone or a disk that fails."""
    if database.location.backend == "sqlite":
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        return error
    session: Any = database.committer._session
    session._connection.close()
    return psycopg.OperationalError("server closed the connection unexpectedly")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_commit_whose_answer_was_lost_is_counted_once(
    database: Database, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    session: Any = database.committer._session
    commit: Callable[[], None] = session.commit
    calls = 0

    def lose() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            if when == "after":
                commit()
            raise broken(database)
        commit()

    monkeypatch.setattr(session, "commit", lose)
    outcomes = await asyncio.gather(*(database.commit(full_write(n)) for n in range(8)), return_exceptions=True)
    if when == "before" and database.location.backend == "sqlite":
        # The disk failed and nothing was written: those who were in that batch are told.
        failed = [outcome for outcome in outcomes if isinstance(outcome, StorageError)]
        assert {error.code for error in failed} == {"storage.io"}
        outcomes = [outcome for outcome in outcomes if isinstance(outcome, Outcome)]
    verdicts = [outcome.verdict for outcome in outcomes if isinstance(outcome, Outcome)]
    assert verdicts == [Verdict.COMMITTED] * len(outcomes)
    with database.reading() as connection:
        assert len(connection.execute(select(once)).all()) == len(outcomes)
        assert [row.n for row in connection.execute(select(outbox.c.n).order_by(outbox.c.n))] == list(
            range(1, len(outcomes) + 1)
        )
        assert len(connection.execute(select(stop)).all()) == len(outcomes)
    assert database.stops().head == len(outcomes), "the feed has no hole"
    assert sorted(outcome.seq for outcome in outcomes if isinstance(outcome, Outcome)) == list(
        range(1, len(outcomes) + 1)
    )


async def test_a_commit_that_nobody_can_ask_about_is_called_unknown(
    database: Database, monkeypatch: pytest.MonkeyPatch, clock: SystemClock
) -> None:
    session: Any = database.committer._session
    commit: Callable[[], None] = session.commit

    def lose() -> None:
        commit()
        raise broken(database)

    def stay_away() -> None:
        clock.offset += 6  # patience ends
        raise StorageError("unreachable")

    with monkeypatch.context() as patch:
        patch.setattr(session, "commit", lose)
        patch.setattr(session, "reopen", stay_away)
        with pytest.raises(StorageError) as caught:
            await database.commit(full_write(1))
        assert caught.value.code == "storage.unknown"
        assert not database.healthy
    outcome = await database.commit(full_write(2))
    assert outcome == Outcome(Verdict.COMMITTED, seq=2), "number 1 was taken by the unknown one"
    assert database.healthy
    with database.reading() as connection:
        assert [row.n for row in connection.execute(select(outbox.c.n).order_by(outbox.c.n))] == [1, 2]


async def test_a_deadlock_with_somebody_else_is_tried_again(
    postgresql_url: str, tmp_path: Path, clock: SystemClock, ids: IdSource
) -> None:
    database = Database.open(postgresql_url, clock=clock, ids=ids, folder=tmp_path)
    await database.commit(
        Write(
            record=say,
            effects=tuple(Effect(ADD, {"kind": kind, "id_hash": b"1", "expires": LATER}) for kind in ("a", "b")),
        )
    )
    with psycopg.connect(postgresql_url) as stranger:
        stranger.execute("UPDATE once SET used_by = 'stranger' WHERE kind = 'a'")
        both = tuple(Effect(TOUCH, {"which": kind, "by": "us"}) for kind in ("b", "a"))
        task = asyncio.ensure_future(database.commit(Write(record=say, effects=both)))
        # The writer holds b and waits for a before the stranger asks for b.
        await asyncio.to_thread(_until_waiting, postgresql_url)
        stranger.execute("SET LOCAL deadlock_timeout = '60s'")  # so that it is not the one who gives way
        await asyncio.to_thread(stranger.execute, "UPDATE once SET used_by = 'stranger' WHERE kind = 'b'")
        stranger.commit()
    assert await task == Outcome(Verdict.COMMITTED)
    with database.reading() as connection:
        assert {row.used_by for row in connection.execute(select(once.c.used_by))} == {"us"}
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert connection.exec_driver_sql(deadlocks).scalar_one() == 1
    database.close()


def _until_waiting(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as watcher:
        for _ in range(1_000):
            waiting = watcher.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
            if waiting is not None and waiting[0]:
                return
    raise AssertionError("the writer does not wait")


async def test_a_database_that_is_locked_for_long_is_called_busy(
    sqlite_url: str, tmp_path: Path, clock: SystemClock, ids: IdSource
) -> None:
    database = Database.open(sqlite_url, clock=clock, ids=ids, folder=tmp_path)
    session: Any = database.committer._session
    session._connection.execute("PRAGMA busy_timeout = 20")
    stranger = sqlite3.connect(tmp_path / "aims.db", isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError) as caught:
        await database.commit(full_write(1))
    assert caught.value.code == "storage.busy"
    stranger.execute("ROLLBACK")
    stranger.close()
    assert (await database.commit(full_write(1))).verdict is Verdict.COMMITTED
    database.close()


async def test_a_writer_that_hangs_is_not_healthy(database: Database, clock: SystemClock) -> None:
    begun, gate = threading.Event(), threading.Event()

    def hang(_: Outcome) -> bytes:
        begun.set()
        return b"{}" if gate.wait(10) else b""

    task = asyncio.ensure_future(database.commit(Write(record=hang)))
    assert await asyncio.to_thread(begun.wait, 10)
    assert database.healthy
    clock.offset += 6
    assert not database.healthy
    gate.set()
    assert (await task).verdict is Verdict.COMMITTED
    await database.commit(Write(record=say))
    assert database.healthy


async def test_rows_of_one_statement_keep_their_nulls_and_types(database: Database) -> None:
    add_stop = insert(stop)
    rows = [
        Effect(ADD, {"kind": f"k{n}", "id_hash": bytes([n]), "expires": 2**40 + n, "used_by": None}) for n in range(3)
    ]
    flags = [Effect(add_stop, {"kind": "agent", "id": f"ü%{n}", "seq": n, "blocked": n == 1}) for n in range(3)]
    assert (await database.commit(Write(record=say, effects=(*rows, *flags)))).verdict is Verdict.COMMITTED
    with database.reading() as connection:
        found = [tuple(row) for row in connection.execute(select(once).order_by(once.c.kind))]
        marks = [tuple(row) for row in connection.execute(select(stop).order_by(stop.c.seq))]
    assert found == [(f"k{n}", bytes([n]), 2**40 + n, None) for n in range(3)]
    assert marks == [("agent", f"ü%{n}", n, n == 1) for n in range(3)]
