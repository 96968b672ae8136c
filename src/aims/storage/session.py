"""What the plan needs from a back end, and the ways in which a transaction can fail."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from sqlalchemy.sql.dml import UpdateBase

from aims.storage.write import Change, Name


class Failure(Enum):
    """What to do about an error that a transaction raised."""

    AGAIN = auto()
    """Deadlock or serialization: the same batch again."""
    CLASH = auto()
    """A key that exists or is missing: the Write that caused it ends with ``CONFLICT``."""
    LOST = auto()
    """The connection is gone: reconnect, then the same batch again."""
    DOWN = auto()
    """The database cannot be written at present: nobody's fault, everybody is told."""
    POISON = auto()
    """Anything else: one Write of the batch is bad."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure with the reason of the ``StorageError`` that callers get if nothing helps."""

    failure: Failure
    reason: str = "internal"


class ClashError(Exception):
    """An effect broke a unique or foreign key."""


@dataclass(frozen=True, slots=True)
class Numbered:
    """A change with its number."""

    seq: int
    at: int
    change: Change

    @property
    def row(self) -> tuple[int, int, str, str, bytes, str | None, str | None, bool | None]:
        """The columns of ``change``, in the order of its table."""
        stop = self.change.stop
        mark = (None, None, None) if stop is None else (stop.name.kind, stop.name.id, stop.blocked)
        return (self.seq, self.at, self.change.kind, self.change.id, self.change.body, *mark)


class Session(Protocol):
    """One writing connection. Methods run between ``begin`` and ``commit`` or ``rollback``, on one thread.

    Lists are given in ascending order of their keys, so that two servers never wait for each other in a circle.
    """

    def begin(self, *, exclusive: bool) -> None:
        """Start a transaction; ``exclusive`` keeps the batches of all other writers out until it ends."""

    def stops(self, names: Collection[Name]) -> Mapping[Name, tuple[int, bool]]:
        """Return ``(seq, blocked)`` of those names that have a stop."""

    def claim(self, keys: Sequence[tuple[bytes, int]]) -> Collection[bytes]:
        """Insert ``(key, expires)`` and return the keys that were free."""

    def consume(self, uses: Sequence[tuple[str, bytes, str]], now: int) -> Collection[tuple[str, bytes]]:
        """Mark ``(kind, id_hash, used_by)`` as used and return those that were unused and not expired."""

    def apply(
        self, statement: UpdateBase, rows: Sequence[Mapping[str, Any]], *, must_match: bool
    ) -> Sequence[int] | None:
        """Execute a statement for each row; with ``must_match`` return the number of rows that each one touched.

        With ``must_match`` an insert that meets an existing key touches nothing. Raises ``ClashError``.
        """

    def advance(self, count: int) -> int:
        """Raise the head of the feed and return the new head."""

    def publish(self, lines: Sequence[Numbered]) -> None:
        """Insert the lines of the feed and their stops."""

    def record(self, writer: str, reached: int, bodies: Sequence[bytes]) -> None:
        """Insert the records ``reached + 1 ...`` and raise the writer's high water."""

    def announce(self, seq: int) -> None:
        """Tell the readers of other hosts, once the transaction commits."""

    def commit(self) -> None:
        """End the transaction; durable when it returns."""

    def rollback(self) -> None:
        """End the transaction without effect; never raises."""

    def join(self, writer: str) -> None:
        """Make the row of a new writer, in a transaction of its own."""

    def reached(self, writer: str) -> int:
        """Return the high water of a writer; waits for a transaction of it that is still being committed."""

    def probe(self, writer: str) -> None:
        """Write something of some size and take it back, durably; raises as any write would."""

    def prune(self, now: int, limit: int) -> int:
        """Delete at most ``limit`` old rows of each kind in a transaction of its own; return how many went."""

    def reopen(self) -> None:
        """Replace the connection. Raises ``StorageError``."""

    def close(self) -> None:
        """Give the connection back."""

    def judge(self, error: Exception) -> Fault:
        """Say what an error means."""
