"""How many connections a socket holds open, and which one has to go when somebody has taken too many.

A connection is *idle* while it has no call in progress: one that says nothing, one that is stuck in its handshake, one
between two calls. Only these are ever closed for a newcomer. A process that the node does not recognise never gets
past idle, so a flood displaces its own connections and not the streams of honest workloads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Upper bounds of open connections: of the whole socket, of one user, of one process."""

    total: int = 400
    per_uid: int = 200
    per_process: int = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seat:
    """One open connection. ``evict`` closes it and may do so later than it returns."""

    uid: int
    pid: int
    idle: Callable[[], bool]
    evict: Callable[[], None]


class Seats:
    """The open connections of one socket, oldest first."""

    __slots__ = ("_limits", "_taken")

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._taken: dict[Seat, None] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, seat: Seat) -> bool:
        """Admit a connection, evicting an idle one where a limit is reached; False if there is none to evict.

        Evicted is, within the limit that is reached, the oldest idle connection of the process that has most of them.
        """
        for limit, members in (
            (self._limits.per_process, [s for s in self._taken if (s.uid, s.pid) == (seat.uid, seat.pid)]),
            (self._limits.per_uid, [s for s in self._taken if s.uid == seat.uid]),
            (self._limits.total, list(self._taken)),
        ):
            members = [s for s in members if s in self._taken]  # noqa: PLW2901 -- without what an inner limit evicted
            if len(members) < limit:
                continue
            victim = _victim(members)
            if victim is None:
                return False
            del self._taken[victim]
            victim.evict()
        self._taken[seat] = None
        return True

    def leave(self, seat: Seat) -> None:
        """Free the seat of a connection that has ended; harmless if it was evicted."""
        self._taken.pop(seat, None)


def _victim(members: list[Seat]) -> Seat | None:
    idle = [seat for seat in members if seat.idle()]
    if not idle:
        return None
    (greediest, _), *_ = Counter((seat.uid, seat.pid) for seat in idle).most_common(1)
    return next(seat for seat in idle if (seat.uid, seat.pid) == greediest)
