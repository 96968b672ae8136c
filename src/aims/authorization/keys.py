"""The keys of the authorization server as this process holds them: what signs access tokens, and what is published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aims.authorization.access_token import AccessTokenVerifier
from aims.identifiers import TrustDomain
from aims.jose import KeySet
from aims.keys import KeyStore, Purpose, SigningKey
from aims.provisioning.authority.issuer_keys import IssuerKeys, KeysInForce, published_keys
from aims.provisioning.authority.signing import Authority


@dataclass(frozen=True, slots=True)
class Held:
    """One consistent set of keys; ``ends`` and ``jwks`` as in ``IssuerKeys``.

    ``assertions`` holds the keys of JWT-SVIDs by trust domain.
    """

    signer: SigningKey
    ends: int
    verifier: AccessTokenVerifier
    assertions: Mapping[TrustDomain, KeySet]
    jwks: bytes


class TokenKeys(KeysInForce[Held]):
    """What signs access tokens of ``issuer``."""

    def __init__(self, issuer: str, authority: Callable[[], Authority], store: KeyStore) -> None:
        super().__init__(Purpose.ACCESS_TOKEN, authority, store)
        self._issuer = issuer

    def _hold(self, authority: Authority, keys: IssuerKeys) -> Held:
        assertions = {authority.trust_domain: published_keys(authority.state, Purpose.JWT_SVID)}
        return Held(keys.signer, keys.ends, AccessTokenVerifier(self._issuer, keys.published), assertions, keys.jwks)
