"""Gives every committed record its place, and publishes the log. One at a time, in the supervisor.

One step, in this order; each part is durable before the next begins, and a crash between two of them is repaired by
the first step of the next start, which gives the same octets again:

1. places: in one transaction, what waits in the outbox gets the next numbers, writer by writer in the writer's order;
2. tiles: the entries and hashes of these places, files that follow from the places alone;
3. checkpoint: the signed size and root, replacing the last one;
4. mark: the database learns what is published.

So the places are never behind the checkpoint. If they are, the database was restored from a backup: going on would
give numbers twice and sign a second history, and the sequencer refuses to start.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from aims.audit import store
from aims.audit.canonical import decode
from aims.audit.checkpoint import MAX_OCTETS, Checkpoint, Sign, VerifierKey
from aims.audit.errors import AuditError
from aims.audit.merkle import CompactRange, edge_of, leaf_hash
from aims.audit.record import body, placed
from aims.audit.store import Head, Place, Waiting
from aims.audit.tiles import CHECKPOINT, LogFolder, TileReader, TileWriter
from aims.clock import Clock, IdSource

OWN: Final = "log"  # the writer of the log's own records
BUSY_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 60.0
BATCH: Final = 4_096
BATCHES: Final = 16

Baton = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Step:
    """What a step did: places given, and the size of the published log."""

    given: int
    size: int


@dataclass(slots=True)
class _Open:
    """The log in memory; thrown away after any failure, because only disk and database are trusted then."""

    head: Head
    tiles: TileWriter
    tree: CompactRange

    def append(self, entry: bytes) -> None:
        self.tree.append(self.tiles.append(entry))


class Sequencer:
    """Call ``step`` again and again from one thread; after an error the next call starts over from what is durable.

    ``engine`` commits durably and begins its transactions as ``store.sequencing_engine`` does; ``baton`` is held
    around each of them. ``sign`` makes an Ed25519 signature that ``key`` verifies; the key's name is the log's origin.
    """

    __slots__ = ("_alone", "_baton", "_clock", "_due", "_engine", "_folder", "_ids", "_key", "_log", "_own", "_sign")

    def __init__(
        self,
        *,
        engine: sa.Engine,
        folder: Path,
        key: VerifierKey,
        sign: Sign,
        clock: Clock,
        ids: IdSource,
        baton: Baton = nullcontext,
    ) -> None:
        self._engine = engine
        self._folder = LogFolder(folder)
        self._key = key
        self._sign = sign
        self._clock = clock
        self._ids = ids
        self._baton = baton
        # A step that nobody waits for any more runs on in its thread; the next one must not begin beside it.
        self._alone = threading.Lock()
        self._log: _Open | None = None
        self._own: list[str] = ["log.start"]  # types of own records that wait for a place
        self._due: float | None = None  # when the last checkpoint was published, by the monotonic clock

    def step(self, *, now: bool = False) -> Step:
        """Publish what waits: at most once a second, unless ``now``; after a minute of silence, a sign of life.

        Raises ``AuditError``: ``log_ahead``, ``log_behind``, ``log_mismatch``, ``log_foreign``, ``assignment_lost``,
        ``tile_missing``, ``tile_malformed``, ``note_malformed``, ``note_signer``, ``note_signature`` (the log cannot
        go on without a person), ``sequencer_displaced``, ``signer_mismatch``; and what database and disk raise.
        """
        with self._alone:
            return self._step(now=now)

    def _step(self, *, now: bool) -> Step:
        try:
            log = self._log
            if log is None:
                log = self._log = self._recover()
                if log.tiles.size > log.head.published:
                    self._publish(log)
            waited = None if self._due is None else self._clock.monotonic() - self._due
            if waited is not None and waited < BUSY_SECONDS and not now:
                return Step(0, log.head.published)
            if waited is not None and waited >= IDLE_SECONDS and not self._own:
                self._own.append("log.checkpoint")
            given = 0
            for _ in range(BATCHES):
                taken = self._give(log)
                given += taken
                if taken < BATCH:
                    break
            if given:
                self._publish(log)
            return Step(given, log.head.published)
        except BaseException:
            self._log = None
            raise

    def stop(self) -> Step:
        """Record an orderly end, and publish everything that waits."""
        with self._alone:
            self._own.append("log.stop")
            return self._step(now=True)

    def prune(self, keep: int) -> int:
        """Drop published bodies from the outbox except the newest ``keep``; return how many went."""
        with self._baton(), self._engine.begin() as connection:
            head = store.head(connection)
            return store.prune(connection, head.published - keep) if head else 0

    def _recover(self) -> _Open:
        """Bring files and places together.

        Steps: 1 read checkpoint and head; 2 refuse if one of them is from another log or from a backup; 3 read the
        right edge of the tree from the files and compare its root with the signed one; 4 the last published entry is
        the one that has the last published place; 5 append the places that are not yet published.
        """
        self._folder.prepare()
        note = self._folder.read(CHECKPOINT, MAX_OCTETS)  # 1
        signed = Checkpoint.verified(note, self._key) if note is not None else None
        size = signed.size if signed else 0
        with self._baton(), self._engine.begin() as connection:
            head = store.head(connection)
            if head is None:  # 2
                if signed is not None:
                    raise AuditError("log_ahead", f"checkpoint {size}, no places")
                if (self._folder.path / "tile").exists():
                    raise AuditError("log_foreign", "files of a log, and a database without one")
                head = store.begin(connection, self._key.name)
            if head.origin != self._key.name:
                raise AuditError("log_foreign", f"the database holds {head.origin}")
            if size > head.size:
                raise AuditError("log_ahead", f"checkpoint {size}, places {head.size}")
            if size < head.published:
                raise AuditError("log_behind", f"checkpoint {size}, published {head.published}")
            tree = CompactRange(size, edge_of(TileReader(self._folder, size), size))  # 3
            if signed is not None and tree.root() != signed.root:
                raise AuditError("log_mismatch")
            log = _Open(head, TileWriter(self._folder, size), tree)
            if size:
                self._compare_last(connection, size)  # 4
            for place in store.unpublished(connection, size, head.size):  # 5
                log.append(_entry(place))
        return log

    def _compare_last(self, connection: sa.Connection, size: int) -> None:
        reader = TileReader(self._folder, size)
        (entry,) = reader.entries(size - 1)
        if leaf_hash(entry) != reader.node(0, size - 1):
            raise AuditError("log_mismatch", f"entry {size - 1} has not the hash of its tile")
        found: Any = decode(entry)
        if store.place_of(connection, found["writer"], found["writer_seq"]) != size - 1:
            raise AuditError("log_foreign", f"entry {size - 1} is not the record that has this place")

    def _give(self, log: _Open) -> int:
        """Give at most ``BATCH`` waiting records (and the log's own) their places; return how many places."""
        with self._baton(), self._engine.begin() as connection:
            old = log.head
            found = store.waiting(connection)
            if not found and not self._own:
                return 0
            giver = _Giver(old, store.taken(connection, OWN), self._clock, self._ids)
            for kind in self._own:
                giver.own(kind, log={"origin": old.origin, "size": old.size, "root": _base64(log.tree.root())})
            for of in found:
                if len(giver.places) >= BATCH:
                    break
                giver.take(of, store.bodies(connection, of, BATCH - len(giver.places)), BATCH - len(giver.places))
            new = replace(old, size=old.size + len(giver.places), recorded=giver.recorded)
            store.advance(connection, old, new)
            store.give(connection, giver.places, giver.cursors, OWN)
        self._own.clear()
        log.head = new
        for entry in giver.entries:
            log.append(entry)
        return len(giver.places)

    def _publish(self, log: _Open) -> None:
        log.tiles.flush()
        checkpoint = Checkpoint(self._key.name, log.tree.size, log.tree.root())
        self._folder.write({CHECKPOINT: checkpoint.signed(self._key, self._sign)})
        new = replace(log.head, published=log.tree.size)
        with self._baton(), self._engine.begin() as connection:
            store.advance(connection, log.head, new)
        log.head = new
        log.tiles.tidy()
        self._due = self._clock.monotonic()


class _Giver:
    """The places of one transaction."""

    __slots__ = ("_clock", "_ids", "_next", "_own", "cursors", "entries", "places", "recorded")

    def __init__(self, head: Head, own: int, clock: Clock, ids: IdSource) -> None:
        self.places: list[Place] = []
        self.entries: list[bytes] = []
        self.cursors: dict[str, int] = {}
        self.recorded = max(int(clock.now() * 1000), head.recorded)  # never falls, also when the clock is set back
        self._next = head.size
        self._own = own
        self._clock = clock
        self._ids = ids

    def own(self, kind: str, *, log: dict[str, Any], reason: str | None = None) -> None:
        """Place a record of the log about itself."""
        octets = body(
            type=kind,
            outcome="failed" if kind == "log.gap" else "success",
            time=max(self._clock.now(), 0),
            id=self._ids.new(),
            cause={"reason": reason},
            log=log,
        )
        self._own += 1
        self._place(OWN, self._own, octets)

    def take(self, of: Waiting, found: dict[int, bytes], limit: int) -> None:
        """Place the records of one writer in its order; what is missing, or is no record, becomes a ``log.gap``."""
        expected = of.first
        for n, octets in found.items():
            if n > expected:
                self._gap(of.writer, expected, n - 1, "missing")
            try:
                self._place(of.writer, n, octets)
            except AuditError as error:
                self._gap(of.writer, n, n, error.reason, hashlib.sha256(octets).digest())
            expected = n + 1
        if len(found) < limit and expected <= of.last:
            self._gap(of.writer, expected, of.last, "missing")
            expected = of.last + 1
        self.cursors[of.writer] = expected - 1

    def _gap(self, writer: str, first: int, last: int, reason: str, digest: bytes | None = None) -> None:
        about = {"writer": writer, "first": first, "last": last, "digest": _base64(digest) if digest else None}
        self.own("log.gap", log=about, reason=reason)

    def _place(self, writer: str, n: int, octets: bytes) -> None:
        place = Place(self._next, writer, n, self.recorded, octets)
        self.entries.append(_entry(place))
        self.places.append(place)
        self.cursors[writer] = n
        self._next += 1


def _entry(place: Place) -> bytes:
    return placed(place.body, seq=place.seq, writer=place.writer, writer_seq=place.n, recorded=place.recorded)


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")
