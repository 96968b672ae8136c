"""Several real processes on one database: races, stops, and a writer that is killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, insert, select
from tests.postgres import until

from aims.clock import IdSource, SystemClock, SystemIds
from aims.storage.database import Database
from aims.storage.schema import once, outbox, stop, writer
from aims.storage.write import Change, Claim, Consume, Effect, Name, Outcome, Stop, Verdict, Write

SPAWN = multiprocessing.get_context("spawn")
ADD = insert(once)
LATER = 4_000_000_000  # the same in every process
ROUNDS = 5
RIVALS = 8  # in each of two processes


def say(outcome: Outcome) -> bytes:
    return str(outcome.verdict).encode()


def opened(url: str, folder: str) -> Database:
    clock = SystemClock()
    return Database.open(url, clock=clock, ids=SystemIds(clock), folder=Path(folder))


@contextmanager
def processes(target: Callable[..., None], *arguments: tuple[Any, ...]) -> Iterator[list[SpawnProcess]]:
    started = [SPAWN.Process(target=target, args=each) for each in arguments]
    for process in started:
        process.start()
    try:
        yield started
        for process in started:
            process.join(30)
            assert process.exitcode == 0
    finally:
        for process in started:
            process.kill()
            process.join(10)


def contend(url: str, folder: str, barrier: Barrier, results: Queue[tuple[str, int, str]]) -> None:
    database = opened(url, folder)

    async def race(kind: str, number: int, write: Write) -> None:
        for outcome in await asyncio.gather(*(database.commit(write) for _ in range(RIVALS))):
            results.put((kind, number, str(outcome.verdict)))

    for number in range(ROUNDS):
        barrier.wait(30)
        claims = (Claim("jti", "key", f"proof {number}", LATER),)
        asyncio.run(race("claim", number, Write(record=say, claims=claims)))
        barrier.wait(30)
        consume = Consume("code", f"code {number}".encode())
        asyncio.run(race("consume", number, Write(record=say, consume=consume)))
    database.close()


def test_of_sixteen_rivals_in_two_processes_one_succeeds(database: Database, database_url: str, tmp_path: Path) -> None:
    for number in range(ROUNDS):
        effect = Effect(ADD, {"kind": "code", "id_hash": f"code {number}".encode(), "expires": LATER})
        database.commit_now(Write(record=say, effects=(effect,)))
    barrier = SPAWN.Barrier(2)
    results: Queue[tuple[str, int, str]] = SPAWN.Queue()
    arguments = (database_url, str(tmp_path), barrier, results)
    with processes(contend, arguments, arguments):
        found = Counter(results.get(timeout=60) for _ in range(2 * 2 * ROUNDS * RIVALS))
    for number in range(ROUNDS):
        assert found["claim", number, "committed"] == found["consume", number, "committed"] == 1
        assert found["claim", number, "replayed"] == found["consume", number, "consumed"] == 2 * RIVALS - 1
    with database.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(outbox)) == ROUNDS + 2 * 2 * ROUNDS * RIVALS


def replay(url: str, folder: str, barrier: Barrier, results: Queue[list[str]], space: str) -> None:
    database = opened(url, folder)

    async def batch() -> list[str]:
        gate = threading.Event()
        plug = asyncio.ensure_future(database.commit(Write(record=lambda _: b"plug" if gate.wait(30) else b"")))
        ids = [f"{space} {n}" for n in range(63)]
        ids.insert(31, "seen before")
        writes = [Write(record=say, claims=(Claim("jti", "key", id_, LATER),)) for id_ in ids]
        tasks = [asyncio.ensure_future(database.commit(write)) for write in writes]
        await asyncio.sleep(0)
        gate.set()
        await plug
        return [str((await task).verdict) for task in tasks]

    barrier.wait(30)
    results.put(asyncio.run(batch()))
    database.close()


def test_a_replay_in_a_batch_of_64_costs_one_answer_in_each_of_two_processes(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    database.commit_now(Write(record=say, claims=(Claim("jti", "key", "seen before", LATER),)))
    barrier = SPAWN.Barrier(2)
    results: Queue[list[str]] = SPAWN.Queue()
    common = (database_url, str(tmp_path), barrier, results)
    with processes(replay, (*common, "one"), (*common, "two")):
        answers = [results.get(timeout=60) for _ in range(2)]
    expected = ["committed"] * 64
    expected[31] = "replayed"
    assert answers == [expected, expected]
    with database.reading() as connection:
        bodies = Counter(bytes(body) for body in connection.scalars(select(outbox.c.body)))
    assert bodies == {b"committed": 1 + 2 * 63, b"replayed": 2, b"plug": 2}


def issue(url: str, folder: str, running: Event, done: Event, rounds: int) -> None:
    """Issue for agent 0, 1, ... each until it is refused, with a memory that never learns of a stop."""
    database = opened(url, folder)
    ids = SystemIds(SystemClock())

    async def one(number: int) -> None:
        verdicts: list[Verdict] = []
        while len(verdicts) < 5:
            effect = Effect(ADD, {"kind": f"svid {number}", "id_hash": ids.new().encode(), "expires": LATER})
            outcome = await database.commit(Write(record=say, names=(Name("agent", str(number)),), effects=(effect,)))
            if outcome.verdict is not Verdict.COMMITTED or verdicts:
                verdicts.append(outcome.verdict)
        assert set(verdicts) == {Verdict.STOPPED}, "once stopped, always stopped"

    async def many() -> None:
        for number in range(rounds):
            await asyncio.gather(*(one(number) for _ in range(16)))

    running.set()
    asyncio.run(many())
    assert done.wait(30)
    database.close()


def test_nothing_is_issued_after_a_stop_has_answered(database: Database, database_url: str, tmp_path: Path) -> None:
    rounds = 8
    running, done = [SPAWN.Event(), SPAWN.Event()], SPAWN.Event()

    def issued(number: int) -> int:
        with database.reading() as connection:
            rows = connection.scalar(select(func.count()).select_from(once).where(once.c.kind == f"svid {number}"))
        return rows or 0

    counts = []
    with processes(issue, *((database_url, str(tmp_path), event, done, rounds) for event in running)):
        for event in running:
            assert event.wait(30)
        for number in range(rounds):
            until(lambda number=number: issued(number) > 20)  # type: ignore[misc] # mypy does not infer the default
            name = Name("agent", str(number))
            outcome = database.commit_now(
                Write(record=say, changes=(Change("stop", name.id, b"{}", Stop(name, True)),))
            )
            assert outcome.verdict is Verdict.COMMITTED
            counts.append(issued(number))
        done.set()
    assert [issued(number) for number in range(rounds)] == counts
    with database.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(stop)) == rounds


CHILD = "import sys; from test_storage_processes import keep_a_ledger; keep_a_ledger(*sys.argv[1:])"


def keep_a_ledger(url: str, folder: str) -> None:
    """Commit for ever; write the identifier of each Write to stdout once it was answered."""
    database = opened(url, folder)
    ids = SystemIds(SystemClock())

    async def caller() -> None:
        while True:
            id_ = ids.new()
            write = Write(
                record=lambda _: id_.encode() + b"." * 1_000,  # noqa: B023 - called before the next turn
                claims=(Claim("jti", "key", id_, LATER),),
                effects=(Effect(ADD, {"kind": "svid", "id_hash": id_.encode(), "expires": LATER}),),
            )
            assert (await database.commit(write)).verdict is Verdict.COMMITTED
            os.write(1, f"{id_}\n".encode())

    async def many() -> None:
        await asyncio.gather(*(caller() for _ in range(64)))

    asyncio.run(many())


@pytest.mark.parametrize("answers", [1, 200, 1_500])
def test_a_killed_writer_has_kept_everything_that_it_answered(
    database: Database, database_url: str, tmp_path: Path, answers: int
) -> None:
    here = Path(__file__)
    paths = os.pathsep.join([str(here.parent), str(here.parents[2])])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, database_url, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert child.stdout is not None
    try:
        ledger = [child.stdout.readline().strip() for _ in range(answers)]
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    ledger += [line.strip() for line in child.stdout if line.endswith(b"\n")]
    child.stdout.close()
    # Goes through only when the server has noticed the death and let go of the locks.
    stopped = database.commit_now(Write(record=say, changes=(Change("a", "a", b"{}"),)))
    assert stopped.verdict is Verdict.COMMITTED
    with database.reading() as connection:
        rows = {bytes(id_) for id_ in connection.scalars(select(once.c.id_hash))}
        records = connection.execute(select(outbox.c.n, outbox.c.body).where(outbox.c.writer != database.writer)).all()
        reached = connection.scalar(select(writer.c.n).where(writer.c.writer != database.writer))
    assert len(ledger) >= answers
    assert set(ledger) <= rows
    assert {bytes(body)[:26] for _, body in records} == rows, "a row without a record, or the other way round"
    assert sorted(n for n, _ in records) == list(range(1, len(rows) + 1))
    assert reached == len(rows)


SUPERVISOR = (
    "import sys; from pathlib import Path; from aims.storage.engine import Location;"
    "from aims.storage.lock import SupervisorLock;"
    "lock = SupervisorLock(Location.parse(sys.argv[1]), Path(sys.argv[2])); print('held', flush=True); sys.stdin.read()"
)


def test_a_killed_supervisor_leaves_its_place(sqlite_url: str, tmp_path: Path, ids: IdSource) -> None:
    def supervisor() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, sqlite_url, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    first = supervisor()
    assert first.stdout is not None
    assert first.stdout.readline() == b"held\n"
    second = supervisor()
    _, refusal = second.communicate(timeout=30)
    assert second.returncode == 1
    assert b"storage.locked" in refusal
    assert str(first.pid).encode() in refusal
    first.kill()
    first.communicate(timeout=10)
    third = supervisor()
    said, _ = third.communicate(timeout=30)
    assert (third.returncode, said) == (0, b"held\n")
