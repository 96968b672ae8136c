"""The change feed: nothing lost, nothing out of order, and no claim to be up to date that is not true."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.postgres import until

from aims.clock import IdSource, SystemClock
from aims.storage.database import Database
from aims.storage.feed import READ_LIMIT, Event
from aims.storage.schema import change
from aims.storage.write import Change, Name, Outcome, Stop, Verdict, Write


def say(_: Outcome) -> bytes:
    return b"{}"


@dataclass
class Seen:
    """A subscriber that remembers."""

    events: list[Event] = field(default_factory=list)
    reloads: int = 0
    broken: bool = False

    def handle(self, event: Event) -> None:
        if self.broken:
            raise RuntimeError("a room with a defect")
        self.events.append(event)

    def reload(self) -> None:
        if self.broken:
            raise RuntimeError("a room with a defect")
        self.reloads += 1

    @property
    def numbers(self) -> list[int]:
        return [event.seq for event in self.events]


@pytest.fixture
def other(database_url: str, tmp_path: Path, clock: SystemClock, ids: IdSource) -> Iterator[Database]:
    """A second process of the same host, as far as the store can tell."""
    database = Database.open(database_url, clock=clock, ids=ids, folder=tmp_path)
    yield database
    database.close()


def write(*bodies: bytes) -> Write:
    return Write(record=say, changes=tuple(Change("entry", "e", body) for body in bodies))


def follow(database: Database) -> Seen:
    seen = Seen()
    database.feed.subscribe(seen.handle, seen.reload)
    database.feed.start()
    until(lambda: seen.reloads == 1 and database.feed.fresh())
    return seen


def test_every_process_sees_every_change_at_once_and_in_order(database: Database, other: Database) -> None:
    seen, far = follow(database), follow(other)
    name = Name("agent", "spiffe://local.test/agents/a")
    started = database.feed._clock.monotonic()
    database.commit_now(
        Write(record=say, changes=(Change("stop", "a", b'{"by":"operator"}', Stop(name, blocked=True)),))
    )
    other.commit_now(write(b"2", b"3"))
    until(lambda: len(seen.events) == 3 and len(far.events) == 3)
    assert seen.events == far.events
    assert seen.events[0] == Event(1, "stop", "a", b'{"by":"operator"}', Stop(name, blocked=True))
    assert [event.body for event in seen.events[1:]] == [b"2", b"3"]
    assert database.feed.head == other.feed.head == 3
    assert database.feed._clock.monotonic() - started < 0.9, "woken, not found by the read of each second"


def test_another_host_is_woken_by_the_database(
    postgresql_url: str, tmp_path: Path, clock: SystemClock, ids: IdSource
) -> None:
    here = Database.open(postgresql_url, clock=clock, ids=ids, folder=tmp_path / "here")
    there = Database.open(postgresql_url, clock=clock, ids=ids, folder=tmp_path / "there")
    try:
        seen = follow(there)
        started = clock.monotonic()
        here.commit_now(write(b"1"))
        until(lambda: seen.numbers == [1])
        assert clock.monotonic() - started < 0.9
    finally:
        here.close()
        there.close()


async def test_a_delayed_commit_holds_the_next_number_back(database: Database, other: Database) -> None:
    seen = Seen()
    database.feed.subscribe(seen.handle, seen.reload)
    database.feed.start()
    begun, gate = threading.Event(), threading.Event()

    def slow(_: Outcome) -> bytes:
        begun.set()
        return b"{}" if gate.wait(10) else b""

    first = asyncio.ensure_future(database.commit(Write(record=slow, changes=(Change("a", "a", b"1"),))))
    assert await asyncio.to_thread(begun.wait, 10)
    second = asyncio.ensure_future(other.commit(write(b"2")))
    done, _ = await asyncio.wait([second], timeout=0.2)
    assert not done
    assert not seen.events
    gate.set()
    assert (await first).seq == 1
    assert (await second).seq == 2
    await asyncio.to_thread(until, lambda: seen.numbers == [1, 2])


def test_two_writers_at_once_leave_no_hole(database: Database, other: Database) -> None:
    seen = follow(database)
    outcomes: list[Outcome] = []

    async def work(source: Database) -> None:
        for n in range(40):
            outcomes.extend(await asyncio.gather(source.commit(write(b"a", b"b")), source.commit(Write(record=say))))
            assert n < 40

    threads = [threading.Thread(target=asyncio.run, args=(work(source),)) for source in (database, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [outcome.verdict for outcome in outcomes] == [Verdict.COMMITTED] * 160
    until(lambda: len(seen.events) == 160)
    assert seen.numbers == list(range(1, 161))
    assert seen.reloads == 1


def test_more_lines_than_one_read_takes_arrive_in_order(database: Database) -> None:
    seen = follow(database)
    database.commit_now(write(*[b"{}"] * (READ_LIMIT + 5)))
    until(lambda: database.feed.head == READ_LIMIT + 5)
    assert seen.numbers == list(range(1, READ_LIMIT + 6))
    assert seen.reloads == 1


@pytest.mark.parametrize("gone", [{1, 2, 3}, {2}, {3}])
def test_a_missing_number_asks_for_everything(database: Database, gone: set[int]) -> None:
    seen = follow(database)
    # The lines vanish in the transaction that makes them, so the reader never had them.
    marks = ",".join(map(str, gone))
    session = database.committer._session
    publish = session.publish

    def lossy(lines: object) -> None:
        publish(lines)  # type: ignore[arg-type] # handed through
        sql = f"DELETE FROM change WHERE seq IN ({marks})"  # noqa: S608 - numbers of this test
        session._connection.execute(sql)  # type: ignore[attr-defined] # inside

    session.publish = lossy  # type: ignore[method-assign] # a fault
    database.commit_now(write(b"1", b"2", b"3"))
    until(lambda: seen.reloads == 2 and database.feed.head == 3)
    assert seen.events == []
    session.publish = publish  # type: ignore[method-assign] # the fault ends
    database.commit_now(write(b"4"))
    until(lambda: seen.numbers == [4])
    assert seen.reloads == 2


def test_a_head_that_went_back_asks_for_everything(database: Database) -> None:
    database.commit_now(write(b"1", b"2"))
    seen = follow(database)
    session = database.committer._session
    session._connection.execute("DELETE FROM change")  # type: ignore[attr-defined] # a restored backup
    session._connection.execute("UPDATE feed_head SET seq = 1")  # type: ignore[attr-defined] # the same
    until(lambda: seen.reloads == 2 and database.feed.head == 1)
    assert change.name == "change"


def test_a_broken_subscriber_is_reloaded_and_hides_no_one_but_the_proof(database: Database, clock: SystemClock) -> None:
    bad, good = Seen(), Seen()
    database.feed.subscribe(bad.handle, bad.reload)
    database.feed.subscribe(good.handle, good.reload)
    database.feed.start()
    until(database.feed.fresh)
    bad.broken = True
    database.commit_now(write(b"1"))
    until(lambda: good.numbers == [1])
    assert database.feed.head == 0, "one room has not seen number 1"
    clock.offset += 5
    database.commit_now(write(b"2"))
    until(lambda: good.numbers == [1, 2])
    assert not database.feed.fresh(), "the last proof is five seconds old"
    assert database.feed.head == 0
    bad.broken = False
    database.commit_now(write(b"3"))
    until(lambda: database.feed.head == 3)
    assert bad.reloads == 2
    assert bad.numbers in ([], [3]), "the reload brought the rest"


async def test_the_proof_of_being_up_to_date_grows_old_while_the_loop_is_blocked(
    database: Database, clock: SystemClock
) -> None:
    seen = Seen()
    database.feed.subscribe(seen.handle, seen.reload)
    assert not database.feed.fresh()
    database.feed.start(asyncio.get_running_loop())
    await _until(database.feed.fresh)
    database.commit_now(write(b"1"))
    # Blocks the loop: the change is committed, but no handler can have run.
    assert seen.events == []
    clock.offset += 5
    assert not database.feed.fresh()
    await _until(lambda: seen.numbers == [1])
    await _until(database.feed.fresh)


def test_a_late_subscriber_is_loaded_and_a_parting_one_is_left_alone(database: Database) -> None:
    follow(database)
    late = Seen()
    leave = database.feed.subscribe(late.handle, late.reload)
    until(lambda: late.reloads == 1)
    database.commit_now(write(b"1"))
    until(lambda: late.numbers == [1])
    leave()
    database.commit_now(write(b"2"))
    until(lambda: database.feed.head == 2)
    assert late.numbers == [1]


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is awaited is state of another thread
            await asyncio.sleep(0.005)
