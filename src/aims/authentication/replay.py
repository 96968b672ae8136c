"""What a proof leaves behind so that it cannot be shown twice, and the window that remembers it.

The identifier of a proof follows from the proof alone: never from the time of arrival, nor from the configuration of
the verifier, so that verifiers which share a window agree about it.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final, Protocol

import msgspec

from aims.authentication.errors import AuthenticationError
from aims.clock import Clock

ID_OCTETS: Final = 16
MAX_LEEWAY: Final = 30  # seconds that any verifier of proofs may grant
MAX_LIFE: Final = 600 + MAX_LEEWAY  # seconds after which nothing that was shown before is accepted any more
MAX_STEP_BACK: Final = 60.0  # seconds by which the wall clock may go back before a window refuses
_MAX_KEPT = MAX_LIFE + 2 * MAX_LEEWAY  # seconds ahead: a sender's clock, the leeway, and rounding


class ProofClaim(msgspec.Struct, frozen=True, gc=False):
    """A proof that is to be spent. Its parts are those of a `aims.storage.write.Claim`.

    ``space`` is the kind of proof, ``holder`` the WIT's subject or the key's thumbprint, ``id`` the ``jti``, and
    ``expires`` (Unix seconds) the first second at which no verifier accepts the proof any more.
    """

    space: str
    holder: str
    id: str
    expires: int

    @classmethod
    def until(cls, space: str, holder: str, id_: str, last: float) -> ProofClaim:
        """Return the claim of a proof whose own life ends at ``last``, with the greatest leeway added."""
        return cls(space, holder, id_, min(math.ceil(last) + MAX_LEEWAY, 2**32 - 1))

    @property
    def key(self) -> bytes:
        """16 octets: four of expiry, then twelve of BLAKE2b over the parts, of which only the last can hold a NUL.

        A window can thus forget by itself, and finding a proof of one's own that spends another's takes 2^96 tries.
        """
        parts = f"{self.space}\0{self.holder}\0{self.id}".encode()
        return self.expires.to_bytes(4, "big") + hashlib.blake2b(parts, digest_size=12).digest()


class ReplayWindow(Protocol):
    """Where proofs are spent: in this process, at the node, or at the server."""

    @property
    def complete_since(self) -> float:
        """Since when (Unix seconds) every claim is remembered; 0 where nothing was ever lost."""
        ...

    async def claim(self, ids: list[bytes]) -> list[bool]:
        """Spend each 16-octet id; True for those that were new. Equal ids in one call: only the first is new.

        An id that has expired, lies too far ahead or is malformed gives False, and does not harm the others.

        Raises:
            AuthenticationError: ``window_unavailable``: the window is full, out of reach, or its clock went back. Ids
                of the call may then be spent.
        """
        ...


def check_started(window: ReplayWindow, issued_at: float | None, now: float, *, leeway: float) -> None:
    """Refuse a proof that could have been shown to a predecessor of ``window``.

    For ``MAX_LIFE`` seconds after ``complete_since`` only proofs pass whose ``iat`` says that they were made later.
    ``leeway`` is what the verifier grants to clocks that are ahead: by so much an old proof could look young.

    Raises:
        AuthenticationError: ``window_starting``.
    """
    since = window.complete_since
    if now < since + MAX_LIFE and (issued_at is None or issued_at <= since + leeway):
        raise AuthenticationError("window_starting")


def kept(id_: bytes, now: float) -> int | None:
    """Return until when ``id_`` is to be remembered, or None if it must be refused unseen."""
    if len(id_) != ID_OCTETS:
        return None
    expires = int.from_bytes(id_[:4], "big")
    return expires if now < expires <= now + _MAX_KEPT else None


class MemoryWindow:
    """The window of a verifier that stands alone: in memory, bounded, empty after a start.

    It counts as complete from its making on. When it is full it refuses rather than forgets.
    """

    __slots__ = ("_capacity", "_clock", "_count", "_high", "_seen", "_since", "_swept")

    def __init__(self, clock: Clock, *, capacity: int = 200_000) -> None:
        if capacity < 1:
            raise ValueError("a window without room")
        self._clock = clock
        self._capacity = capacity
        self._since = self._high = clock.now()
        self._seen: dict[int, set[bytes]] = {}  # by second of expiry, so that forgetting costs nothing
        self._count = 0
        self._swept = 0

    @property
    def complete_since(self) -> float:
        return self._since

    def __len__(self) -> int:
        return self._count

    async def claim(self, ids: list[bytes]) -> list[bool]:
        now = self._time()
        if int(now) != self._swept:
            self._forget(now)
        return [self._claim(id_, now) for id_ in ids]

    def _time(self) -> float:
        # Time only goes forward here: what was forgotten must not become acceptable again.
        now = self._clock.now()
        if now < self._high - MAX_STEP_BACK:
            raise AuthenticationError("window_unavailable", "the clock went back")
        self._high = max(self._high, now)
        return self._high

    def _claim(self, id_: bytes, now: float) -> bool:
        expires = kept(id_, now)
        if expires is None:
            return False
        seen = self._seen.get(expires)
        if seen is not None and id_ in seen:
            return False
        if self._count >= self._capacity:
            raise AuthenticationError("window_unavailable", "full")
        if seen is None:
            self._seen[expires] = {id_}
        else:
            seen.add(id_)
        self._count += 1
        return True

    def _forget(self, now: float) -> None:
        self._swept = int(now)
        for expires in [second for second in self._seen if second <= now]:
            self._count -= len(self._seen.pop(expires))
