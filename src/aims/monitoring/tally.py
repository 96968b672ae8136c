"""Refusals that anybody can cause are recorded one by one up to a rate, and counted above it: nobody fills the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aims.clock import Clock

MAX_SOURCES: Final = 64
OTHERS: Final = "others"


@dataclass(frozen=True, slots=True)
class Counted:
    """Equal refusals that have no record of their own. ``since`` is Unix seconds."""

    code: str
    source: str
    count: int
    since: int


class Tally:
    """Lets ``per_second`` refusals have their own record, and counts the others by code and source."""

    def __init__(self, clock: Clock, per_second: int) -> None:
        self._clock = clock
        self._per_second = per_second
        self._second = -1
        self._left = 0
        self._counts: dict[tuple[str, str], int] = {}
        self._since = 0

    def alone(self, code: str, source: str) -> bool:
        """Tell whether this refusal has a record of its own; else it is counted."""
        second = int(self._clock.monotonic())
        if second != self._second:
            self._second, self._left = second, self._per_second
        if self._left:
            self._left -= 1
            return True
        if not self._counts:
            self._since = int(self._clock.now())
        key = (code, source)
        if key not in self._counts and len(self._counts) >= MAX_SOURCES:
            key = (code, OTHERS)
        self._counts[key] = self._counts.get(key, 0) + 1
        return False

    def drain(self) -> tuple[Counted, ...]:
        """Take what was counted in seconds that are over: one record each."""
        if not self._counts or int(self._clock.monotonic()) == self._second:
            return ()
        taken = tuple(Counted(code, source, count, self._since) for (code, source), count in self._counts.items())
        self._counts = {}
        return taken


class Rates:
    """How many events each transmitter has sent in the present minute. Issuers are configured, so there are few."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._minute = -1
        self._taken: dict[str, int] = {}

    def take(self, issuer: str, per_minute: int) -> bool:
        """Count one event; False if the transmitter has had its share."""
        minute = int(self._clock.monotonic() // 60)
        if minute != self._minute:
            self._minute, self._taken = minute, {}
        taken = self._taken.get(issuer, 0)
        if taken >= per_minute:
            return False
        self._taken[issuer] = taken + 1
        return True
