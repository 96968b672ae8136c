"""The key of a purpose that is not rotated. Those that are rotated belong to `aims.provisioning.authority`."""

from __future__ import annotations

from aims.keys.errors import KeyStoreError
from aims.keys.purpose import Purpose
from aims.keys.signing import SigningKey
from aims.keys.store import KeyStore


async def current_key(store: KeyStore, purpose: Purpose) -> SigningKey:
    """Return the purpose's key, made with its default algorithm if there is none yet.

    Raises: KeyStoreError ``purpose`` for a store that gives another key than the one asked for; what it refuses.
    """
    kid = await store.current(purpose)
    if kid is None:
        kid = await _first(store, purpose)
    key = await store.load(purpose, kid)
    if key.purpose is not purpose or key.kid != kid:
        raise KeyStoreError("purpose", f"{key.kid} is for {key.purpose}, not {purpose}")
    return key


async def _first(store: KeyStore, purpose: Purpose) -> str:
    key = await store.create(purpose)
    try:
        await store.make_current(purpose, key.kid)
    except KeyStoreError as error:
        # Another process of this host made the first key in the same moment: its key is the one.
        await store.destroy(purpose, key.kid)
        found = await store.current(purpose) if error.reason == "changed" else None
        if found is None:
            raise
        return found
    return key.kid
