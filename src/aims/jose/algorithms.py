"""The signature algorithms of AIMS (RFC 7518 3, RFC 9864), each bound to the keys that it fits.

There is no ``none`` and no MAC. ``EdDSA`` and ``Ed25519`` are two names: a key or header that says one is never taken
for the other. Signatures are in JOSE form, so ECDSA's are ``r || s``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from aims.jose.errors import JoseError

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One row of the table: ``octets`` is the length of one ECDSA coordinate, ``curve`` the name in a JWK."""

    kty: Literal["EC", "RSA", "OKP"]
    curve: str = ""
    octets: int = 0
    ecdsa: ec.ECDSA | None = None
    hash: hashes.HashAlgorithm | None = None
    padding: padding.AsymmetricPadding | None = None


def _ecdsa(curve: str, octets: int, digest: hashes.HashAlgorithm) -> Algorithm:
    return Algorithm("EC", curve, octets, ecdsa=ec.ECDSA(digest))


def _pkcs1(digest: hashes.HashAlgorithm) -> Algorithm:
    return Algorithm("RSA", hash=digest, padding=padding.PKCS1v15())


def _pss(digest: hashes.HashAlgorithm) -> Algorithm:
    salted = padding.PSS(padding.MGF1(digest), padding.PSS.DIGEST_LENGTH)  # RFC 7518 3.5: salt as long as the hash
    return Algorithm("RSA", hash=digest, padding=salted)


ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        "ES256": _ecdsa("P-256", 32, hashes.SHA256()),
        "ES384": _ecdsa("P-384", 48, hashes.SHA384()),
        "ES512": _ecdsa("P-521", 66, hashes.SHA512()),
        "RS256": _pkcs1(hashes.SHA256()),
        "RS384": _pkcs1(hashes.SHA384()),
        "RS512": _pkcs1(hashes.SHA512()),
        "PS256": _pss(hashes.SHA256()),
        "PS384": _pss(hashes.SHA384()),
        "PS512": _pss(hashes.SHA512()),
        "Ed25519": Algorithm("OKP", "Ed25519"),
        "EdDSA": Algorithm("OKP", "Ed25519"),
    }
)

# JWT-SVID 3 and WIT-SVID 3: the closed set of SPIFFE.
SPIFFE_ALGORITHMS = frozenset({f"{family}{bits}" for family in ("RS", "ES", "PS") for bits in (256, 384, 512)})
ALL_ALGORITHMS = frozenset(ALGORITHMS)

CURVES: Mapping[str, str] = MappingProxyType({"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"})


def fitting(key: PublicKey) -> frozenset[str]:
    """Return the algorithms that ``key`` can verify; empty for a key that is not accepted at all."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        curve = CURVES.get(key.curve.name)
        return frozenset(name for name, row in ALGORITHMS.items() if row.kty == "EC" and row.curve == curve)
    if isinstance(key, rsa.RSAPublicKey):
        fits = MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS
        return frozenset(name for name, row in ALGORITHMS.items() if row.kty == "RSA" and fits)
    if isinstance(key, ed25519.Ed25519PublicKey):
        return frozenset({"Ed25519", "EdDSA"})
    return frozenset()


def verify_raw(algorithm: str, key: PublicKey, signature: bytes, data: bytes) -> bool:
    """Tell whether ``signature`` (JOSE form) over ``data`` verifies. ``algorithm`` must be one that fits ``key``."""
    row = ALGORITHMS[algorithm]
    try:
        if row.ecdsa is not None and isinstance(key, ec.EllipticCurvePublicKey):
            octets = row.octets
            if len(signature) != 2 * octets:
                return False
            r, s = int.from_bytes(signature[:octets], "big"), int.from_bytes(signature[octets:], "big")
            key.verify(encode_dss_signature(r, s), data, row.ecdsa)
        elif row.hash is not None and row.padding is not None and isinstance(key, rsa.RSAPublicKey):
            if len(signature) != (key.key_size + 7) // 8:
                return False
            key.verify(signature, data, row.padding, row.hash)
        elif row.kty == "OKP" and isinstance(key, ed25519.Ed25519PublicKey):
            if len(signature) != 64:
                return False
            key.verify(signature, data)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def sign_raw(algorithm: str, key: PrivateKey, data: bytes) -> bytes:
    """Return the signature over ``data`` in JOSE form.

    Raises:
        JoseError: ``alg``, the key does not fit the algorithm.
    """
    row = ALGORITHMS.get(algorithm)
    if row is not None:
        if row.ecdsa is not None and isinstance(key, ec.EllipticCurvePrivateKey):
            if CURVES.get(key.curve.name) == row.curve:
                r, s = decode_dss_signature(key.sign(data, row.ecdsa))
                return r.to_bytes(row.octets, "big") + s.to_bytes(row.octets, "big")
        elif row.hash is not None and row.padding is not None and isinstance(key, rsa.RSAPrivateKey):
            if MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
                return key.sign(data, row.padding, row.hash)
        elif row.kty == "OKP" and isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(data)
    raise JoseError("alg", f"{algorithm} does not fit the signing key")
