"""Which keys may stand in a certificate that AIMS issues or accepts as a peer's."""

from __future__ import annotations

from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from aims.x509.errors import X509Error

LeafKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

_CURVES = frozenset({"secp256r1", "secp384r1"})
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 4096


def leaf_key(key: object) -> LeafKey:
    """Return ``key`` if it is P-256, P-384, or RSA of 2048 to 4096 bits with the exponent 65537.

    Ed25519 is refused because path validation of several implementations, ours included, refuses its signatures.

    Raises: X509Error ``key_type``.
    """
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return key
    if isinstance(key, rsa.RSAPublicKey) and MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        if key.public_numbers().e == 65537:
            return key
        raise X509Error("key_type", "RSA exponent")
    raise X509Error("key_type", type(key).__name__)
