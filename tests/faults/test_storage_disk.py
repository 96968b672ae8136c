"""A disk that is full, cannot be written or fails, and a PostgreSQL that goes away."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select
from tests.postgres import Cluster, programs, until

from aims.clock import IdSource, SystemClock, SystemIds
from aims.server.database import migrate
from aims.storage import sqlite as back_end
from aims.storage.database import Database
from aims.storage.engine import Location, connect_sqlite
from aims.storage.errors import StorageError
from aims.storage.schema import once, outbox
from aims.storage.write import Claim, Effect, Outcome, Verdict, Write

ADD = insert(once)
LATER = 4_000_000_000  # the same in every process


def write(id_: str, size: int = 1_000) -> Write:
    return Write(
        record=lambda _: id_.encode() + b"." * size,
        claims=(Claim("jti", "key", id_, LATER),),
        effects=(Effect(ADD, {"kind": "svid", "id_hash": id_.encode(), "expires": LATER}),),
    )


def check_books(database: Database, committed: set[str], refused: Collection[str] = ()) -> None:
    """Every answered Write is there with its record, a refused one is not, and no number is missing."""
    with database.reading() as connection:
        rows = {bytes(id_).decode() for id_ in connection.scalars(select(once.c.id_hash))}
        records = connection.execute(select(outbox.c.n, outbox.c.body).order_by(outbox.c.n)).all()
    assert committed <= rows
    assert not rows.intersection(refused)
    assert {bytes(body).split(b".")[0].decode() for _, body in records} == rows
    assert [n for n, _ in records] == list(range(1, len(records) + 1))


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Settings that every connection of the writer gets: a disk that a test fills and empties."""
    settings: dict[str, str] = {}

    def connect(location: Location) -> sqlite3.Connection:
        connection = connect_sqlite(location)
        for name, value in settings.items():
            connection.execute(f"PRAGMA {name} = {value}").fetchall()
        return connection

    monkeypatch.setattr(back_end, "connect_sqlite", connect)
    return settings  # type: ignore[return-value] # nothing to take down


@pytest.mark.parametrize(
    ("name", "value", "later", "reason"),
    [("max_page_count", "30", "100000", "full"), ("query_only", "ON", "OFF", "read_only")],
)
async def test_everybody_is_told_that_the_disk_is_full_or_read_only_and_it_goes_on_afterwards(  # noqa: PLR0917 - fixtures and a table
    sqlite_url: str,
    tmp_path: Path,
    clock: SystemClock,
    ids: IdSource,
    limited: dict[str, str],
    name: str,
    value: str,
    later: str,
    reason: str,
) -> None:
    database = Database.open(sqlite_url, clock=clock, ids=ids, folder=tmp_path)
    assert (await database.commit(write("before"))).verdict is Verdict.COMMITTED
    limited[name] = value
    database.committer._in_sync = False  # the next batch opens anew, with the setting
    outcomes = await asyncio.gather(*(database.commit(write(f"w{n}")) for n in range(200)), return_exceptions=True)
    refused = {f"w{n}" for n, outcome in enumerate(outcomes) if isinstance(outcome, StorageError)}
    assert {outcome.code for outcome in outcomes if isinstance(outcome, StorageError)} == {f"storage.{reason}"}
    assert not database.healthy
    limited[name] = later
    await asyncio.to_thread(until, lambda: database.healthy)
    assert (await database.commit(write("after"))).verdict is Verdict.COMMITTED
    committed = {"before", "after", *(f"w{n}" for n in range(200))} - refused
    check_books(database, committed, refused)
    database.close()


LIMITED = "import sys; from test_storage_disk import run_out_of_room; run_out_of_room(*sys.argv[1:])"


def run_out_of_room(url: str, folder: str) -> None:
    """Commit until the kernel refuses to let the file grow, then until it allows it again."""
    clock = SystemClock()
    database = Database.open(url, clock=clock, ids=SystemIds(clock), folder=Path(folder))
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    committed: set[str] = set()
    refused: dict[str, str] = {}
    for n in range(1_000):
        try:
            database.commit_now(write(f"w{n}", 10_000))
            committed.add(f"w{n}")
        except StorageError as error:
            refused[f"w{n}"] = error.reason
            if len(refused) > 5:
                break
    assert committed
    assert set(refused.values()) <= {"io", "full"}
    assert len(refused) > 5
    assert not database.healthy
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    until(lambda: database.healthy)
    assert database.commit_now(write("after")).verdict is Verdict.COMMITTED
    check_books(database, committed | {"after"}, refused)
    database.close()


