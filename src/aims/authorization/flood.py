"""How many refusals of strangers get a record of their own: ten a second, so that nobody can fill the disk.

A route that refuses before it has anything to decide says so with `note`, and its listener keeps the record.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any, Final

from aims.clock import Clock
from aims.errors import AimsError

PER_SECOND: Final = 10
NOTE: Final = "aims.refusal"
"""The extension of a request's scope in which its listener puts what `note` calls."""


async def note(scope: MutableMapping[str, Any], error: AimsError) -> None:
    """Have a refusal of this request recorded by its listener, if that keeps records."""
    keep = scope.get("extensions", {}).get(NOTE)
    if keep is not None:
        await keep(scope, error)


class Gate:
    """Counts what goes beyond, for one record a second and kind of refusal."""

    __slots__ = ("_clock", "_counted", "_left", "_second")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._second = -1
        self._left = 0
        self._counted: dict[str, tuple[int, float]] = {}

    def passes(self, code: str) -> bool:
        """Whether a refusal with this code gets its own record; if not, it is counted."""
        second = int(self._clock.monotonic())
        if second != self._second:
            self._second, self._left = second, PER_SECOND
        if self._left:
            self._left -= 1
            return True
        count, since = self._counted.get(code, (0, self._clock.now()))
        self._counted[code] = (count + 1, since)
        return False

    def due(self) -> Iterator[tuple[str, int, float]]:
        """Yield what was counted in seconds that are over, as (code, count, since), and forget it."""
        if self._counted and int(self._clock.monotonic()) != self._second:
            counted, self._counted = self._counted, {}
            for code, (count, since) in counted.items():
                yield code, count, since
