"""When the node does something again: at half-life, after a failure, and never all nodes at once."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Final

from aims.clock import Clock

SLICE: Final = 20.0
"""Seconds that are slept in one go: the wall clock may have moved, after a suspended machine for example."""

_CHANCE: Final = secrets.SystemRandom().random


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Seconds between attempts: ``first``, doubled up to ``most``, each time half of it by chance."""

    first: float
    most: float

    def delay(self, failures: int) -> float:
        """Return the pause after so many earlier failures."""
        grown: float = self.first * 2 ** min(failures, 30)
        return min(self.most, grown) * (0.5 + _CHANCE() / 2)


def half_life(began: float, ends: float) -> float:
    """Return when to renew what is good from ``began`` to ``ends`` (Unix seconds): at 45 to 55 % of its life."""
    return began + max(0.0, ends - began) * (0.45 + _CHANCE() / 10)


async def until(moment: float, clock: Clock) -> None:
    """Return once the wall clock shows ``moment`` (Unix seconds)."""
    while (left := moment - clock.now()) > 0:  # noqa: ASYNC110  nothing announces a moment
        await asyncio.sleep(min(left, SLICE))
