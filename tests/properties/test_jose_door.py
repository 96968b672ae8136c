"""The token door: every hostile shape against profiles of every form, and foreign libraries as oracles."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import jwt as pyjwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jwcrypto import jwk as jwcrypto_jwk
from jwcrypto import jwt as jwcrypto_jwt
from tests.properties.hostile import P256_ORDER, SHAPES, LocalKey, b64, compact, dump, hostile_tokens

from aims.identifiers import SpiffeId
from aims.jose import (
    ClaimKind,
    JoseError,
    KeySet,
    Profile,
    VerificationKey,
    base64url,
    open_token,
    parse,
    sign,
    sign_now,
    verify,
)
from aims.jose.algorithms import ALL_ALGORITHMS, SPIFFE_ALGORITHMS
from aims.jose.door import decode
from aims.jose.jwk import public_jwk
from aims.jose.strict_json import read_object

NOW = 1_764_000_000.25
AUDIENCE = "https://localhost:8440/Path"
SUBJECT = "spiffe://acme.example/agents/a"
KEY = LocalKey.new("ES256")
ASYMMETRIC = {name: LocalKey.new(name) for name in sorted(ALL_ALGORITHMS)}

S, D, A = ClaimKind.STRING, ClaimKind.NUMERIC_DATE, ClaimKind.AUDIENCE
PROFILES = [
    Profile(  # like a JWT-SVID
        name="open",
        algorithms=SPIFFE_ALGORITHMS,
        typ=("JWT", "JOSE"),
        typ_required=False,
        media_type=False,
        kid="optional",
        try_each=True,
        required={"sub": S, "aud": A, "exp": D},
        audience="any",
        subject=SpiffeId.parse_workload,
    ),
    Profile(  # like a proof: closed, short, with the key from elsewhere
        name="proof",
        algorithms=frozenset({"ES256"}),
        typ=("wpt+jwt",),
        kid="ignored",
        required={"aud": A, "exp": D, "jti": S},
        optional={"n": ClaimKind.INTEGER},
        audience="string",
        max_lifetime=600,
        leeway=0,
    ),
    Profile(  # like an access token
        name="access",
        algorithms=frozenset({"ES256", "EdDSA"}),
        typ=("at+jwt",),
        required={"sub": S, "aud": A, "exp": D, "iat": D, "jti": S},
        audience="single",
        max_lifetime=3600,
        max_octets=4096,
        leeway=30,
        subject=SpiffeId.parse_workload,
    ),
    Profile(  # like a WIT or an event: no audience, unknown headers ignored, iat informative
        name="lenient",
        algorithms=frozenset({"ES256"}),
        typ=("wit+jwt",),
        kid="optional",
        ignore_unknown_headers=True,
        judge_iat=False,
        required={"exp": D},
    ),
    Profile(  # keys in the header are allowed, no expiry, closed claims
        name="dpop-like",
        algorithms=frozenset({"ES256"}),
        typ=("dpop+jwt",),
        kid="ignored",
        headers=frozenset({"jwk"}),
        required={"iat": D, "jti": S},
    ),
]
CLAIMS = {"sub": SUBJECT, "aud": AUDIENCE, "exp": int(NOW) + 300, "iat": int(NOW), "jti": "j-1"}


def _answer(token: str, profile: Profile, keys: KeySet, now: float = NOW) -> str:
    try:
        open_token(token, profile, keys, now=now, audience=AUDIENCE)
    except JoseError as error:
        return error.reason
    return "accept"


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_every_hostile_shape_gets_its_answer_from_every_profile(profile: Profile) -> None:
    seen = set()
    header = {"typ": profile.typ[0]}
    for case in hostile_tokens(profile, header, CLAIMS, KEY, now=NOW, audience=AUDIENCE):
        case.check()
        seen.add(case.shape)
    left_out = {shape["id"] for shape in SHAPES} - seen
    assert left_out <= {
        "embedded-jwk",
        "exp-missing",
        "exp-far",
        "aud-array-with-other",
        "aud-wrong-prefix-case",
        "sub-trailing-newline",
    }


def test_the_five_profiles_together_meet_every_shape() -> None:
    met = {
        case.shape
        for profile in PROFILES
        for case in hostile_tokens(profile, {"typ": profile.typ[0]}, CLAIMS, KEY, now=NOW, audience=AUDIENCE)
        if case.expected == next(shape["expect"] for shape in SHAPES if shape["id"] == case.shape)
    }
    assert met == {shape["id"] for shape in SHAPES}


@pytest.mark.parametrize("algorithm", sorted(ALL_ALGORITHMS))
async def test_every_algorithm_round_trips_and_foreign_libraries_agree(algorithm: str) -> None:
    key = ASYMMETRIC[algorithm]
    profile = Profile(name="t", algorithms=frozenset({algorithm}), typ=("t+jwt",), required={"exp": D})
    token = await sign({"typ": "t+jwt"}, {"exp": int(NOW) + 60, "x": "é"}, key)
    assert open_token(token, profile, KeySet([key.verification]), now=NOW).claims["x"] == "é"
    other = LocalKey.new(algorithm)
    assert _answer(token, profile, KeySet([other.verification])) == "signature"
    public = key.private.public_key()
    if algorithm != "Ed25519":  # neither oracle knows the name that RFC 9864 gave
        options: Any = {"verify_exp": False}
        assert pyjwt.decode(token, public, algorithms=[algorithm], options=options)["x"] == "é"
        foreign = pyjwt.encode({"exp": int(NOW) + 60}, key.private, algorithm, {"kid": key.kid, "typ": "t+jwt"})
        assert _answer(foreign, profile, KeySet([key.verification])) == "accept"
        oracle = jwcrypto_jwt.JWT(algs=[algorithm], check_claims={"x": None})
        oracle.leeway = 10**10
        oracle.deserialize(token, jwcrypto_jwk.JWK(**public_jwk(public)))
        assert json.loads(oracle.claims)["x"] == "é"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=6), json_values, max_size=5), st.booleans(), st.booleans())
@settings(deadline=None)
def test_json_is_read_as_the_standard_library_reads_it_however_it_is_written(
    value: dict[str, Any], escaped: bool, loose: bool
) -> None:
    octets = json.dumps(value, ensure_ascii=escaped, indent=1 if loose else None).encode("utf-8")
    read = read_object(octets)
    assert read == value
    assert json.dumps(read, sort_keys=True) == json.dumps(value, sort_keys=True)


def _depth(value: object) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max((_depth(inner) for inner in (value.values() if isinstance(value, dict) else value)), default=0)


bracketed = st.recursive(
    st.none() | st.text('ab"\\[]{}é', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"\\{]', max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=2), bracketed, max_size=3), st.integers(1, 6), st.booleans())
@settings(deadline=None)
def test_depth_is_counted_outside_strings_and_exactly(value: dict[str, Any], limit: int, escaped: bool) -> None:
    octets = json.dumps(value, ensure_ascii=escaped).encode("utf-8")
    if _depth(value) <= limit:
        assert read_object(octets, max_depth=limit) == value
    else:
        with pytest.raises(JoseError, match=r"jose\.malformed: .*deep"):
            read_object(octets, max_depth=limit)


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_base64url_has_one_spelling(octets: bytes) -> None:
    text = base64url.encode(octets)
    assert text == base64.urlsafe_b64encode(octets).rstrip(b"=")
    assert base64url.decode(text) == octets


@given(st.text("ABab01-_+/= \n.", max_size=12).map(str.encode))
@settings(deadline=None)
def test_other_spellings_of_base64url_are_refused(text: bytes) -> None:
    with contextlib.suppress(JoseError):
        assert base64url.encode(base64url.decode(text)) == text


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_changed_octet_passes_and_only_refusals_come_out(data: st.DataObject) -> None:
    profile = PROFILES[2]
    token = _GOOD.encode()
    index = data.draw(st.integers(0, len(token)))
    piece = data.draw(st.binary(max_size=3))
    width = data.draw(st.integers(0, 3))
    changed = token[:index] + piece + token[index + width :]
    if changed == token:
        return
    with pytest.raises(JoseError):
        open_token(changed, profile, KeySet([KEY.verification]), now=NOW, audience=AUDIENCE)


_GOOD = sign_now({"typ": "at+jwt"}, {**CLAIMS, "aud": AUDIENCE}, KEY)


def test_a_malleated_signature_verifies_so_nobody_may_key_replay_by_it() -> None:
    profile, keys = PROFILES[2], KeySet([KEY.verification])
    head, body, tail = _GOOD.split(".")
    raw = base64.urlsafe_b64decode(tail + "==")
    twin = raw[:32] + (P256_ORDER - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    other = f"{head}.{body}.{b64(twin)}"
    assert other != _GOOD
    first = open_token(_GOOD, profile, keys, now=NOW, audience=AUDIENCE)
    second = open_token(other, profile, keys, now=NOW, audience=AUDIENCE)
    assert first.claims == second.claims


def test_eddsa_and_ed25519_are_two_names() -> None:
    key = LocalKey.new("Ed25519")
    profile = Profile(name="t", algorithms=frozenset({"Ed25519", "EdDSA"}), typ=("t",), required={"exp": D})
    token = sign_now({"typ": "t"}, {"exp": int(NOW) + 60}, key)
    public = key.private.public_key()
    assert _answer(token, profile, KeySet([VerificationKey(key.kid, "Ed25519", public)])) == "accept"
    assert _answer(token, profile, KeySet([VerificationKey(key.kid, "EdDSA", public)])) == "alg"
    narrow = Profile(name="t", algorithms=frozenset({"EdDSA"}), typ=("t",), required={"exp": D})
    assert _answer(token, narrow, KeySet([key.verification])) == "alg"


def test_times_end_and_begin_where_they_say() -> None:
    exact = Profile(name="t", algorithms=frozenset({"ES256"}), typ=("t",), required={"exp": D}, leeway=0)
    keys = KeySet([KEY.verification])
    for claims, now, answer in (
        ({"exp": 100}, 99.999, "accept"),
        ({"exp": 100}, 100, "expired"),
        ({"exp": 100.5}, 100.4, "accept"),
        ({"exp": 100, "nbf": 50}, 50, "accept"),
        ({"exp": 100, "nbf": 50}, 49.9, "not_yet_valid"),
        ({"exp": 100, "iat": 50}, 49.9, "not_yet_valid"),
    ):
        assert _answer(sign_now({"typ": "t"}, claims, KEY), exact, keys, now=now) == answer, claims


def test_limits_are_the_last_good_value() -> None:
    keys = KeySet([KEY.verification])
    token = sign_now({"typ": "t"}, {"exp": 160, "iat": 100}, KEY)
    base: dict[str, Any] = {"algorithms": frozenset({"ES256"}), "typ": ("t",), "required": {"exp": D}, "leeway": 5}
    for limits, now, answer in (
        ({"max_octets": len(token)}, 100, "accept"),
        ({"max_octets": len(token) - 1}, 100, "too_large"),
        ({"max_lifetime": 60}, 100, "accept"),
        ({"max_lifetime": 59}, 100, "lifetime"),
        ({}, 95, "accept"),
        ({}, 94.9, "not_yet_valid"),
        ({"judge_iat": False, "max_lifetime": 60}, 95, "accept"),
        ({"judge_iat": False, "max_lifetime": 60}, 94.9, "lifetime"),
    ):
        assert _answer(token, Profile(name="t", **{**base, **limits}), keys, now=now) == answer, (limits, now)
    assert read_object(b'{"a":' * 16 + b"1" + b"}" * 16)
    with pytest.raises(JoseError, match=r"jose\.malformed"):
        read_object(b'{"a":' * 17 + b"1" + b"}" * 17)


def test_a_kind_without_expiry_needs_none_and_still_ends_where_one_is_given() -> None:
    event = Profile(name="t", algorithms=frozenset({"ES256"}), typ=("t",), required={"iat": D})
    keys = KeySet([KEY.verification])
    assert _answer(sign_now({"typ": "t"}, {"iat": 100}, KEY), event, keys) == "accept"
    assert _answer(sign_now({"typ": "t"}, {"iat": 100, "exp": 200}, KEY), event, keys) == "expired"


def test_a_key_taken_from_a_header_is_not_shared_with_the_next_token() -> None:
    profile = PROFILES[4]
    jwk: dict[str, Any] = {**public_jwk(KEY.private.public_key()), "key_ops": ["verify"], "more": {"deep": 1}}
    token = sign_now({"typ": "dpop+jwt", "jwk": jwk}, {"iat": int(NOW), "jti": "j"}, KEY, with_kid=False)
    header = parse(token, profile).header
    assert header["jwk"] == {**jwk, "key_ops": ("verify",)}
    for frozen, name in ((header, "alg"), (header["jwk"], "x"), (header["jwk"]["more"], "deep")):
        with pytest.raises(TypeError, match="assignment"):
            frozen[name] = "none"  # type: ignore[index]  # the point of the test


def test_an_audience_that_the_verifier_does_not_name_is_nobodys() -> None:
    keys = KeySet([KEY.verification])
    for profile in PROFILES[:3]:
        token = sign_now({"typ": profile.typ[0]}, CLAIMS, KEY, with_kid=profile.kid != "ignored")
        parsed = parse(token, profile)
        for nobody in (None, "", frozenset[str]()):
            with pytest.raises(JoseError, match=r"jose\.audience"):
                verify(parsed, keys, now=NOW, audience=nobody)
        assert verify(parsed, keys, now=NOW, audience={"https://alias.example", AUDIENCE}).claims["jti"] == "j-1"


def test_forbidden_and_unknown_claims_are_refused_where_the_table_says_so() -> None:
    keys = KeySet([KEY.verification])
    closed = Profile(
        name="closed",
        algorithms=frozenset({"ES256"}),
        typ=("t",),
        required={"exp": D},
        optional={"flag": ClaimKind.BOOLEAN, "names": ClaimKind.STRING_LIST, "details": ClaimKind.OBJECT_LIST},
        forbidden=frozenset({"aud"}),
        unknown_claims=False,
    )
    for extra, answer in (
        ({}, "accept"),
        ({"flag": True, "names": ["a"], "details": [{}]}, "accept"),
        ({"aud": "x"}, "claim_type"),
        ({"other": 1}, "claim_type"),
        ({"flag": 1}, "claim_type"),
        ({"names": "a"}, "claim_type"),
        ({"names": ["a"] * 65}, "claim_type"),
        ({"details": {}}, "claim_type"),
        ({"details": []}, "claim_type"),
    ):
        token = sign_now({"typ": "t"}, {"exp": int(NOW) + 60, **extra}, KEY)
        assert _answer(token, closed, keys) == answer, extra


def test_missing_kid_tries_a_bounded_number_of_keys() -> None:
    profile = PROFILES[0]
    token = sign_now({"typ": "JWT"}, CLAIMS, KEY, with_kid=False)
    rivals = [LocalKey.new("ES256", f"r{index}").verification for index in range(8)]
    assert _answer(token, profile, KeySet([*rivals[:7], KEY.verification])) == "accept"
    assert _answer(token, profile, KeySet(rivals[:8])) == "signature"
    assert _answer(token, profile, KeySet([*rivals, KEY.verification])) == "kid"


@pytest.mark.parametrize(
    "change",
    [
        {"algorithms": frozenset()},
        {"algorithms": frozenset({"HS256"})},
        {"algorithms": frozenset({"none"})},
        {"typ": ()},
        {"leeway": 61},
        {"leeway": -1},
        {"audience": "any"},
        {"subject": SpiffeId.parse},
        {"required": {}, "max_lifetime": 60},
        {"optional": {"exp": D}},
        {"forbidden": frozenset({"exp"})},
        {"optional": {"nbf": S}},
    ],
)
def test_a_profile_that_could_not_be_enforced_is_refused(change: dict[str, Any]) -> None:
    base: dict[str, Any] = {"name": "t", "algorithms": frozenset({"ES256"}), "typ": ("t",), "required": {"exp": D}}
    with pytest.raises(ValueError, match="t: "):
        Profile(**{**base, **change})


async def test_signing_is_refused_where_every_verifier_would_refuse() -> None:
    class Der(LocalKey):
        sign_now = None  # type: ignore[assignment]  # a key that only signs by waiting

        async def sign(self, data: bytes) -> bytes:
            return b"\x30\x45" + data[:69]

    der = Der(KEY.private, "ES256")
    with pytest.raises(JoseError, match=r"jose\.signature"):
        await sign({"typ": "t"}, {"exp": 1}, der)
    with pytest.raises(JoseError, match=r"jose\.alg"):
        await sign({"typ": "t", "alg": "ES384"}, {"exp": 1}, KEY)
    with pytest.raises(JoseError, match=r"jose\.alg"):
        sign_now({"typ": "t"}, {"exp": 1}, LocalKey(KEY.private, "RS256"))
    with pytest.raises(JoseError, match=r"jose\.alg"):
        sign_now({"typ": "t"}, {"exp": 1}, LocalKey(KEY.private, "none"))


def test_nothing_secret_is_shown() -> None:
    profile = PROFILES[2]
    parsed = parse(_GOOD, profile)
    token = verify(parsed, KeySet([KEY.verification]), now=NOW, audience=AUDIENCE)
    for shown in (repr(parsed), repr(token), repr(KeySet([KEY.verification]))):
        assert "j-1" not in shown
        assert _GOOD.split(".")[2] not in shown


def test_decode_reads_only_well_formed_tokens() -> None:
    header, claims = decode(_GOOD, 8192)
    assert (header["kid"], claims["sub"]) == ("key-1", SUBJECT)
    with pytest.raises(JoseError, match=r"jose\.malformed"):
        decode(_GOOD + "=", 8192)
    with pytest.raises(JoseError, match=r"jose\.too_large"):
        decode(_GOOD, len(_GOOD) - 1)
    assert decode(compact(dump({"any": 1}), dump({}), lambda _: b"s"), 8192) == ({"any": 1}, {})
