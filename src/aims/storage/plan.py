"""The order in which the parts of many Writes run inside one transaction.

 1. Writes that only have effects and changes: effects, then their changes get numbers. A batch that may hold changes
    is exclusive, so numbers appear in order and nobody decides beside a stop.
 2. Writes whose changes depend on guards of their own: steps 4 to 7, then their changes get numbers.
 3. All other Writes: steps 4 to 7, under the stops of 1 and 2.
 4. Fences: a name that is blocked, or stopped after ``seen``, refuses the Write.
 5. Claims: all are spent; a key that was there, or came earlier in this batch, refuses the Write.
 6. Consume: only for Writes that stand so far.
 7. Effects of the Writes that stand, ``lost`` effects of those that lost their consume.
 8. Records of all Writes, numbered; the writer's high water.
 9. Readers of other hosts are told, if there were changes.

There are no savepoints. An effect that must match and does not, after its Write has written something, therefore
raises ``UndoError``: the caller rolls back and runs the plan again with that Write refused from the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.sql.dml import UpdateBase

from aims.storage.session import Numbered, Session
from aims.storage.write import Effect, Name, Outcome, Verdict, Write

RECORD_LIMIT = 65_535
"""Octets of one record: what an entry of a transparency log may have (C2SP tlog-tiles)."""

_COMMITTED = Outcome(Verdict.COMMITTED)
_CONFLICT = Outcome(Verdict.CONFLICT)


class UndoError(Exception):
    """Writes that conflict and have left something behind in this transaction."""

    def __init__(self, writes: frozenset[int]) -> None:
        super().__init__(writes)
        self.writes = writes


@dataclass(slots=True)
class _Group:
    """Rows of one statement, in queue order: ``(write, first effect of its write, parameters)``."""

    statement: UpdateBase
    names: tuple[str, ...]
    must_match: bool
    rows: list[tuple[int, bool, Mapping[str, Any]]] = field(default_factory=list)

    def takes(self, effect: Effect, names: tuple[str, ...]) -> bool:
        return self.statement is effect.statement and self.names == names and self.must_match is effect.must_match


@dataclass(frozen=True, slots=True)
class Result:
    """What a plan did: an outcome for each Write, the last number of the feed (0 without changes), octets written."""

    outcomes: list[Outcome]
    seq: int
    octets: int


def execute(
    session: Session,
    writes: Sequence[Write],
    *,
    writer: str,
    reached: int,
    now: int,
    refused: frozenset[int] = frozenset(),
) -> Result:
    """Run the plan up to, and without, the commit; ``reached`` is the number of the writer's last record.

    Raises ``UndoError``, ``ClashError`` and whatever the driver or a record function raises; then the caller must
    roll back.
    """
    return _Plan(session, writes, writer=writer, reached=reached, now=now, refused=refused).run()


class _Plan:
    def __init__(
        self,
        session: Session,
        writes: Sequence[Write],
        *,
        writer: str,
        reached: int,
        now: int,
        refused: frozenset[int],
    ) -> None:
        self._session = session
        self._writes = writes
        self._writer = writer
        self._reached = reached
        self._now = now
        self._refused = refused
        self._outcomes = [_COMMITTED] * len(writes)
        self._seq = 0

    def run(self) -> Result:
        plain, guarded, rest = [], [], []
        for index, write in enumerate(self._writes):
            if not write.changes and not write.lost_changes:
                rest.append(index)
            elif write.guarded:
                guarded.append(index)
            else:
                plain.append(index)
        self._session.begin(exclusive=bool(plain or guarded))
        for part in (plain, guarded):  # 1, 2
            if part:
                self._decide(part)
                self._publish(part)
        if rest:  # 3
            self._decide(rest)
        bodies = [_body(write, outcome) for write, outcome in zip(self._writes, self._outcomes, strict=True)]
        self._session.record(self._writer, self._reached, bodies)  # 8
        if self._seq:
            self._session.announce(self._seq)  # 9
        return Result(self._outcomes, self._seq, sum(map(len, bodies)))

    def _decide(self, part: list[int]) -> None:
        self._fence(part)
        self._claim(part)
        for index in part:
            if index in self._refused and self._stands(index):
                self._outcomes[index] = _CONFLICT
        self._consume(part)
        self._apply(part)

    def _stands(self, index: int) -> bool:
        return self._outcomes[index].verdict is Verdict.COMMITTED

    def _fence(self, part: list[int]) -> None:  # 4
        names = {name for index in part for name in self._writes[index].names}
        if not names:
            return
        stops = self._session.stops(names)
        if not stops:
            return
        for index in part:
            write = self._writes[index]
            for name in write.names:
                seq, blocked = stops.get(name, (0, False))
                if blocked or seq > write.seen:
                    self._outcomes[index] = Outcome(Verdict.STOPPED, f"{name.kind}:{name.id}", stop_seq=seq)
                    break

    def _claim(self, part: list[int]) -> None:  # 5
        wanted: dict[bytes, int] = {}
        claims: list[tuple[int, bytes, str]] = []
        for index in part:
            for claim in self._writes[index].claims:
                key = claim.key
                if key in wanted:
                    self._replayed(index, claim.space)
                else:
                    wanted[key] = claim.expires
                    claims.append((index, key, claim.space))
        if not wanted:
            return
        won = self._session.claim(sorted(wanted.items()))
        if len(won) == len(wanted):
            return
        for index, key, space in claims:
            if key not in won:
                self._replayed(index, space)

    def _replayed(self, index: int, space: str) -> None:
        if self._stands(index):
            self._outcomes[index] = Outcome(Verdict.REPLAYED, space)

    def _consume(self, part: list[int]) -> None:  # 6
        first: dict[tuple[str, bytes], int] = {}
        tries: list[tuple[int, tuple[str, bytes]]] = []
        for index in part:
            consume = self._writes[index].consume
            if consume is not None and self._stands(index):
                key = (consume.kind, consume.id_hash)
                first.setdefault(key, index)
                tries.append((index, key))
        if not tries:
            return
        uses = [(*key, f"{self._writer}:{self._reached + 1 + index}") for key, index in sorted(first.items())]
        won = self._session.consume(uses, self._now)
        for index, key in tries:
            if key not in won or first[key] != index:
                self._outcomes[index] = Outcome(Verdict.CONSUMED, key[0])

    def _apply(self, part: list[int]) -> None:  # 7
        dropped: set[int] = set()
        undo: set[int] = set()
        for group in self._groups(part):
            rows = [row for row in group.rows if row[0] not in dropped] if dropped else group.rows
            if not rows:
                continue
            touched = self._session.apply(
                group.statement, [parameters for _, _, parameters in rows], must_match=group.must_match
            )
            if touched is None:
                continue
            several = len({index for index, _, _ in rows}) != len(rows)
            for (index, first, _), count in zip(rows, touched, strict=True):
                if count:
                    continue
                if first and not several and self._writes[index].consume is None:
                    dropped.add(index)
                    self._outcomes[index] = _CONFLICT
                else:
                    undo.add(index)
        if undo:
            raise UndoError(frozenset(undo))

    def _groups(self, part: list[int]) -> list[_Group]:
        """Gather equal statements without changing the order of effects of one Write, or of one table."""
        groups: list[_Group] = []
        last_of_table: dict[str, int] = {}
        for index in part:
            write = self._writes[index]
            verdict = self._outcomes[index].verdict
            effects = write.effects if verdict is Verdict.COMMITTED else ()
            if verdict is Verdict.CONSUMED:
                effects = write.lost
            at = 0
            for position, effect in enumerate(effects):
                names = tuple(effect.parameters)
                table = str(effect.statement.table)
                found = last_of_table.get(table, -1)
                if found < at or not groups[found].takes(effect, names):
                    found = len(groups)
                    groups.append(_Group(effect.statement, names, effect.must_match))
                    last_of_table[table] = found
                groups[found].rows.append((index, position == 0, effect.parameters))
                at = found
        return groups

    def _publish(self, part: list[int]) -> None:
        chosen = []
        for index in part:
            write = self._writes[index]
            verdict = self._outcomes[index].verdict
            if verdict is Verdict.COMMITTED and write.changes:
                chosen.append((index, write.changes))
            elif verdict is Verdict.CONSUMED and write.lost_changes:
                chosen.append((index, write.lost_changes))
        count = sum(len(changes) for _, changes in chosen)
        if not count:
            return
        self._seq = self._session.advance(count)
        seq = self._seq - count
        lines = []
        for index, changes in chosen:
            for change in changes:
                seq += 1
                lines.append(Numbered(seq, self._now, change))
            outcome = self._outcomes[index]
            self._outcomes[index] = Outcome(outcome.verdict, outcome.culprit, seq)
        self._session.publish(lines)


def _body(write: Write, outcome: Outcome) -> bytes:
    try:
        body = write.record(outcome)
    except Exception as error:
        # Whatever it is, it says something about this Write and nothing about the database.
        raise ValueError("the record function failed") from error
    if not 0 < len(body) <= RECORD_LIMIT:
        raise ValueError("a record is 1 to 65,535 octets")
    return body


def last_stops(lines: Sequence[Numbered]) -> list[tuple[Name, int, bool]]:
    """The stops that a list of changes leaves, one for each name, in ascending order of names."""
    found = {line.change.stop.name: (line.seq, line.change.stop.blocked) for line in lines if line.change.stop}
    return [(name, *found[name]) for name in sorted(found, key=lambda name: (name.kind, name.id))]
