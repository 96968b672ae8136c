"""The sequencer: every record gets one place, and a crash at any step changes nothing of that."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.flows.audit_log import LogUnderTest, opened, record

from aims.audit import store
from aims.audit.checkpoint import Checkpoint
from aims.audit.errors import AuditError
from aims.audit.merkle import leaf_hash, root_of
from aims.audit.record import recorder
from aims.audit.tiles import LogFolder, TileWriter
from aims.storage.database import Database
from aims.storage.schema import outbox, writer
from aims.storage.write import Change, Name, Stop, Verdict, Write


@pytest.fixture
def log(database_url: str, tmp_path: Path) -> Iterator[LogUnderTest]:
    with opened(database_url, tmp_path / "log") as log:
        yield log


@pytest.fixture
def quick(sqlite_url: str, tmp_path: Path) -> Iterator[LogUnderTest]:
    with opened(sqlite_url, tmp_path / "log") as log:
        yield log


def _places(log: LogUnderTest) -> list[tuple[str, int]]:
    found = [json.loads(entry) for entry in log.entries()]
    assert [entry["seq"] for entry in found] == list(range(len(found)))
    return [(entry["writer"], entry["writer_seq"]) for entry in found if entry["writer"] != "log"]


def test_records_get_their_places_in_the_order_of_their_writer(log: LogUnderTest) -> None:
    sequencer = log.sequencer()
    log.commit("a" * 26, [record(n) for n in range(300)])
    log.commit("b" * 26, [record(n) for n in range(300, 305)])
    assert sequencer.step().size == 306
    log.commit("a" * 26, [record(n) for n in range(400, 402)])
    log.clock.pass_(1)
    assert sequencer.step().given == 2

    entries = [json.loads(entry) for entry in log.entries()]
    assert entries[0]["type"] == "log.start"
    assert _places(log) == [
        *(("a" * 26, n) for n in range(1, 301)),
        *(("b" * 26, n) for n in range(1, 6)),
        ("a" * 26, 301),
        ("a" * 26, 302),
    ]
    first = json.loads(record(0))
    assert {name: entries[1][name] for name in first} == first
    assert sorted(entries[1].keys() - first.keys()) == ["recorded", "seq", "writer", "writer_seq"]
    result = log.verify()
    assert (result.exit, result.message, result.size) == (0, "consistent, tail unwitnessed", 308)


def test_checkpoints_come_at_most_each_second_and_at_least_each_minute(quick: LogUnderTest) -> None:
    sequencer = quick.sequencer()
    assert sequencer.step().size == 1
    quick.commit("a" * 26, [record(1)])
    quick.clock.pass_(0.875)
    assert sequencer.step().size == 1
    quick.clock.pass_(0.25)
    assert sequencer.step().size == 2
    quick.clock.pass_(59)
    assert sequencer.step().size == 2
    quick.clock.pass_(1)
    assert sequencer.step().size == 3
    alive = json.loads(quick.entries()[2])
    assert alive["type"] == "log.checkpoint"
    assert alive["log"]["size"] == 2
    quick.commit("a" * 26, [record(2)])
    assert sequencer.stop().size == 5
    assert [json.loads(entry)["type"] for entry in quick.entries()[3:]] == ["log.stop", "token.refuse"]
    assert quick.verify().exit == 0


def test_a_step_that_nobody_waits_for_any_more_and_the_last_one_do_not_run_side_by_side(
    quick: LogUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequencer = quick.sequencer()
    quick.commit("a" * 26, [record(n) for n in range(9)])
    writing, go_on, ending = threading.Event(), threading.Event(), threading.Event()
    write, side_by_side = LogFolder.write, []

    def slowly(folder: LogFolder, files: dict[str, bytes]) -> None:
        if not writing.is_set():
            writing.set()
            assert go_on.wait(10)
        elif not go_on.is_set():
            side_by_side.append(tuple(files))
        write(folder, files)

    def end() -> None:
        ending.set()
        sequencer.stop()

    monkeypatch.setattr(LogFolder, "write", slowly)
    left, last = threading.Thread(target=sequencer.step), threading.Thread(target=end)
    left.start()
    assert writing.wait(10)
    quick.commit("a" * 26, [record(n) for n in range(9, 12)])
    last.start()
    assert ending.wait(10)
    last.join(0.3)  # long enough to write, if nothing held it up
    assert last.is_alive()
    go_on.set()
    left.join(10)
    last.join(10)
    assert not side_by_side
    result = quick.verify()
    assert (result.exit, result.message, result.size) == (0, "consistent, tail unwitnessed", 14)


def test_a_clock_set_back_does_not_move_recorded_back(quick: LogUnderTest) -> None:
    sequencer = quick.sequencer()
    for seconds in (5.0, -3_600.0, 1.0, -10.0):
        quick.commit("a" * 26, [record(quick.written.get("a" * 26, 0))])
        quick.clock.wall += seconds
        quick.clock.steady += 1
        sequencer.step()
    recorded = [json.loads(entry)["recorded"] for entry in quick.entries()]
    assert recorded == sorted(recorded)
    assert recorded[-1] == ((1_764_000_000 + 5) * 1000)
    assert quick.verify().exit == 0


def test_what_is_missing_in_the_outbox_is_named_in_the_log(log: LogUnderTest) -> None:
    sequencer = log.sequencer()
    log.commit("a" * 26, [record(n) for n in range(9)])
    with log.engine.begin() as connection:
        connection.execute(sa.delete(outbox).where(outbox.c.n.in_([2, 3, 9])))
        connection.execute(sa.update(outbox).where(outbox.c.n == 5).values(body=b'{"b":1, "a":2}'))
        connection.execute(sa.update(outbox).where(outbox.c.n == 7).values(body=b'{"seq":3}'))
    sequencer.step()
    gaps = [json.loads(entry) for entry in log.entries() if b'"log.gap"' in entry]
    found = [(gap["log"]["first"], gap["log"]["last"], gap["cause"]["reason"]) for gap in gaps]
    assert found == [
        (2, 3, "missing"),
        (5, 5, "record_malformed"),
        (7, 7, "record_malformed"),
        (9, 9, "missing"),
    ]
    assert [n for _, n in _places(log)] == [1, 4, 6, 8]
    result = log.verify()
    assert (result.exit, result.check, result.seq) == (2, "log_gap", 2)

    log.commit("a" * 26, [record(10)])
    log.clock.pass_(1)
    assert sequencer.step().given == 1


def test_what_the_committer_wrote_is_in_the_log(database: Database, database_url: str, tmp_path: Path) -> None:
    fields: Any = json.loads(record(1))
    members = {name: fields[name] for name in ("type", "outcome", "id", "action", "decision", "request_id")}
    name = Name("agent", "spiffe://local.test/agents/a")
    for _ in range(3):
        write = Write(record=recorder(refuse="token.refuse", time=1.0, **members), names=(name,), seen=0)
        assert database.commit_now(write).verdict is Verdict.COMMITTED
    stop = Change("stop", "a", b"{}", Stop(name, blocked=True))
    write = Write(record=recorder(refuse="token.refuse", time=1.0, **members), changes=(stop,))
    number = database.commit_now(write).seq
    write = Write(record=recorder(refuse="token.reuse", time=1.0, **members), names=(name,), seen=0)
    assert database.commit_now(write).verdict is Verdict.STOPPED
    with opened(database_url, tmp_path / "log") as log:
        assert log.sequencer().step().given == 6
        assert _places(log) == [(database.writer, n) for n in range(1, 6)]
        entries = [json.loads(entry) for entry in log.entries()]
        assert entries[4]["change"] == number
        assert (entries[5]["type"], entries[5]["cause"]["stop_seq"]) == ("token.reuse", number)
        assert log.verify().exit == 0


class _CrashError(Exception):
    """The process ends here."""


class _Durable:
    """Counts what makes something durable, and crashes before or after one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, engine: sa.Engine) -> None:
        self.left: int | None = None
        self.count = 0
        for owner, name in ((Path, "replace"), (os, "fsync"), (TileWriter, "tidy"), (store, "advance")):
            patch.setattr(owner, name, self._around(getattr(owner, name)))
        patch.setattr(engine.dialect, "do_commit", self._around(engine.dialect.do_commit))

    def _tick(self) -> None:
        self.count += 1
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise _CrashError

    def _around(self, function: Any) -> Any:
        def durable(*arguments: Any, **named: Any) -> Any:
            self._tick()
            value = function(*arguments, **named)
            self._tick()
            return value

        return durable


