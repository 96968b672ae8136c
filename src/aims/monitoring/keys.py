"""The keys of purpose ``set``: they sign security events and nothing else, and have a JWK Set of their own."""

from __future__ import annotations

from collections.abc import Callable

from aims.keys import KeyStore, Purpose
from aims.provisioning.authority.issuer_keys import IssuerKeys, KeysInForce
from aims.provisioning.authority.signing import Authority


class SetKeys(KeysInForce[IssuerKeys]):
    """What signs security events."""

    def __init__(self, authority: Callable[[], Authority], store: KeyStore) -> None:
        super().__init__(Purpose.SET, authority, store)

    def _hold(self, authority: Authority, keys: IssuerKeys) -> IssuerKeys:  # noqa: ARG002  they are enough
        return keys
