"""Keys that live as long as this process: tests, and nodes that join anew after each start."""

from __future__ import annotations

from aims.keys.errors import KeyStoreError
from aims.keys.purpose import Algorithm, Purpose
from aims.keys.signing import LocalKey, generate


class MemoryKeyStore:
    """A `KeyStore` in a dictionary. Two stores share nothing."""

    __slots__ = ("_current", "_keys")

    def __init__(self) -> None:
        self._keys: dict[str, LocalKey] = {}
        self._current: dict[Purpose, str] = {}

    @classmethod
    def from_uri(cls, uri: str) -> MemoryKeyStore:
        if uri != "memory:":
            raise KeyStoreError("uri", "a memory store has no path")
        return cls()

    async def create(self, purpose: Purpose, algorithm: Algorithm | None = None) -> LocalKey:
        key = generate(purpose, algorithm)
        self._keys[key.kid] = key
        return key

    async def load(self, purpose: Purpose, kid: str) -> LocalKey:
        key = self._keys.get(kid)
        if key is None:
            raise KeyStoreError("missing", kid)
        if key.purpose is not purpose:
            raise KeyStoreError("purpose", f"{kid} is for {key.purpose}, not {purpose}")
        return key

    async def kids(self, purpose: Purpose) -> tuple[str, ...]:
        return tuple(sorted(kid for kid, key in self._keys.items() if key.purpose is purpose))

    async def made_before(self, purpose: Purpose, moment: float) -> tuple[str, ...]:
        del purpose, moment
        return ()  # it keeps no times, and nothing outlives the process that made it

    async def destroy(self, purpose: Purpose, kid: str) -> None:
        key = self._keys.get(kid)
        if key is not None and key.purpose is purpose:
            del self._keys[kid]

    async def current(self, purpose: Purpose) -> str | None:
        return self._current.get(purpose)

    async def make_current(self, purpose: Purpose, kid: str) -> None:
        if self._current.setdefault(purpose, kid) != kid:
            raise KeyStoreError("changed", purpose)

    def __repr__(self) -> str:
        return f"MemoryKeyStore({len(self._keys)} keys)"
