"""Time and identifiers, passed in as arguments: no other module of AIMS asks the system for either."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable
from typing import Protocol

_DIGITS = "0123456789abcdefghijklmnopqrstuv"
_PAIRS = tuple(high + low for high in _DIGITS for low in _DIGITS)
_SHIFTS = tuple(range(120, -1, -10))


class Clock(Protocol):
    """Where a component reads time."""

    def now(self) -> float:
        """Return Unix seconds (wall clock)."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back; only differences mean anything."""
        ...


class SystemClock:
    """The machine's clocks, moved by ``offset`` seconds.

    The offset exists for tests: OpenSSL judges certificates by the real time, so a test moves with it instead of
    standing still.
    """

    __slots__ = ("offset",)

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def now(self) -> float:
        return time.time() + self.offset

    def monotonic(self) -> float:
        return time.monotonic() + self.offset


class IdSource(Protocol):
    """Where a component takes new identifiers and nonces from."""

    def new(self) -> str:
        """Return 26 lower-case characters: 48 bits of milliseconds, then 80 random bits; sorts by time."""
        ...

    def token(self, octets: int = 16) -> str:
        """Return ``octets`` random octets as unpadded base64url."""
        ...


class SystemIds:
    """Identifiers from the operating system's random source.

    They begin with the time because random keys cost several times more in a B-tree that has grown large.
    """

    __slots__ = ("_clock", "_random")

    def __init__(self, clock: Clock, random: Callable[[int], bytes] = os.urandom) -> None:
        self._clock = clock
        self._random = random

    def new(self) -> str:
        milliseconds = int(self._clock.now() * 1000) & 0xFFFFFFFFFFFF
        # 128 bits in 26 digits of five bits, the last two bits empty: the alphabet of RFC 4648 section 7, so that text
        # sorts as the number does. Two digits at a time, because the library's own encoder costs ten times as much.
        number = int.from_bytes(milliseconds.to_bytes(6, "big") + self._random(10), "big") << 2
        return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])

    def token(self, octets: int = 16) -> str:
        return base64.urlsafe_b64encode(self._random(octets)).decode("ascii").rstrip("=")
