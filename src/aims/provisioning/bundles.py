"""What verifiers are given: the SPIFFE bundle of the trust domain, and the key set of its JWT-SVIDs."""

from __future__ import annotations

from typing import Final

from aims.credentials.bundle import Bundle
from aims.keys import Purpose
from aims.provisioning.authority.issuer_keys import published_keys
from aims.provisioning.authority.signing import Authority

REFRESH_HINT: Final = 300
"""Seconds. A key is published twice as long before it signs."""


def domain_bundle(authority: Authority) -> Bundle:
    """Return the trust domain's bundle: every published key under its own use, and the number of this state.

    The local TLS authority is not in it.
    """
    state = authority.state
    return Bundle(
        trust_domain=authority.trust_domain,
        x509_authorities=authority.roots,
        jwt_keys=published_keys(state, Purpose.JWT_SVID),
        wit_keys=published_keys(state, Purpose.WIT_SVID),
        sequence=state.sequence,
        refresh_hint=REFRESH_HINT,
    )


def jwt_svid_jwks(authority: Authority) -> bytes:
    """Return the JWK Set behind the OpenID face of JWT-SVIDs (issuer ``.../spiffe``): their keys and no others."""
    return domain_bundle(authority).jwt_jwks()
