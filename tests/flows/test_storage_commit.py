"""Guarded writes on both back ends: what each outcome leaves behind, alone and in one transaction with others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import bindparam, func, insert, select, update

from aims.clock import SystemClock
from aims.storage.committer import QUEUE_LIMIT
from aims.storage.database import Database
from aims.storage.errors import StorageError
from aims.storage.schema import change, claim, feed_head, once, outbox, stop, writer
from aims.storage.write import Change, Claim, Consume, Effect, Name, Outcome, Stop, StopKind, Verdict, Write

LATER = int(time.time()) + 3_600
ADD = insert(once)
USE_UP = update(once).where(once.c.kind == bindparam("which")).values(used_by="revoked")
RENAME = update(once).where(once.c.kind == bindparam("which")).values(kind=bindparam("to"))


def say(outcome: Outcome) -> bytes:
    return f"{outcome.verdict} {outcome.culprit}".encode()


def row(kind: str, id_: bytes = b"1", *, must_match: bool = False) -> Effect:
    return Effect(ADD, {"kind": kind, "id_hash": id_, "expires": LATER}, must_match=must_match)


def proof(id_: str) -> Claim:
    return Claim("jti", "key", id_, LATER)


def halt(kind: StopKind, id_: str, *, blocked: bool = True) -> Change:
    name = Name(kind, id_)
    return Change("stop", id_, b"{}", Stop(name, blocked))


def kinds(database: Database) -> set[str]:
    with database.reading() as connection:
        return set(connection.scalars(select(once.c.kind)))


def records(database: Database) -> list[tuple[int, bytes]]:
    with database.reading() as connection:
        rows = connection.execute(
            select(outbox.c.n, outbox.c.body).where(outbox.c.writer == database.writer).order_by(outbox.c.n)
        )
        return [(n, bytes(body)) for n, body in rows]


def counts(database: Database) -> dict[str, int]:
    with database.reading() as connection:
        return {
            table.name: connection.scalar(select(func.count()).select_from(table)) or 0
            for table in (claim, once, change, stop, outbox)
        }


class Plug:
    """A Write that occupies the writer thread until it is let go."""

    def __init__(self, database: Database) -> None:
        self._begun = threading.Event()
        self._gate = threading.Event()
        self.task = asyncio.ensure_future(database.commit(Write(record=self._record)))

    def _record(self, _: Outcome) -> bytes:
        self._begun.set()
        return b"plug" if self._gate.wait(10) else b""

    async def hold(self) -> None:
        assert await asyncio.to_thread(self._begun.wait, 10)

    def let_go(self) -> None:
        self._gate.set()


async def together(database: Database, writes: list[Write]) -> list[Outcome | BaseException]:
    """Commit the writes in one transaction: they queue behind one whose record waits for them."""
    plug = Plug(database)
    await plug.hold()
    tasks = [asyncio.ensure_future(database.commit(write)) for write in writes]
    for _ in range(2):  # the turn in which they are handed over, and its end
        await asyncio.sleep(0)
    assert len(database.committer._waiting) == len(writes)
    plug.let_go()
    await plug.task
    return list(await asyncio.gather(*tasks, return_exceptions=True))


async def test_what_a_turn_hands_over_after_the_close_is_told_so_and_leaves_nothing(database: Database) -> None:
    task = asyncio.ensure_future(database.commit(Write(record=say)))
    await asyncio.sleep(0)  # handed over; the turn has not ended
    database.committer.close()
    with pytest.raises(StorageError) as refused:
        await task
    assert refused.value.code == "storage.closed"
    assert records(database) == []


async def test_a_write_leaves_its_effects_changes_and_record(database: Database) -> None:
    outcome = await database.commit(
        Write(
            record=say,
            names=(Name("agent", "a"),),
            claims=(proof("1"),),
            effects=(row("x"),),
            changes=(Change("entry", "a", b"{}"), halt("node", "n")),
        )
    )
    assert outcome == Outcome(Verdict.COMMITTED, seq=2)
    assert counts(database) == {"claim": 1, "once": 1, "change": 2, "stop": 1, "outbox": 1}
    assert records(database) == [(1, b"committed ")]
    stops = database.stops()
    assert stops.head == 2
    assert [(s.name, s.seq, s.blocked) for s in stops.rows] == [(Name("node", "n"), 2, True)]


async def test_a_stopped_name_refuses_what_was_decided_before(database: Database) -> None:
    epoch = (await database.commit(Write(record=say, changes=(halt("agent", "a"),)))).seq
    name = (Name("agent", "a"),)

    async def issue(seen: int) -> Verdict:
        outcome = await database.commit(
            Write(record=say, names=name, seen=seen, claims=(proof(str(seen)),), effects=(row("x"),))
        )
        assert outcome.verdict is Verdict.COMMITTED or (outcome.culprit, outcome.stop_seq) == ("agent:a", epoch)
        return outcome.verdict

    assert await issue(0) is Verdict.STOPPED
    assert await issue(99) is Verdict.STOPPED, "blocked, whatever was seen"
    assert (await database.commit(Write(record=say, names=(Name("person", "a"),)))).verdict is Verdict.COMMITTED
    epoch = (await database.commit(Write(record=say, changes=(halt("agent", "a", blocked=False),)))).seq
    assert await issue(epoch - 1) is Verdict.STOPPED, "decided before it was resumed"
    assert await issue(epoch) is Verdict.COMMITTED
    assert len(records(database)) == 7


async def test_a_proof_is_spent_even_if_the_write_is_refused(database: Database) -> None:
    await database.commit(Write(record=say, changes=(halt("agent", "a"),)))
    refused = await database.commit(Write(record=say, names=(Name("agent", "a"),), claims=(proof("1"),)))
    assert refused.verdict is Verdict.STOPPED
    again = await database.commit(Write(record=say, claims=(proof("1"), proof("2")), effects=(row("x"),)))
    assert (again.verdict, again.culprit) == (Verdict.REPLAYED, "jti")
    third = await database.commit(Write(record=say, claims=(proof("2"),)))
    assert third.verdict is Verdict.REPLAYED
    assert kinds(database) == set()


async def test_one_replay_among_64_is_refused_alone(database: Database) -> None:
    await database.commit(Write(record=say, claims=(proof("7"),)))
    writes = [Write(record=say, claims=(proof(str(n)),), effects=(row(f"k{n}"),)) for n in range(64)]
    outcomes = await together(database, writes)
    assert [n for n, outcome in enumerate(outcomes) if outcome != Outcome(Verdict.COMMITTED)] == [7]
    assert outcomes[7] == Outcome(Verdict.REPLAYED, "jti")
    assert kinds(database) == {f"k{n}" for n in range(64)} - {"k7"}
    assert Counter(body for _, body in records(database)[2:]) == {b"committed ": 63, b"replayed jti": 1}
    assert [n for n, _ in records(database)] == list(range(1, 67))


async def test_the_same_single_use_thing_twice_in_a_batch_succeeds_once(database: Database) -> None:
    await database.commit(Write(record=say, effects=(row("code"),)))
    same_proof = [Write(record=say, claims=(proof("p"),)) for _ in range(16)]
    same_code = [Write(record=say, consume=Consume("code", b"1")) for _ in range(16)]
    outcomes = await together(database, same_proof + same_code)
    assert Counter(str(outcome.verdict) for outcome in outcomes if isinstance(outcome, Outcome)) == {
        "committed": 2,
        "replayed": 15,
        "consumed": 15,
    }


async def test_a_lost_consume_revokes_what_the_first_produced(database: Database) -> None:
    await database.commit(Write(record=say, effects=(row("code"),)))
    first = Write(
        record=say,
        consume=Consume("code", b"1"),
        effects=(row("grant"),),
        lost=(Effect(USE_UP, {"which": "grant"}),),
        lost_changes=(halt("grant", "g"),),
    )
    outcomes = await together(database, [first, first])
    assert outcomes == [Outcome(Verdict.COMMITTED), Outcome(Verdict.CONSUMED, "code", seq=1)]
    with database.reading() as connection:
        used = {row.kind: row.used_by for row in connection.execute(select(once.c.kind, once.c.used_by))}
    assert used == {"code": f"{database.writer}:3", "grant": "revoked"}
    assert [(s.name, s.blocked) for s in database.stops().rows] == [(Name("grant", "g"), True)]


async def test_a_consume_is_not_spent_by_a_write_that_another_guard_refuses(database: Database) -> None:
    await database.commit(Write(record=say, effects=(row("code"), row("name")), changes=(halt("agent", "a"),)))
    refused = await database.commit(Write(record=say, names=(Name("agent", "a"),), consume=Consume("code", b"1")))
    conflict = await database.commit(
        Write(record=say, consume=Consume("code", b"1"), effects=(row("name", must_match=True),))
    )
    assert (refused.verdict, conflict.verdict) == (Verdict.STOPPED, Verdict.CONFLICT)
    assert (await database.commit(Write(record=say, consume=Consume("code", b"1")))).verdict is Verdict.COMMITTED


async def test_an_expired_or_unknown_thing_cannot_be_consumed(database: Database) -> None:
    old = Effect(ADD, {"kind": "code", "id_hash": b"old", "expires": int(time.time()) - 1})
    await database.commit(Write(record=say, effects=(old,)))
    for id_hash in (b"old", b"none"):
        outcome = await database.commit(Write(record=say, consume=Consume("code", id_hash), effects=(row("x"),)))
        assert outcome == Outcome(Verdict.CONSUMED, "code")
    assert kinds(database) == {"code"}


@pytest.mark.parametrize(
    "effects",
    [
        pytest.param((row("taken", must_match=True), row("other")), id="first"),
        pytest.param((row("other"), row("taken", must_match=True)), id="last"),
        pytest.param((row("other", must_match=True), row("taken", must_match=True)), id="both-must"),
        pytest.param((row("other"), row("taken")), id="broken-key"),
        pytest.param((row("other"), Effect(USE_UP, {"which": "nobody"}, must_match=True)), id="update"),
        pytest.param((row("other"), Effect(RENAME, {"which": "free", "to": "taken"})), id="update-breaks-key"),
    ],
)
async def test_a_conflict_leaves_nothing_but_its_record_and_its_proof(
    database: Database, effects: tuple[Effect, ...]
) -> None:
    await database.commit(Write(record=say, effects=(row("taken"), row("free"))))
    bad = Write(record=say, claims=(proof("c"),), effects=effects, changes=(halt("agent", "a"),))
    good = [Write(record=say, effects=(row(f"g{n}", must_match=n % 2 == 0),)) for n in range(6)]
    outcomes = await together(database, [*good[:3], bad, *good[3:]])
    assert [outcome.verdict for outcome in outcomes if isinstance(outcome, Outcome)] == (
        [Verdict.COMMITTED] * 3 + [Verdict.CONFLICT] + [Verdict.COMMITTED] * 3
    )
    assert kinds(database) == {"taken", "free", *(f"g{n}" for n in range(6))}
    assert database.stops().rows == ()
    assert database.stops().head == 0
    assert Counter(body for _, body in records(database)) == {b"committed ": 7, b"conflict ": 1, b"plug": 1}
    assert (await database.commit(Write(record=say, claims=(proof("c"),)))).verdict is Verdict.REPLAYED


async def test_two_registrations_of_one_name_in_a_batch_give_one(database: Database) -> None:
    outcomes = await together(
        database, [Write(record=say, effects=(row("name", must_match=True),), changes=(Change("a", "b", b"{}"),))] * 2
    )
    assert outcomes == [Outcome(Verdict.COMMITTED, seq=1), Outcome(Verdict.CONFLICT)]


async def test_effects_on_a_table_keep_the_order_of_the_queue(database: Database) -> None:
    writes = [
        Write(record=say, effects=(row("a"),)),
        Write(record=say, effects=(Effect(RENAME, {"which": "a", "to": "b"}),)),
        Write(record=say, effects=(row("a"),)),
        Write(
            record=say, effects=(Effect(RENAME, {"which": "b", "to": "c"}), Effect(RENAME, {"which": "a", "to": "b"}))
        ),
        Write(record=say, effects=(row("a"),)),
    ]
    outcomes = await together(database, writes)
    assert outcomes == [Outcome(Verdict.COMMITTED)] * 5
    assert kinds(database) == {"a", "b", "c"}


async def test_a_stop_in_the_batch_refuses_the_issues_beside_it(database: Database) -> None:
    issue = Write(record=say, names=(Name("agent", "a"),), effects=(row("x"),))
    outcomes = await together(database, [issue, Write(record=say, changes=(halt("agent", "a"),)), issue])
    assert [outcome.verdict for outcome in outcomes if isinstance(outcome, Outcome)] == [
        Verdict.STOPPED,
        Verdict.COMMITTED,
        Verdict.STOPPED,
    ]


def _fail(_: Outcome) -> bytes:
    raise OSError("a record function that is broken")


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(Write(record=_fail), id="record-raises"),
        pytest.param(Write(record=lambda _: b""), id="record-empty"),
        pytest.param(Write(record=lambda _: bytes(70_000)), id="record-large"),
        pytest.param(Write(record=say, effects=(Effect(ADD, {"kind": "x"}),)), id="null"),
        pytest.param(Write(record=say, names=(Name("agent", "\ud800"),)), id="surrogate"),
        pytest.param(Write(record=say, effects=(Effect(RENAME, {"which": "a"}),)), id="parameter"),
    ],
)
async def test_a_bad_write_fails_alone(database: Database, bad: Write) -> None:
    good = [Write(record=say, claims=(proof(str(n)),), effects=(row(f"k{n}"),)) for n in range(15)]
    outcomes = await together(database, [*good[:9], bad, *good[9:]])
    failed = outcomes.pop(9)
    assert isinstance(failed, StorageError)
    assert failed.code == "storage.internal"
    assert outcomes == [Outcome(Verdict.COMMITTED)] * 15
    assert [n for n, _ in records(database)] == list(range(1, 17)), "no number is left out"
    assert database.healthy


def _refuse_records(database: Database) -> None:
    if database.location.backend == "sqlite":
        statements = ["CREATE TRIGGER no BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'no'); END"]
    else:
        statements = [
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$",
            "CREATE TRIGGER no BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION no()",
        ]
    session: Any = database.committer._session
    for statement in statements:
        session._connection.execute(statement)


async def test_without_its_record_nothing_is_issued_registered_changed_or_stopped(database: Database) -> None:
    _refuse_records(database)
    writes = [
        Write(record=say, claims=(proof(str(n)),), effects=(row(f"k{n}"),), changes=(halt("agent", str(n)),) * (n % 2))
        for n in range(32)
    ]
    outcomes = await asyncio.gather(*(database.commit(write) for write in writes), return_exceptions=True)
    assert {getattr(outcome, "code", outcome) for outcome in outcomes} == {"storage.internal"}
    assert set(counts(database).values()) == {0}
    with database.reading() as connection:
        assert connection.scalar(select(feed_head.c.seq)) == 0
        assert connection.scalar(select(writer.c.n).where(writer.c.writer == database.writer)) == 0


async def test_a_caller_that_goes_away_does_not_withdraw_its_write(database: Database) -> None:
    plug = Plug(database)
    await plug.hold()
    task = asyncio.ensure_future(database.commit(Write(record=say, effects=(row("x"),))))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    plug.let_go()
    await plug.task
    await database.commit(Write(record=say))
    assert kinds(database) == {"x"}


async def test_a_caller_that_goes_away_does_not_hurt_the_writer(database: Database) -> None:
    plug = Plug(database)
    await plug.hold()
    tasks = [asyncio.ensure_future(database.prune()), asyncio.ensure_future(database.commit(Write(record=say)))]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    plug.let_go()
    await plug.task
    assert await database.prune() == 0
    assert (await database.commit(Write(record=say))).verdict is Verdict.COMMITTED
    assert [n for n, _ in records(database)] == [1, 2, 3]


async def test_a_full_queue_refuses_at_once(database: Database) -> None:
    plug = Plug(database)
    await plug.hold()
    tasks = [asyncio.ensure_future(database.commit(Write(record=say))) for _ in range(QUEUE_LIMIT)]
    await asyncio.sleep(0)
    with pytest.raises(StorageError) as caught:
        await database.commit(Write(record=say))
    assert caught.value.code == "storage.busy"
    plug.let_go()
    assert await asyncio.gather(plug.task, *tasks) == [Outcome(Verdict.COMMITTED)] * (QUEUE_LIMIT + 1)


async def test_closing_commits_what_waits_and_refuses_the_rest(database: Database) -> None:
    plug = Plug(database)
    await plug.hold()
    tasks = [asyncio.ensure_future(database.commit(Write(record=say))) for _ in range(3)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(asyncio.to_thread(database.committer.close))
    plug.let_go()
    assert await asyncio.gather(plug.task, *tasks) == [Outcome(Verdict.COMMITTED)] * 4
    await closing
    with pytest.raises(StorageError) as caught:
        database.commit_now(Write(record=say))
    assert caught.value.code == "storage.closed"


async def test_old_rows_are_pruned_and_young_ones_stay(database: Database, clock: SystemClock) -> None:
    now = int(clock.now())
    for at in (-90_000, 0):
        clock.offset = at
        await database.commit(
            Write(
                record=say,
                claims=(Claim("jti", "key", "1", now + at + 60),),
                effects=(Effect(ADD, {"kind": f"k{at}", "id_hash": b"1", "expires": now + at + 60}),),
                changes=(halt("agent", str(at)),),
            )
        )
    assert await database.prune() == 3
    assert kinds(database) == {"k0"}
    assert counts(database) == {"claim": 1, "once": 1, "change": 1, "stop": 2, "outbox": 2}, "stops and records stay"
    clock.offset = 60 + 100
    assert await database.prune() == 0, "kept beyond the expiry for the leeway of verifiers"


async def test_reading_sees_one_snapshot_and_cannot_write(database: Database) -> None:
    with database.reading() as connection:
        before = connection.scalar(select(feed_head.c.seq))
        await database.commit(Write(record=say, changes=(halt("agent", "a"),)))
        assert connection.scalar(select(feed_head.c.seq)) == before == 0
    with pytest.raises(StorageError), database.reading() as connection:
        connection.execute(update(feed_head).values(seq=9))
    assert await database.read(lambda connection: connection.scalar(select(feed_head.c.seq))) == 1
