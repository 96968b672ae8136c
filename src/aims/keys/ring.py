"""The keys in use: per purpose a current one, the next one once it is prepared, and those that retire.

A key is published before it signs (prepare), signs (activate), is believed until what it signed has ended, and goes
(forget). The store is told before the ring changes: a crash between two steps leaves at most a key that no slot names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aims.keys.errors import KeyStoreError
from aims.keys.purpose import Purpose
from aims.keys.signing import PublicKey, SigningKey
from aims.keys.slots import Slots
from aims.keys.store import KeyStore


@dataclass(frozen=True, slots=True)
class _Held:
    slots: Slots
    keys: tuple[SigningKey, ...]  # in the order of slots.kids()


class KeyRing:
    """Keys by purpose. A key enters only the slot of its own purpose, and no kid has two purposes."""

    __slots__ = ("_held", "_store")

    def __init__(self, store: KeyStore) -> None:
        """Start empty; `load` fills it."""
        self._store = store
        self._held: dict[Purpose, _Held] = {}

    @classmethod
    async def open(cls, store: KeyStore, purposes: Iterable[Purpose], *, create: bool = True) -> KeyRing:
        """Load every purpose, creating first keys (default algorithm) where there are none.

        Raises: KeyStoreError ``no_current`` when ``create`` is off and a purpose has no key; what the store refuses.
        """
        ring = cls(store)
        for purpose in purposes:
            await ring.load(purpose, create=create)
        return ring

    async def load(self, purpose: Purpose, *, create: bool = False) -> None:
        """Read one purpose (again) from the store.

        Raises: as `open`.
        """
        slots = await self._store.slots(purpose)
        if slots is None:
            if not create:
                raise KeyStoreError("no_current", purpose)
            slots = await self._first(purpose)
        await self._hold(purpose, slots)

    def current(self, purpose: Purpose) -> SigningKey:
        """Return the key that signs now. Raises: KeyStoreError ``no_current``."""
        return self._of(purpose).keys[0]

    def next(self, purpose: Purpose) -> SigningKey | None:
        """Return the prepared key. Raises: KeyStoreError ``no_current`` for a purpose that is not loaded."""
        held = self._of(purpose)
        return held.keys[1] if held.slots.next is not None else None

    def public_keys(self, purpose: Purpose) -> tuple[PublicKey, ...]:
        """Return what to publish: current, next, and those that retire. Raises: KeyStoreError ``no_current``."""
        return tuple(key.public() for key in self._of(purpose).keys)

    def find(self, purpose: Purpose, kid: str) -> PublicKey:
        """Return the published key of that purpose and name. Raises: KeyStoreError ``missing``, ``no_current``."""
        for key in self._of(purpose).keys:
            if key.kid == kid:
                return key.public()
        raise KeyStoreError("missing", purpose)

    async def prepare(self, purpose: Purpose) -> SigningKey:
        """Make the next key of a purpose; it is published from now on and signs after `activate`.

        Raises: KeyStoreError ``next_exists``, ``no_current``, ``changed``.
        """
        before = self._of(purpose).slots
        if before.next is not None:
            raise KeyStoreError("next_exists", purpose)
        key = await self._store.create(purpose)
        try:
            await self._change(purpose, before, before.prepared(key.kid))
        except KeyStoreError:
            await self._store.destroy(purpose, key.kid)
            raise
        return key

    async def activate(self, purpose: Purpose, *, retire_until: float) -> SigningKey:
        """Let the next key sign; the old one stays published until ``retire_until`` (Unix seconds).

        Raises: KeyStoreError ``no_next``, ``no_current``, ``changed``.
        """
        before = self._of(purpose).slots
        await self._change(purpose, before, before.activated(retire_until))
        return self.current(purpose)

    async def forget(self, purpose: Purpose, now: float) -> tuple[str, ...]:
        """Destroy the retired keys whose time is over and return their names. Raises: ``no_current``, ``changed``."""
        before = self._of(purpose).slots
        after = before.forgotten(now)
        gone = tuple(kid for kid in before.kids() if kid not in after.kids())
        if gone:
            await self._change(purpose, before, after)
        for kid in gone:
            await self._store.destroy(purpose, kid)
        return gone

    async def _first(self, purpose: Purpose) -> Slots:
        key = await self._store.create(purpose)
        slots = Slots(current=key.kid)
        try:
            await self._store.put_slots(purpose, None, slots)
        except KeyStoreError as error:
            # Another process of this host made the first key in the same moment: its key is the one.
            await self._store.destroy(purpose, key.kid)
            found = await self._store.slots(purpose) if error.reason == "changed" else None
            if found is None:
                raise
            return found
        return slots

    async def _change(self, purpose: Purpose, before: Slots, after: Slots) -> None:
        await self._store.put_slots(purpose, before, after)
        await self._hold(purpose, after)

    async def _hold(self, purpose: Purpose, slots: Slots) -> None:
        keys = tuple([await self._store.load(purpose, kid) for kid in slots.kids()])
        for key, kid in zip(keys, slots.kids(), strict=True):
            if key.purpose is not purpose or key.kid != kid:
                raise KeyStoreError("purpose", f"{key.kid} is for {key.purpose}, not {purpose}")
            if any(key.kid in other.slots.kids() for name, other in self._held.items() if name is not purpose):
                raise KeyStoreError("purpose", f"{key.kid} has two purposes")
        self._held[purpose] = _Held(slots, keys)

    def _of(self, purpose: Purpose) -> _Held:
        held = self._held.get(purpose)
        if held is None:
            raise KeyStoreError("no_current", purpose)
        return held

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(sorted(self._held))})"
