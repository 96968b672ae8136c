"""The keys of purpose ``set``: they sign security events and nothing else, and have a JWK Set of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from aims.jose import KeySet
from aims.jose.jwk import parse_verification_key, public_jwk
from aims.jose.jwks import build_jwks
from aims.keys import KeyStore, Purpose, SigningKey
from aims.provisioning.authority.signing import Authority


@dataclass(frozen=True, slots=True)
class HeldSetKeys:
    """One consistent set: what signs, what verifies, and the published document."""

    authority: Authority
    signer: SigningKey
    published: KeySet
    jwks: bytes


class SetKeys:
    """The keys in the state that ``authority`` returns at the moment, out of ``store``; rotated with the others."""

    def __init__(self, authority: Callable[[], Authority], store: KeyStore) -> None:
        self._authority = authority
        self._store = store
        self._held: HeldSetKeys | None = None

    async def current(self) -> HeldSetKeys:
        """Return the keys in force. Raises: KeyStoreError; ProvisioningError ``authority_empty``."""
        authority, held = self._authority(), self._held
        if held is None or held.authority is not authority:
            held = self._held = await self._load(authority)
        return held

    async def _load(self, authority: Authority) -> HeldSetKeys:
        state = authority.state
        published = KeySet(parse_verification_key(json.loads(key.jwk)) for key in state.published(Purpose.SET))
        jwks = build_jwks(public_jwk(key.key, kid=key.kid, alg=key.algorithm, use="sig") for key in published)
        signer = await self._store.load(Purpose.SET, state.current(Purpose.SET).kid)
        return HeldSetKeys(authority, signer, published, jwks)
