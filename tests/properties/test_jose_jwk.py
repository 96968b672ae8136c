"""Keys as JSON: foreign libraries as oracles, and every way in which a key is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from jwcrypto import jwk as jwcrypto_jwk
from tests.properties.hostile import b64

from aims.jose import JoseError, KeySet, VerificationKey
from aims.jose.algorithms import PrivateKey, fitting
from aims.jose.jwk import (
    is_thumbprint,
    parse_public,
    parse_verification_key,
    private_jwk,
    public_jwk,
    public_members,
    thumbprint,
    thumbprint_of,
)
from aims.jose.jwks import build_jwks, parse_jwks

KEYS: dict[str, PrivateKey] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "RSA": rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}
P256 = public_jwk(KEYS["P-256"].public_key())
RSA = public_jwk(KEYS["RSA"].public_key())
OKP = public_jwk(KEYS["Ed25519"].public_key())
FIELD = 2**255 - 19
CURVE_D = -121665 * pow(121666, -1, FIELD) % FIELD


@pytest.mark.parametrize("name", KEYS)
def test_keys_round_trip_and_foreign_libraries_agree(name: str) -> None:
    private = KEYS[name]
    public = private.public_key()
    jwk = public_jwk(public, kid="k", use="sig")
    assert parse_public(jwk) == public
    assert thumbprint(public) == thumbprint_of(jwk) == jwcrypto_jwk.JWK(**jwk).thumbprint()
    assert is_thumbprint(thumbprint(public))
    secret = jwcrypto_jwk.JWK(**private_jwk(private, kid="k"))
    assert json.loads(secret.export_private()) == private_jwk(private, kid="k")
    assert json.loads(secret.export_public()) == public_jwk(public, kid="k")


@given(st.integers(1, 2**200))
@settings(max_examples=50, deadline=None)
def test_coordinates_with_leading_zeros_keep_their_length(secret: int) -> None:
    public = ec.derive_private_key(secret, ec.SECP256R1()).public_key()
    jwk = public_jwk(public)
    assert len(jwk["x"]) == len(jwk["y"]) == 43
    assert parse_public(jwk) == public


def _int(value: int, octets: int) -> str:
    return b64(value.to_bytes(octets, "big"))


_X = int.from_bytes(base64.urlsafe_b64decode(P256["x"] + "="), "big")
_N = int.from_bytes(base64.urlsafe_b64decode(RSA["n"] + "=="), "big")
_P256_FIELD = 2**256 - 2**224 + 2**192 + 2**96 - 1


@pytest.mark.parametrize(
    "jwk",
    [
        {},
        {"kty": "oct", "k": "AAAA"},
        {"kty": ["EC"]},
        {**P256, "kty": "ec"},
        {**P256, "crv": "P-384"},
        {**P256, "crv": "secp256k1"},
        {**P256, "d": "AAAA"},
        {**P256, "k": "AAAA"},
        {**P256, "x": P256["y"], "y": P256["x"]},
        {**P256, "x": P256["x"] + "="},
        {**P256, "x": P256["x"] + "\n"},
        {**P256, "x": b64(b"\0" + _X.to_bytes(32, "big"))},
        {**P256, "x": _int(_X >> 8, 31)},
        {**P256, "x": _int(_P256_FIELD, 32)},
        {**P256, "x": _int(0, 32), "y": _int(0, 32)},
        {**P256, "x": 1},
        {**P256, "x": ""},
        {**P256, "x": "é" * 43},
        {**P256, "x": "A" * 100_000},
        {name: value for name, value in P256.items() if name != "y"},
        {**RSA, "p": "AAAA"},
        {**RSA, "e": "AQ"},
        {**RSA, "e": "AAEAAQ"},
        {**RSA, "e": _int(2, 1)},
        {**RSA, "e": _int(2**64 + 1, 9)},
        {**RSA, "n": b64(b"\0" + _N.to_bytes(256, "big"))},
        {**RSA, "n": _int(_N >> 1024 | 1, 128)},
        {**RSA, "n": _int(_N | 1 << 8199, 1025)},
        {**OKP, "crv": "Ed448"},
        {**OKP, "crv": "X25519"},
        {**OKP, "x": OKP["x"][:-2]},
        {**OKP, "d": "AAAA"},
    ],
    ids=range(32),
)
def test_keys_that_are_weak_private_or_misspelt_are_refused(jwk: dict[str, Any]) -> None:
    with pytest.raises(JoseError, match=r"jose\.jwk"):
        parse_public(jwk)


def _ed25519_multiply(point: tuple[int, int], factor: int) -> tuple[int, int]:
    total = (0, 1)
    for bit in f"{factor:b}":
        total = _ed25519_add(total, total)
        if bit == "1":
            total = _ed25519_add(total, point)
    return total


def _ed25519_add(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    (a, b), (c, d) = first, second
    product = CURVE_D * a * b * c * d
    return (
        (a * d + b * c) * pow(1 + product, -1, FIELD) % FIELD,
        (b * d + a * c) * pow(1 - product, -1, FIELD) % FIELD,
    )


def _ed25519_x(y: int) -> int | None:
    square = (y * y - 1) * pow(CURVE_D * y * y + 1, -1, FIELD) % FIELD
    root = pow(square, (FIELD + 3) // 8, FIELD)
    if root * root % FIELD != square:
        root = root * pow(2, (FIELD - 1) // 4, FIELD) % FIELD
    return root if root * root % FIELD == square else None


def _small_order_ys() -> set[int]:
    """All y of points whose order divides 8: multiply points by the prime order of the base point's group."""
    order = 2**252 + 27742317777372353535851937790883648493
    found: set[int] = set()
    for y in range(2, 60):
        x = _ed25519_x(y)
        if x is not None:
            point = _ed25519_multiply((x, y), order)
            found.add(point[1])
    return found


