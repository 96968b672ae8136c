"""The port to key stores, and the table that chooses one by URI."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from aims.keys.errors import KeyStoreError
from aims.keys.file import FileKeyStore
from aims.keys.memory import MemoryKeyStore
from aims.keys.purpose import Algorithm, Purpose
from aims.keys.signing import SigningKey


class KeyStore(Protocol):
    """Where private keys live. Every method raises `KeyStoreError` and nothing else on purpose."""

    async def create(self, purpose: Purpose, algorithm: Algorithm | None = None) -> SigningKey:
        """Make a key and keep it; when this returns the key survives a crash (where the store promises that)."""
        ...

    async def load(self, purpose: Purpose, kid: str) -> SigningKey:
        """Return the key. Raises ``missing``, ``purpose``, ``malformed`` and the store's own refusals."""
        ...

    async def kids(self, purpose: Purpose) -> tuple[str, ...]:
        """Return the names of the purpose's keys, sorted."""
        ...

    async def made_before(self, purpose: Purpose, moment: float) -> tuple[str, ...]:
        """Return those of ``kids`` that were made before ``moment`` (Unix seconds), as far as the store can tell."""
        ...

    async def destroy(self, purpose: Purpose, kid: str) -> None:
        """Forget a private key for good; one that is not there is no error."""
        ...

    async def current(self, purpose: Purpose) -> str | None:
        """Return the name of the purpose's own key, None before its first."""
        ...

    async def make_current(self, purpose: Purpose, kid: str) -> None:
        """Name the purpose's own key, once and in one step. Raises ``changed`` if it has one."""
        ...


SCHEMES: Mapping[str, Callable[[str], KeyStore]] = MappingProxyType(
    {"memory": MemoryKeyStore.from_uri, "file": FileKeyStore.from_uri}
)


def open_store(uri: str, schemes: Mapping[str, Callable[[str], KeyStore]] = SCHEMES) -> KeyStore:
    """Open the key store at ``uri`` (at most 2048 characters).

    Raises: KeyStoreError ``uri``, ``scheme``, and what the store refuses about its own place.
    """
    scheme, colon, _ = uri.partition(":")
    if not colon or not scheme or len(uri) > 2048 or "\x00" in uri:
        raise KeyStoreError("uri", repr(uri[:64]))
    if scheme not in schemes:
        raise KeyStoreError("scheme", repr(scheme[:64]))
    return schemes[scheme](uri)
