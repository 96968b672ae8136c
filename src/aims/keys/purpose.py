"""What a key is for, and which algorithms that allows.

One key has one purpose for its whole life. The tables here are closed: what they do not list is refused.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType


class Purpose(StrEnum):
    """The single use of a key."""

    X509_CA = "x509-ca"
    TLS_PUBLIC = "tls-public"
    JWT_SVID = "jwt-svid"
    WIT_SVID = "wit-svid"
    ACCESS_TOKEN = "access-token"  # noqa: S105  a purpose, not a password
    TXN_TOKEN = "txn-token"  # noqa: S105  a purpose, not a password
    SET = "set"
    AUDIT_CHECKPOINT = "audit-checkpoint"
    NODE = "node"


class Algorithm(StrEnum):
    """A JOSE algorithm name (RFC 7518, RFC 9864); it fixes the kind of key as well."""

    ES256 = "ES256"
    ES384 = "ES384"
    ED25519 = "Ed25519"


_ECDSA = (Algorithm.ES256, Algorithm.ES384)
_ANY = (*_ECDSA, Algorithm.ED25519)

# The first algorithm is the default. No Ed25519 where the verifier cannot have it: RFC 5280 path validation of the
# cryptography library (X.509 purposes) and the closed algorithm list of JWT-SVID and WIT-SVID.
ALGORITHMS = MappingProxyType(
    {
        Purpose.X509_CA: _ECDSA,
        Purpose.TLS_PUBLIC: _ECDSA,
        Purpose.NODE: _ECDSA,
        Purpose.JWT_SVID: _ECDSA,
        Purpose.WIT_SVID: _ECDSA,
        Purpose.ACCESS_TOKEN: _ANY,
        Purpose.TXN_TOKEN: _ANY,
        Purpose.SET: _ANY,
        Purpose.AUDIT_CHECKPOINT: (Algorithm.ED25519, Algorithm.ES256),
    }
)

# Keys of these purposes sign certificates, requests and handshakes, never a token or a note; the others the reverse.
CERTIFICATE_PURPOSES = frozenset({Purpose.X509_CA, Purpose.TLS_PUBLIC, Purpose.NODE})