def test_ed25519_points_of_small_order_are_refused_in_every_encoding() -> None:
    ys = _small_order_ys()
    assert len(ys) == 5  # orders 1, 2, 4 (one y) and 8 (two)
    encodings = [y + alias for y in ys for alias in (0, FIELD) if y + alias < 2**255]
    assert len(encodings) == 7
    for value in encodings:
        for sign in (0, 1 << 255):
            octets = (value | sign).to_bytes(32, "little")
            with pytest.raises(JoseError, match=r"jose\.jwk"):
                parse_public({"kty": "OKP", "crv": "Ed25519", "x": b64(octets)})
    # why: under the neutral point anybody's "signature" verifies
    neutral = ed25519.Ed25519PublicKey.from_public_bytes((1).to_bytes(32, "little"))
    neutral.verify((1).to_bytes(32, "little") + bytes(32), b"anything")


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"alg": "RS256"}, "alg"),
        ({"alg": "ES384"}, "alg"),
        ({"alg": "none"}, "alg"),
        ({"alg": None}, "alg"),
        ({"kid": ""}, "kid"),
        ({"kid": None}, "kid"),
        ({"kid": "k" * 257}, "kid"),
        ({"key_ops": ["sign"]}, "jwk"),
        ({"key_ops": "verify"}, "jwk"),
    ],
)
def test_members_that_contradict_the_key_refuse_it(extra: dict[str, Any], reason: str) -> None:
    with pytest.raises(JoseError) as refusal:
        parse_verification_key({**P256, **extra})
    assert refusal.value.reason == reason


def test_foreign_kinds_of_keys_fit_no_algorithm() -> None:
    k1: Any = ec.generate_private_key(ec.SECP256K1()).public_key()
    weak: Any = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505  # weak on purpose
    other: Any = ed448.Ed448PrivateKey.generate().public_key()
    for key in (k1, weak, other):
        assert fitting(key) == frozenset()
        with pytest.raises(JoseError, match=r"jose\.jwk"):
            VerificationKey("k", None, key)
        with pytest.raises(JoseError, match=r"jose\.jwk"):
            public_members(key)


def test_a_bad_entry_spoils_only_itself_and_use_chooses() -> None:
    good = public_jwk(KEYS["P-256"].public_key(), kid="a", use="jwt-svid")
    document = build_jwks(
        [
            good,
            {**good, "kid": "b", "use": "wit-svid"},
            {**good, "kid": "c", "use": "JWT-SVID"},
            {**good, "kid": "d", "use": ["jwt-svid"]},
            {**good, "kid": "e", "d": "AAAA"},
            {**good, "kid": "f", "kty": "unknown"},
            {**good, "kid": 7},
            {name: value for name, value in good.items() if name != "kid"},
            {name: value for name, value in {**good, "kid": "g"}.items() if name != "use"},
        ],
        spiffe_sequence=2**63,
        spiffe_refresh_hint=300,
    )
    parsed = parse_jwks(document.replace(b'"keys":[', b'"keys":[1,null,"x",[],'))
    assert parsed.members == {"spiffe_sequence": 2**63, "spiffe_refresh_hint": 300}
    assert [key.kid for key in parsed.keys("jwt-svid")] == ["a"]
    assert [key.kid for key in parsed.keys("jwt-svid", "wit-svid")] == ["a", "b"]
    assert [key.kid for key in parsed.keys("jwt-svid", require_kid=False)] == ["a", None]
    assert [key.kid for key in parsed.keys(None, "sig")] == ["g"]
    assert not list(parsed.keys())
    assert not list(parse_jwks(b'{"keys":[]}').keys("jwt-svid"))


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "malformed"),
        (b"[]", "malformed"),
        (b"{}", "malformed"),
        (b'{"keys":{}}', "malformed"),
        (b'{"keys":[],"keys":[]}', "duplicate_member"),
        (b'{"keys":[{"kty":"EC","kty":"RSA"}]}', "duplicate_member"),
        (b'{"keys":[' + b"[" * 30 + b"]" * 30 + b"]}", "malformed"),
        (b'{"keys":[],"spiffe_sequence":18446744073709551616}', "malformed"),
        (b'{"keys":[' + b"{}," * 256 + b"{}]}", "too_large"),
        (b'{"keys":[],"x":"' + b"x" * 300_000 + b'"}', "too_large"),
    ],
    ids=range(10),
)
def test_a_set_is_bounded_and_strict(document: bytes, reason: str) -> None:
    with pytest.raises(JoseError) as refusal:
        parse_jwks(document)
    assert refusal.value.reason == reason


def test_two_keys_never_share_an_identifier() -> None:
    keys = [VerificationKey("same", None, KEYS[name].public_key()) for name in ("P-256", "P-384")]
    with pytest.raises(JoseError, match=r"jose\.kid"):
        KeySet(keys)
    anonymous = KeySet([VerificationKey(None, None, key.key) for key in keys])
    assert len(anonymous) == 2
    assert anonymous.get("same") is None
