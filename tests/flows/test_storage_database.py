"""Opening, migrating and locking a database, and what is said when that fails."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text
from tests.postgres import Cluster

from aims.clock import IdSource, SystemClock
from aims.monitoring.judgement import judge
from aims.monitoring.model import Applied, Cause, Remedy, Said
from aims.monitoring.store import read_standing
from aims.server.database import all_tables, migrate, newest, prepare
from aims.storage.database import Database
from aims.storage.engine import Location, connect_sqlite
from aims.storage.errors import StorageError
from aims.storage.lock import SupervisorLock
from aims.storage.write import Name, Write


def _engine_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


def test_the_migrations_lead_to_the_tables_that_the_code_declares(database_url: str) -> None:
    engine = create_engine(_engine_url(database_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, all_tables()) == []
        assert set(inspect(connection).get_table_names()) == {*all_tables().tables, "alembic_version"}
        assert context.get_current_revision() == newest()
    engine.dispose()


def test_the_tables_go_down_and_up_again(database_url: str) -> None:
    migrate(database_url, "base")
    engine = create_engine(_engine_url(database_url))
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    engine.dispose()
    migrate(database_url)
    migrate(database_url)
    prepare(database_url)


def test_a_standing_from_before_keeps_its_order_of_events(database_url: str) -> None:
    migrate(database_url, "0006")
    engine = create_engine(_engine_url(database_url))
    agent, other, idp = Name("agent", "spiffe://local.test/agents/a"), Name("person", "p"), "https://idp.example/a'b"
    with engine.begin() as connection:
        for name, blocked, held_by in ((agent, False, ""), (other, True, idp)):
            row = (name.kind, name.id, blocked, held_by, 20_000, 10_000, 0, 3)
            connection.execute(
                text("INSERT INTO standing VALUES (:a, :b, :c, :d, :e, :f, :g, :h)"),
                dict(zip("abcdefgh", row, strict=True)),
            )
    migrate(database_url)
    with engine.connect() as connection:
        resumed, stopped = read_standing(connection, agent), read_standing(connection, other)
    engine.dispose()
    assert (resumed.resumed_at, resumed.revision, resumed.said) == (10_000, 3, {"admin": Said(0, 10_000)})
    assert stopped.said == {"admin": Said(0, 10_000), idp: Said(20_000, 0)}
    cause = Cause(txn="t", at=9_000, request_id="r", decision={}, member={}, issuer=idp)
    assert judge(resumed, Remedy.SUSPEND, cause)[0] is Applied.STALE
    assert judge(stopped, Remedy.RESUME, cause)[0] is Applied.STALE
    assert judge(stopped, Remedy.RESUME, replace(cause, at=30_000))[0] is Applied.DONE


def test_a_file_is_migrated_by_itself_and_postgresql_only_on_demand(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "new" / "aims.db"
    prepare(f"sqlite:///{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    url = cluster.url(cluster.fresh(), tcp=True)
    with pytest.raises(StorageError) as caught:
        prepare(url)
    assert (caught.value.code, caught.value.hint) == ("storage.not_migrated", "Run: aims server migrate")
    migrate(url)
    prepare(url)


def test_a_database_of_a_newer_version_is_left_alone(database_url: str) -> None:
    engine = create_engine(_engine_url(database_url))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    for step in (prepare, migrate):
        with pytest.raises(StorageError) as caught:
            step(database_url)
        assert caught.value.code == "storage.not_migrated"


def _refused(url: str, folder: Path, clock: SystemClock, ids: IdSource) -> str:
    with pytest.raises(StorageError) as caught:
        Database.open(url, clock=clock, ids=ids, folder=folder)
    return caught.value.code


def test_what_cannot_be_opened_is_named(
    tmp_path: Path, clock: SystemClock, ids: IdSource, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _refused(f"sqlite:///{tmp_path}/none.db", tmp_path, clock, ids) == "storage.not_migrated"
    (tmp_path / "text.db").write_text("this is no database, only a text of some length\n" * 100)
    assert _refused(f"sqlite:///{tmp_path}/text.db", tmp_path, clock, ids) == "storage.not_a_database"
    connect_sqlite(Location.parse(f"sqlite:///{tmp_path}/empty.db"), create=True).close()
    assert _refused(f"sqlite:///{tmp_path}/empty.db", tmp_path, clock, ids) == "storage.not_migrated"
    assert _refused(cluster.url(cluster.fresh()), tmp_path, clock, ids) == "storage.not_migrated"
    assert _refused(cluster.url("missing"), tmp_path, clock, ids) == "storage.unreachable"
    assert _refused("postgresql://aims:hunter2@127.0.0.1:1/aims", tmp_path, clock, ids) == "storage.unreachable"
    assert _refused("mysql://h/d", tmp_path, clock, ids) == "storage.url"
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert _refused(f"sqlite:///{tmp_path}/empty.db", place, clock, ids) == "storage.read_only"
    with pytest.raises(StorageError) as caught:
        prepare(f"sqlite:///{tmp_path}/file/below.db")
    assert caught.value.code == "storage.read_only"


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
def test_a_file_that_this_user_may_not_write_is_named(sqlite_url: str) -> None:
    path = Location.parse(sqlite_url).path
    for parent in path.parents[:3]:
        parent.chmod(0o755)
    path.chmod(0o444)
    child = os.fork()
    if child == 0:
        code = "none"
        try:
            os.setuid(65534)
            migrate(sqlite_url)
        except StorageError as error:
            code = error.reason
        finally:
            os._exit(0 if code == "read_only" else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_database_that_does_not_keep_what_it_confirms_is_refused(
    sqlite_url: str, postgresql_url: str, tmp_path: Path, clock: SystemClock, ids: IdSource
) -> None:
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        database = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{database}" SET synchronous_commit = off')
    # Ours overrides the default of the database.
    Database.open(postgresql_url, clock=clock, ids=ids, folder=tmp_path).close()
    connection_ = connect_sqlite(Location.parse(sqlite_url))
    assert connection_.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection_.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection_.execute("PRAGMA foreign_keys").fetchone() == (1,)
    connection_.close()


def test_a_second_supervisor_is_refused(database_url: str, tmp_path: Path) -> None:
    location = Location.parse(database_url)
    first = SupervisorLock(location, tmp_path / "data")
    with pytest.raises(StorageError) as caught:
        SupervisorLock(location, tmp_path / "data")
    assert caught.value.code == "storage.locked"
    assert f"process {os.getpid()}" in caught.value.detail
    if location.backend == "sqlite":
        with pytest.raises(StorageError) as caught:
            SupervisorLock(location, tmp_path / "other")
        assert caught.value.code == "storage.locked"
    first.release()
    second = SupervisorLock(location, tmp_path / "data")
    second.release()


async def test_each_start_is_a_writer_of_its_own(
    database_url: str, tmp_path: Path, clock: SystemClock, ids: IdSource
) -> None:
    writers = []
    for _ in range(2):
        database = Database.open(database_url, clock=clock, ids=ids, folder=tmp_path)
        await database.commit(Write(record=lambda _: b"{}"))
        writers.append(database.writer)
        database.close()
    engine = create_engine(_engine_url(database_url))
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT writer, n FROM outbox ORDER BY writer").all()
    engine.dispose()
    assert [tuple(row) for row in rows] == [(writer, 1) for writer in sorted(writers)]
