"""Keys as JSON (RFC 7517, RFC 7518 6, RFC 8037): strict reading of public keys, writing, thumbprints.

Accepted are EC keys on P-256, P-384 and P-521, RSA keys of 2048 to 8192 bits and Ed25519 keys, each coordinate in its
one canonical spelling. A public key that brings private members along is refused: it was leaked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from aims.jose import base64url
from aims.jose.algorithms import CURVES, MAX_RSA_BITS, MIN_RSA_BITS, PrivateKey, PublicKey, fitting
from aims.jose.errors import JoseError
from aims.jose.keys import VerificationKey, is_kid

PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_CURVES: Mapping[str, tuple[ec.EllipticCurve, int]] = {
    "P-256": (ec.SECP256R1(), 32),
    "P-384": (ec.SECP384R1(), 48),
    "P-521": (ec.SECP521R1(), 66),
}
_MAX_RSA_EXPONENT = 2**64
_THUMBPRINT_MEMBERS = {"EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n"), "OKP": ("crv", "kty", "x")}
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
# Points of small order, without the sign bit: a signature by such a "key" can be made by anybody.
_SMALL_ORDER = frozenset(
    bytes.fromhex(point)
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)


def parse_public(jwk: Mapping[str, Any]) -> PublicKey:
    """Return the public key of a JWK, whatever its other members say.

    Raises:
        JoseError: ``jwk``.
    """
    if not jwk.keys().isdisjoint(PRIVATE_MEMBERS):
        raise JoseError("jwk", "private or symmetric members")
    match jwk:
        case {"kty": "EC", "crv": str(curve), "x": str(x), "y": str(y)}:
            return _ec(curve, x, y)
        case {"kty": "RSA", "n": str(n), "e": str(e)}:
            return _rsa(n, e)
        case {"kty": "OKP", "crv": "Ed25519", "x": str(x)}:
            return _ed25519(x)
        case _:
            raise JoseError("jwk", "kty, crv or a missing member")


def parse_verification_key(jwk: Mapping[str, Any]) -> VerificationKey:
    """Return a JWK as a key to verify with: ``alg`` must fit, ``kid`` must be an identifier, where they are present.

    Raises:
        JoseError: ``jwk``, ``alg`` or ``kid``.
    """
    key, alg, kid = parse_public(jwk), jwk.get("alg"), jwk.get("kid")
    if "alg" in jwk and (not isinstance(alg, str) or alg not in fitting(key)):
        raise JoseError("alg", "alg of the JWK does not fit the key")
    if "kid" in jwk and not is_kid(kid):
        raise JoseError("kid")
    operations = jwk.get("key_ops")
    if operations is not None and (not isinstance(operations, list | tuple) or "verify" not in operations):
        raise JoseError("jwk", "key_ops does not allow verification")
    return VerificationKey(kid, alg, key)


def public_members(key: PublicKey) -> dict[str, str]:
    """Return exactly the members that RFC 7638 hashes, in its order.

    Raises:
        JoseError: ``jwk``, a key that AIMS does not accept.
    """
    if not fitting(key):
        raise JoseError("jwk", "key type, curve or size")
    if isinstance(key, ec.EllipticCurvePublicKey):
        curve = CURVES[key.curve.name]
        octets = _CURVES[curve][1]
        numbers = key.public_numbers()
        return {"crv": curve, "kty": "EC", "x": _fixed(numbers.x, octets), "y": _fixed(numbers.y, octets)}
    if isinstance(key, rsa.RSAPublicKey):
        modulus = key.public_numbers()
        return {"e": _minimal(modulus.e), "kty": "RSA", "n": _minimal(modulus.n)}
    return {"crv": "Ed25519", "kty": "OKP", "x": _text(key.public_bytes(Encoding.Raw, PublicFormat.Raw))}


def public_jwk(
    key: PublicKey, *, kid: str | None = None, alg: str | None = None, use: str | None = None
) -> dict[str, str]:
    """Return ``key`` as a JWK with the given members.

    Raises:
        JoseError: ``jwk``, ``kid``, or ``alg`` if it does not fit the key.
    """
    VerificationKey(kid, alg, key)
    extra = {"kid": kid, "alg": alg, "use": use}
    return {**public_members(key), **{name: value for name, value in extra.items() if value is not None}}


def private_jwk(key: PrivateKey, *, kid: str | None = None, alg: str | None = None) -> dict[str, str]:
    """Return the private key as a JWK, for the Workload API's ``wit_svid_key`` and nothing else."""
    public = public_jwk(key.public_key(), kid=kid, alg=alg)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        octets = _CURVES[public["crv"]][1]
        return {**public, "d": _fixed(key.private_numbers().private_value, octets)}
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.private_numbers()
        named = {
            "d": numbers.d,
            "p": numbers.p,
            "q": numbers.q,
            "dp": numbers.dmp1,
            "dq": numbers.dmq1,
            "qi": numbers.iqmp,
        }
        return {**public, **{name: _minimal(value) for name, value in named.items()}}
    return {**public, "d": _text(key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))}


