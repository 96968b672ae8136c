"""The keys of the Txn-Token service as this process holds them: what signs, and what its own JWK Set publishes.

They sign nothing else, and no other issuer's key set holds them, so no verifier of access tokens believes what they
sign, nor the reverse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aims.authorization.transactions.transaction_token import TransactionTokenVerifier
from aims.keys import KeyStore, Purpose, SigningKey
from aims.provisioning.authority.issuer_keys import IssuerKeys, KeysInForce
from aims.provisioning.authority.signing import Authority


@dataclass(frozen=True, slots=True)
class Held:
    """One consistent set of keys; ``ends`` and ``jwks`` as in ``IssuerKeys``."""

    signer: SigningKey
    ends: int
    verifier: TransactionTokenVerifier
    jwks: bytes


class TransactionKeys(KeysInForce[Held]):
    """What signs Txn-Tokens of ``issuer``."""

    def __init__(self, issuer: str, authority: Callable[[], Authority], store: KeyStore) -> None:
        super().__init__(Purpose.TXN_TOKEN, authority, store)
        self.issuer = issuer

    def _hold(self, authority: Authority, keys: IssuerKeys) -> Held:
        verifier = TransactionTokenVerifier(self.issuer, authority.trust_domain, keys.published)
        return Held(keys.signer, keys.ends, verifier, keys.jwks)