def test_a_file_that_the_kernel_lets_grow_no_more_loses_nothing(sqlite_url: str, tmp_path: Path) -> None:
    here = Path(__file__)
    paths = os.pathsep.join([str(here.parent), str(here.parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, sqlite_url, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def own_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """A server that the test may kill; ``cluster`` decides whether PostgreSQL is there at all."""
    found = programs()
    assert found is not None
    own = Cluster(found)
    try:
        own.start()
        yield own
    finally:
        own.close()


async def test_a_postgresql_that_is_killed_under_load_comes_back_without_loss(
    own_cluster: Cluster, tmp_path: Path, clock: SystemClock, ids: IdSource
) -> None:
    url = own_cluster.url(own_cluster.fresh(), tcp=True)
    migrate(url)
    database = Database.open(url, clock=clock, ids=ids, folder=tmp_path)
    database.feed.start()
    committed: set[str] = set()
    failed: dict[str, str] = {}
    running = True

    async def caller(me: int) -> None:
        n = 0
        while running:
            n += 1
            id_ = f"c{me}-{n}"
            try:
                outcome = await database.commit(write(id_))
            except StorageError as error:
                failed[id_] = error.reason
                await asyncio.sleep(0.02)
            else:
                assert outcome == Outcome(Verdict.COMMITTED)
                committed.add(id_)

    async def progress() -> None:
        before = len(committed)
        await asyncio.to_thread(until, lambda: len(committed) > before + 200, 20)

    async def kill_and_restart() -> None:
        nonlocal running
        for pause in (False, True):
            await progress()
            await asyncio.to_thread(own_cluster.kill)
            if pause:
                await asyncio.to_thread(until, lambda: not database.healthy, 15)
            await asyncio.to_thread(own_cluster.restart)
        await progress()
        running = False

    await asyncio.gather(kill_and_restart(), *(caller(me) for me in range(32)))
    assert set(failed.values()) <= {"unreachable", "unknown", "busy"}
    assert "unreachable" in failed.values(), "the long absence was answered"
    assert database.healthy
    check_books(database, committed, {id_ for id_, reason in failed.items() if reason == "unreachable"})
    await asyncio.to_thread(until, database.feed.fresh)
    database.close()


async def test_a_postgresql_that_became_read_only_is_named(
    postgresql_url: str, tmp_path: Path, clock: SystemClock, ids: IdSource, cluster: Cluster
) -> None:
    database = Database.open(postgresql_url, clock=clock, ids=ids, folder=tmp_path)
    name = Location.parse(postgresql_url).url.database
    assert (await database.commit(write("before"))).verdict is Verdict.COMMITTED

    def turn(value: str) -> None:
        with cluster.admin() as admin:
            admin.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}'.encode())
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))

    turn("on")
    with pytest.raises(StorageError) as caught:
        await database.commit(write("refused"))
    assert caught.value.code == "storage.read_only"
    assert not database.healthy
    turn("off")
    await asyncio.to_thread(until, lambda: database.healthy)
    assert (await database.commit(write("after"))).verdict is Verdict.COMMITTED
    check_books(database, {"before", "after"}, {"refused"})
    database.close()


async def test_servers_that_claim_the_same_proofs_in_opposite_order_never_wait_in_a_circle(
    postgresql_url: str, tmp_path: Path, clock: SystemClock, ids: IdSource
) -> None:
    servers = [Database.open(postgresql_url, clock=clock, ids=ids, folder=tmp_path) for _ in range(2)]
    everything = [Claim("jti", "key", str(n), LATER) for n in range(400)]
    codes = [f"code {n}" for n in range(200)]
    await asyncio.gather(*(servers[0].commit(write(code)) for code in codes))

    async def claim(server: Database, claims: list[Claim]) -> int:
        outcomes = await asyncio.gather(
            *(server.commit(Write(record=lambda _: b"{}", claims=(claim,))) for claim in claims)
        )
        return sum(outcome.verdict is Verdict.COMMITTED for outcome in outcomes)

    won = await asyncio.gather(claim(servers[0], everything), claim(servers[1], everything[::-1]))
    assert sum(won) == len(everything)
    with servers[0].reading() as connection:
        deadlocks = connection.exec_driver_sql(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).scalar_one()
    assert deadlocks == 0
    for server in servers:
        server.close()


async def test_a_file_that_is_replaced_under_the_writer_takes_no_write(
    tmp_path: Path, clock: SystemClock, ids: IdSource
) -> None:
    path, kept, copy = tmp_path / "aims.db", tmp_path / "kept.db", tmp_path / "copy.db"
    url = f"sqlite:///{path}"
    migrate(url)
    database = Database.open(url, clock=clock, ids=ids, folder=tmp_path)
    try:
        assert (await database.commit(write("before"))).verdict is Verdict.COMMITTED
        with sqlite3.connect(path) as source, sqlite3.connect(copy) as target:
            source.backup(target)  # with this writer's own row in it
        source.close()
        target.close()
        assert (await database.commit(write("after the copy"))).verdict is Verdict.COMMITTED
        path.rename(kept)
        for put_in_place in (None, copy):
            if put_in_place is not None:
                put_in_place.rename(path)
            with pytest.raises(StorageError) as caught:
                await database.commit(write("lost"))
            assert caught.value.reason == "replaced"
            assert not database.healthy
        kept.replace(path)
        await asyncio.to_thread(until, lambda: database.healthy)
        assert (await database.commit(write("again"))).verdict is Verdict.COMMITTED
        check_books(database, {"before", "after the copy", "again"}, {"lost"})
    finally:
        database.close()