def thumbprint(key: PublicKey) -> str:
    """Return the SHA-256 thumbprint of ``key`` (RFC 7638), 43 characters: the value of ``jkt``."""
    return _text(hashlib.sha256(msgspec.json.encode(public_members(key))).digest())


def thumbprint_of(jwk: Mapping[str, Any]) -> str:
    """Return the thumbprint of a JWK that ``parse_public`` accepts, whose spelling is therefore canonical.

    Raises:
        JoseError: ``jwk``, a member is missing.
    """
    names = _THUMBPRINT_MEMBERS.get(jwk.get("kty", ""), ())
    members = {name: jwk[name] for name in names if name in jwk}
    if not members or len(members) != len(names):
        raise JoseError("jwk", "kty or a missing member")
    return _text(hashlib.sha256(msgspec.json.encode(members)).digest())


def is_thumbprint(value: object) -> bool:
    """Tell whether ``value`` has the form of a SHA-256 thumbprint in base64url."""
    return isinstance(value, str) and _THUMBPRINT.fullmatch(value) is not None


# Building a key checks that its point lies on the curve, at about the price of half a verification; the same workload
# key comes with each of its requests. The caches hold public keys only.
@lru_cache(maxsize=1024)
def _ec(curve: str, x: str, y: str) -> PublicKey:
    row = _CURVES.get(curve)
    if row is None:
        raise JoseError("jwk", "curve")
    try:
        return ec.EllipticCurvePublicNumbers(_integer(x, row[1]), _integer(y, row[1]), row[0]).public_key()
    except ValueError:
        raise JoseError("jwk", "not a point of the curve") from None


@lru_cache(maxsize=128)
def _rsa(n: str, e: str) -> PublicKey:
    modulus, exponent = _integer(n), _integer(e)
    if not MIN_RSA_BITS <= modulus.bit_length() <= MAX_RSA_BITS or not 3 <= exponent < _MAX_RSA_EXPONENT:
        raise JoseError("jwk", "RSA size or exponent")
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise JoseError("jwk", "not an RSA key") from None


@lru_cache(maxsize=1024)
def _ed25519(x: str) -> PublicKey:
    octets = _octets(x)
    if len(octets) != 32 or octets[:31] + bytes([octets[31] & 0x7F]) in _SMALL_ORDER:
        raise JoseError("jwk", "not an Ed25519 key")
    return ed25519.Ed25519PublicKey.from_public_bytes(octets)


def _octets(text: str) -> bytes:
    if not text or len(text) > MAX_RSA_BITS // 6 + 2 or not text.isascii():
        raise JoseError("jwk", "size or alphabet of a member")
    try:
        return base64url.decode(text.encode("ascii"))
    except JoseError:
        raise JoseError("jwk", "not canonical base64url") from None


def _integer(text: str, octets: int | None = None) -> int:
    raw = _octets(text)
    # RFC 7518 6.2.1.2: coordinates have full length; 6.3.1: RSA integers have no leading zero
    if (len(raw) != octets) if octets is not None else raw[0] == 0:
        raise JoseError("jwk", "length of an integer")
    return int.from_bytes(raw, "big")


def _text(octets: bytes) -> str:
    return base64url.encode(octets).decode("ascii")


def _fixed(value: int, octets: int) -> str:
    return _text(value.to_bytes(octets, "big"))


def _minimal(value: int) -> str:
    return _text(value.to_bytes((value.bit_length() + 7) // 8, "big"))
