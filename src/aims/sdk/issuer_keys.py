"""The published keys of the token issuer, fetched ahead, again when a token names another, and never in a flood."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aims.clock import Clock
from aims.jose import KeySet
from aims.sdk.errors import SdkError

REFRESH_SECONDS: Final = 300.0
LEAST_SECONDS: Final = 10.0


class IssuerKeys:
    """What ``fetch`` gave last. A failed fetch leaves the keys that are known, and raises where there are none."""

    __slots__ = ("_clock", "_error", "_fetch", "_fetched", "_lock", "_tried", "keys")

    def __init__(self, fetch: Callable[[], Awaitable[KeySet]], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._fetched: float | None = None
        self._tried: float | None = None
        self._error: SdkError | None = None
        self._lock = asyncio.Lock()
        self.keys = KeySet()

    async def current(self) -> KeySet:
        """Return the keys, fetched anew when they are old. Raises: SdkError when there never were any."""
        if self._fetched is None or self._clock.monotonic() - self._fetched > REFRESH_SECONDS:
            await self._again()
        return self.keys

    async def newer(self) -> bool:
        """Look for keys that were not there before, at most every ten seconds; tell whether there were any."""
        before = self.keys
        await self._again()
        return self.keys is not before

    async def _again(self) -> None:
        async with self._lock:
            now = self._clock.monotonic()
            if self._tried is None or now - self._tried >= LEAST_SECONDS:
                self._tried = now
                try:
                    self.keys, self._error, self._fetched = await self._fetch(), None, now
                except SdkError as error:
                    self._error = error
            if self._fetched is None and self._error is not None:
                raise SdkError(self._error.reason, self._error.detail)
