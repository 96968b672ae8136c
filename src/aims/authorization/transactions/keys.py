"""The keys of the Txn-Token service as this process holds them: what signs, and what its own JWK Set publishes.

They sign nothing else, and no other issuer's key set holds them, so no verifier of access tokens believes what they
sign, nor the reverse.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from aims.authorization.transactions.transaction_token import TransactionTokenVerifier
from aims.jose import KeySet
from aims.jose.jwk import parse_verification_key, public_jwk
from aims.jose.jwks import build_jwks
from aims.keys import KeyStore, Purpose, SigningKey
from aims.provisioning.authority.signing import Authority


@dataclass(frozen=True, slots=True)
class Held:
    """One consistent set of keys. ``ends`` (Unix seconds) is the end of the signing key's life, ``jwks`` the document
    that is published."""

    authority: Authority
    signer: SigningKey
    ends: int
    verifier: TransactionTokenVerifier
    jwks: bytes


class TransactionKeys:
    """Keys of purpose ``txn-token`` out of ``store``, in the state that ``authority`` returns at the moment."""

    def __init__(self, issuer: str, authority: Callable[[], Authority], store: KeyStore) -> None:
        self.issuer = issuer
        self._authority = authority
        self._store = store
        self._held: Held | None = None

    async def current(self) -> Held:
        """Return the keys in force. Raises: KeyStoreError; ProvisioningError ``authority_empty``."""
        authority, held = self._authority(), self._held
        if held is None or held.authority is not authority:
            held = self._held = await self._load(authority)
        return held

    async def _load(self, authority: Authority) -> Held:
        state = authority.state
        key = state.current(Purpose.TXN_TOKEN)
        published = KeySet(parse_verification_key(json.loads(each.jwk)) for each in state.published(Purpose.TXN_TOKEN))
        return Held(
            authority=authority,
            signer=await self._store.load(Purpose.TXN_TOKEN, key.kid),
            ends=key.not_after,
            verifier=TransactionTokenVerifier(self.issuer, authority.trust_domain, published),
            jwks=build_jwks(public_jwk(each.key, kid=each.kid, alg=each.algorithm, use="sig") for each in published),
        )