def _copy(database: Path, to: Path) -> None:
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


def test_a_crash_at_any_step_loses_no_place_and_gives_none_twice(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    with opened(sqlite_url, base / "log") as log:
        log.commit("a" * 26, [record(n) for n in range(250)])
        log.sequencer().step()
        log.commit("a" * 26, [record(n) for n in range(250, 270)])
        log.commit("b" * 26, [record(n) for n in range(300, 303)])
        written = dict(log.written)
    database = Path(sqlite_url.removeprefix("sqlite:///"))
    expected = [("a" * 26, n) for n in range(1, 271)] + [("b" * 26, n) for n in range(1, 4)]
    step, crashes = 0, 0
    while True:
        step += 1
        work = tmp_path / f"crash{step}"
        shutil.copytree(base, work)
        _copy(database, work / "aims.db")
        crashed = False
        with opened(f"sqlite:///{work}/aims.db", work / "log") as log, monkeypatch.context() as patch:
            log.clock.pass_(10)
            durable = _Durable(patch, log.engine)
            durable.left = step
            try:
                log.sequencer().step()
            except _CrashError:
                crashed = True
        with opened(f"sqlite:///{work}/aims.db", work / "log") as log:
            log.written = written
            log.clock.pass_(10)
            left_behind = log.verify()
            assert left_behind.exit in (0, 2), (step, left_behind)
            places_before = _assigned(log)
            log.clock.pass_(10)
            log.sequencer().step()
            assert _places(log) == expected, step
            assert _assigned(log)[: len(places_before)] == places_before
            result = log.verify()
            assert result.exit == 0, (step, result)
            entries = log.entries()
            for seq, _, _, recorded in places_before:
                assert json.loads(entries[seq])["recorded"] == recorded
        shutil.rmtree(work)
        crashes += crashed
        if not crashed:
            break
    assert crashes > 40


def _assigned(log: LogUnderTest) -> list[tuple[int, str, int, int]]:
    with log.engine.begin() as connection:
        rows = connection.execute(sa.select(store.audit_sequence).order_by(store.audit_sequence.c.seq)).all()
    return [(row.seq, row.writer, row.n, row.recorded) for row in rows]


def test_files_follow_from_the_places_alone(quick: LogUnderTest, tmp_path: Path) -> None:
    quick.commit("a" * 26, [record(n) for n in range(600)])
    quick.sequencer().step()
    entries = quick.entries()
    again = TileWriter(LogFolder(tmp_path / "again"), 0)
    LogFolder(tmp_path / "again").prepare()
    for entry in entries:
        again.append(entry)
    again.flush()
    written = {
        path.relative_to(tmp_path / "again").as_posix(): path.read_bytes()
        for path in (tmp_path / "again" / "tile").rglob("*")
        if path.is_file()
    }
    files = quick.files()
    note = files.pop("checkpoint")
    assert written == files
    assert sorted(files) == [
        "tile/0/000",
        "tile/0/001",
        "tile/0/002.p/89",
        "tile/1/000.p/2",
        "tile/entries/000",
        "tile/entries/001",
        "tile/entries/002.p/89",
    ]
    assert Checkpoint.verified(note, quick.key).root == root_of(leaf_hash(entry) for entry in entries)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("database_older", "log_ahead"),
        ("database_new", "log_ahead"),
        ("folder_older", "log_behind"),
        ("folder_gone", "log_behind"),
        ("checkpoint_gone", "log_behind"),
        ("other_key", "note_signer"),
        ("tile_changed", "log_mismatch"),
        ("entry_changed", "log_mismatch"),
        ("tile_gone", "tile_missing"),
        ("row_gone", "assignment_lost"),
        ("other_history", "log_foreign"),
        ("database_without_log", "log_foreign"),
    ],
)
def test_a_restored_backup_or_a_foreign_folder_is_refused(
    case: str, reason: str, sqlite_url: str, tmp_path: Path
) -> None:
    database = Path(sqlite_url.removeprefix("sqlite:///"))
    folder = tmp_path / "log"
    _copy(database, tmp_path / "new.db")
    with opened(sqlite_url, folder) as log:
        log.commit("a" * 26, [record(n) for n in range(3)])
        log.sequencer().step()
        _copy(database, tmp_path / "older.db")
        shutil.copytree(folder, tmp_path / "older")
        log.commit("a" * 26, [record(n) for n in range(3, 6)])
        log.clock.pass_(2)
        log.sequencer().step()
    url = sqlite_url
    if case == "database_older":
        url = f"sqlite:///{tmp_path}/older.db"
    elif case in ("database_new", "database_without_log"):
        url = f"sqlite:///{tmp_path}/new.db"
    if case == "folder_older":
        folder = tmp_path / "older"
    elif case == "folder_gone":
        folder = tmp_path / "nothing"
    elif case in ("checkpoint_gone", "database_without_log"):
        (folder / "checkpoint").unlink()
    with opened(url, folder) as log:
        _disturb(log, case)
        before = log.files() if folder.exists() else {}
        sequencer = log.sequencer()
        for _ in range(2):
            with pytest.raises(AuditError) as refused:
                sequencer.step()
            assert refused.value.reason == reason
        assert log.files() == before


