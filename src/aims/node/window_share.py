"""How much of the host's replay window each identity may fill, so that none can close it for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from aims.authentication.errors import AuthenticationError
from aims.clock import Clock


class Shares:
    """Counts the living ids of each identity, by the second in which they expire; at most ``most`` each.

    A new node starts counting at nothing: it bounds a flood, and the window itself bounds everything.
    """

    __slots__ = ("_clock", "_living", "_most")

    def __init__(self, clock: Clock, most: int) -> None:
        if most < 1:
            raise ValueError("a share without room")
        self._clock = clock
        self._most = most
        self._living: dict[str, Counter[int]] = {}

    def require(self, holder: str, count: int) -> None:
        """Refuse ``count`` more ids if they would be over the share of ``holder``.

        Raises: AuthenticationError ``window_unavailable``.
        """
        held = self._living.get(holder)
        if held is None:
            return
        now = self._clock.now()
        for second in [second for second in held if second <= now]:
            del held[second]
        if held.total() + count > self._most:
            raise AuthenticationError("window_unavailable", f"{holder} fills its share")

    def note(self, holder: str, ids: Iterable[bytes]) -> None:
        """Count ids that were spent for ``holder``."""
        found = Counter(int.from_bytes(id_[:4], "big") for id_ in ids)
        if found:
            self._living.setdefault(holder, Counter()).update(found)
