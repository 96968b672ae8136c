"""The keys of the authorization server as this process holds them: what signs access tokens, and what is published.

They are rotated with the other keys of the authority; here only the current state is loaded, anew whenever it changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aims.authorization.access_token import AccessTokenVerifier
from aims.identifiers import TrustDomain
from aims.jose import KeySet
from aims.jose.jwk import parse_verification_key, public_jwk
from aims.jose.jwks import build_jwks
from aims.keys import KeyStore, Purpose, SigningKey
from aims.provisioning.authority.model import AuthorityState
from aims.provisioning.authority.signing import Authority


@dataclass(frozen=True, slots=True)
class Held:
    """One consistent set of keys. ``ends`` (Unix seconds) is the end of the signing key's life.

    ``assertions`` holds the keys of JWT-SVIDs by trust domain; ``jwks`` is the published document.
    """

    authority: Authority
    signer: SigningKey
    ends: int
    verifier: AccessTokenVerifier
    assertions: Mapping[TrustDomain, KeySet]
    jwks: bytes


class TokenKeys:
    """Keys of purpose ``access-token`` out of ``store``, in the state that ``authority`` returns at the moment."""

    def __init__(self, issuer: str, authority: Callable[[], Authority], store: KeyStore) -> None:
        self._issuer = issuer
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
        key = state.current(Purpose.ACCESS_TOKEN)
        published = _keys(state, Purpose.ACCESS_TOKEN)
        return Held(
            authority=authority,
            signer=await self._store.load(Purpose.ACCESS_TOKEN, key.kid),
            ends=key.not_after,
            verifier=AccessTokenVerifier(self._issuer, published),
            assertions={authority.trust_domain: _keys(state, Purpose.JWT_SVID)},
            jwks=build_jwks(public_jwk(each.key, kid=each.kid, alg=each.algorithm, use="sig") for each in published),
        )


def _keys(state: AuthorityState, purpose: Purpose) -> KeySet:
    return KeySet(parse_verification_key(json.loads(key.jwk)) for key in state.published(purpose))