def _disturb(log: LogUnderTest, case: str) -> None:
    if case == "other_key":
        log.private = Ed25519PrivateKey.generate()
        log.key = type(log.key)(log.key.name, log.private.public_key().public_bytes_raw())
    elif case in ("tile_changed", "entry_changed"):
        size = Checkpoint.verified((log.folder / "checkpoint").read_bytes(), log.key).size
        kind = "0" if case == "tile_changed" else "entries"
        path = log.folder / f"tile/{kind}/000.p/{size}"
        octets = bytearray(path.read_bytes())
        octets[40] ^= 1
        path.write_bytes(octets)
    elif case == "tile_gone":
        shutil.rmtree(log.folder / "tile" / "0")
    elif case == "row_gone":
        log.commit("c" * 26, [record(9)])
        with pytest.raises(AuditError, match="signer_mismatch"):
            log.sequencer(sign=lambda _: bytes(64)).step()
        with log.engine.begin() as connection:
            connection.execute(sa.delete(outbox).where(outbox.c.writer == "c" * 26))
    elif case == "other_history":
        with log.engine.begin() as connection:
            connection.execute(sa.update(store.audit_sequence).values(n=store.audit_sequence.c.n + 100))


def test_a_second_sequencer_is_displaced_and_starts_over(log: LogUnderTest) -> None:
    one, two = log.sequencer(), log.sequencer()
    one.step()
    two.step()
    log.commit("a" * 26, [record(1)])
    with pytest.raises(AuditError) as refused:
        one.step(now=True)
    assert refused.value.reason == "sequencer_displaced"
    assert one.step(now=True).given == 1
    assert _places(log) == [("a" * 26, 1)]
    assert log.verify().exit == 0


def test_published_bodies_can_leave_the_outbox(log: LogUnderTest) -> None:
    sequencer = log.sequencer()
    log.commit("a" * 26, [record(n) for n in range(10)])
    sequencer.step()
    log.commit("a" * 26, [record(n) for n in range(10, 12)])
    assert sequencer.prune(keep=4) == 7
    with log.engine.begin() as connection:
        left = connection.execute(sa.select(outbox.c.n).where(outbox.c.writer == "a" * 26)).scalars().all()
        assert sorted(left) == [7, 8, 9, 10, 11, 12]
        assert store.place_of(connection, "a" * 26, 3) == 3
        assert connection.execute(sa.select(writer.c.n)).scalars().all() == [12]
    log.clock.pass_(1)
    assert log.sequencer().step().given == 3
    assert log.verify().exit == 0
