"""The keys of one purpose as an issuer holds them: what signs now, what verifies, and the document that says so.

They are rotated with the other keys of the authority; here only the current state is loaded, anew whenever it changed.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from aims.jose import KeySet
from aims.jose.jwk import parse_verification_key, public_jwk
from aims.jose.jwks import build_jwks
from aims.keys import KeyStore, Purpose, SigningKey
from aims.provisioning.authority.model import AuthorityState
from aims.provisioning.authority.signing import Authority

Held = TypeVar("Held")


@dataclass(frozen=True, slots=True)
class IssuerKeys:
    """One consistent set. ``ends`` (Unix seconds) is the end of the signing key's life, ``jwks`` the document that is
    published."""

    signer: SigningKey
    ends: int
    published: KeySet
    jwks: bytes


class KeysInForce(ABC, Generic[Held]):
    """Keys of ``purpose`` out of ``store``, in the state that ``authority`` returns at the moment."""

    def __init__(self, purpose: Purpose, authority: Callable[[], Authority], store: KeyStore) -> None:
        self._purpose = purpose
        self._authority = authority
        self._store = store
        self._held: tuple[Authority, Held] | None = None

    async def current(self) -> Held:
        """Return the keys in force. Raises: KeyStoreError; ProvisioningError ``authority_empty``."""
        authority, held = self._authority(), self._held
        if held is None or held[0] is not authority:
            held = self._held = authority, self._hold(authority, await self._load(authority.state))
        return held[1]

    @abstractmethod
    def _hold(self, authority: Authority, keys: IssuerKeys) -> Held:
        """Return what this issuer makes of its keys."""

    async def _load(self, state: AuthorityState) -> IssuerKeys:
        key, published = state.current(self._purpose), published_keys(state, self._purpose)
        return IssuerKeys(
            signer=await self._store.load(self._purpose, key.kid),
            ends=key.not_after,
            published=published,
            jwks=build_jwks(public_jwk(each.key, kid=each.kid, alg=each.algorithm, use="sig") for each in published),
        )


def published_keys(state: AuthorityState, purpose: Purpose) -> KeySet:
    """Return the keys that verify what was signed for ``purpose``: current, next, and those that retire."""
    return KeySet(parse_verification_key(json.loads(key.jwk)) for key in state.published(purpose))
