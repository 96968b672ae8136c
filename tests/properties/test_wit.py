"""The Workload Identity Token: the drafts' vectors, hostile tokens, and what no WIT may carry."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jwt as pyjwt
import pytest
from tests.properties.hostile import LocalKey, b64, dump, hostile_tokens

from aims.credentials import wit
from aims.credentials.errors import CredentialError
from aims.credentials.model import Fence
from aims.credentials.printed_keys import PRINTED_KEYS
from aims.credentials.wit import WorkloadIdentityToken
from aims.identifiers import SpiffeId, TrustDomain
from aims.jose import KeySet, VerificationKey, sign_now
from aims.jose.algorithms import ALGORITHMS, ALL_ALGORITHMS
from aims.jose.jwk import parse_public, private_jwk, public_jwk, thumbprint

VECTORS = Path(__file__).parents[1] / "vectors/wimse"
WITS: list[dict[str, Any]] = json.loads((VECTORS / "wit.json").read_text("utf-8"))["vectors"]
PRINTED: dict[str, dict[str, Any]] = {
    entry["id"]: entry for entry in json.loads((VECTORS / "keys.json").read_text("utf-8"))["keys"]
}
EXACT = dataclasses.replace(wit.WIT, leeway=0)

NOW = 1_764_000_000
TD = TrustDomain("acme.example")
AGENT = SpiffeId.agent(TD, "researcher")
FENCE = Fence("node-1:" + "a" * 26, 1234)
ISSUER = LocalKey.new("ES256", "wit-1")
PROOF = LocalKey.new("ES256")
ANCHORS = {TD.uri: KeySet([ISSUER.verification])}


def _claims(**changes: Any) -> dict[str, Any]:
    claims = wit.build_claims(
        AGENT, PROOF.private.public_key(), "ES256", issued_at=NOW, expires=NOW + 3600, fence=FENCE
    )
    return {name: value for name, value in {**claims, **changes}.items() if value is not ...}


def _token(claims: dict[str, Any], header: dict[str, Any] | None = None, key: LocalKey = ISSUER) -> str:
    return sign_now(dict(wit.HEADER) if header is None else header, claims, key)


def _answer(token: str, **options: Any) -> str:
    try:
        wit.validate(token, **{"anchors": ANCHORS, "now": NOW, "own": TD, **options})
    except CredentialError as error:
        return error.reason
    return "accept"


def _vector(case: dict[str, Any], anchors: dict[str, KeySet], now: float) -> WorkloadIdentityToken:
    return wit.validate(
        case["input"]["workload_identity_token"],
        anchors,
        now=now,
        own=None,
        profile=EXACT,
        proof_algorithms=ALL_ALGORITHMS,
        unsafe_printed_keys=True,
    )


@pytest.mark.parametrize("case", [case for case in WITS if case["verified"]], ids=lambda case: str(case["id"]))
def test_published_tokens_get_their_verdict_reason_and_hash(case: dict[str, Any]) -> None:
    jwk = PRINTED[case["input"]["issuer_key"]]["jwk"]
    anchors = {case["input"]["trust_anchor_origin"]: KeySet([VerificationKey(jwk["kid"], "ES256", parse_public(jwk))])}
    if case["expected"]["result"] == "reject":
        with pytest.raises(CredentialError) as refusal:
            _vector(case, anchors, case["valid_at"])
        assert refusal.value.reason == case["expected"]["reason"]
        return
    token = _vector(case, anchors, case["valid_at"])
    assert str(token.subject) == case["expected"]["workload_identifier"]
    assert token.proof_algorithm == case["expected"]["proof_algorithm"]
    assert token.wth == case["wit_sha256_b64url"]
    last = case["valid_window"]["until_exclusive"]
    assert _vector(case, anchors, last - 1) == token
    with pytest.raises(CredentialError, match="wit_expired"):
        _vector(case, anchors, last)
    with pytest.raises(CredentialError, match="wit_no_trust_anchor"):
        _vector(
            case, {case["input"]["trust_anchor_origin"].replace("wimse", "spiffe"): next(iter(anchors.values()))}, last
        )


@pytest.mark.parametrize("case", [case for case in WITS if not case["verified"]], ids=lambda case: str(case["id"]))
def test_published_tokens_of_unknown_issuers_fail_at_the_signature_and_pass_when_signed_by_a_known_one(
    case: dict[str, Any],
) -> None:
    header = case["decoded"]["header"]
    issuer = LocalKey.new(header["alg"], header["kid"])
    anchors = {case["input"]["trust_anchor_origin"]: KeySet([issuer.verification])}
    with pytest.raises(CredentialError, match="wit_signature"):
        _vector(case, anchors, case["valid_at"])
    head, body, _ = case["input"]["workload_identity_token"].split(".")
    again = f"{head}.{body}.{b64(issuer.sign_now(f'{head}.{body}'.encode()))}"
    token = _vector({**case, "input": {"workload_identity_token": again}}, anchors, case["valid_at"])
    assert str(token.subject) == case["expected"]["workload_identifier"]
    assert token.proof_algorithm == case["expected"]["proof_algorithm"]


def test_every_key_that_a_draft_prints_is_on_the_deny_list() -> None:
    assert {entry["jwk_sha256_thumbprint"] for entry in PRINTED.values()} == PRINTED_KEYS
    for entry in PRINTED.values():
        public = {name: value for name, value in entry["jwk"].items() if name not in {"d", "alg", "kid"}}
        key = parse_public(public)
        assert thumbprint(key) == entry["jwk_sha256_thumbprint"]
        alg = "ES256" if public["kty"] == "EC" else "Ed25519"
        token = _token(_claims(cnf={"jwk": {**public, "alg": alg}}))
        assert _answer(token) == "wit_cnf"
        assert _answer(token, unsafe_printed_keys=True) == "accept"
        if alg == "ES256":
            with pytest.raises(CredentialError, match="template"):
                wit.build_claims(AGENT, key, alg, issued_at=NOW, expires=NOW + 60, fence=FENCE)


@pytest.mark.parametrize("profile", [wit.WIT, wit.WIT_SVID], ids=lambda profile: profile.name)
def test_what_is_built_validates_and_foreign_libraries_read_it(profile: Any) -> None:
    text = _token(_claims(jti="j"))
    token = wit.validate(text, ANCHORS, now=NOW, own=TD, profile=profile)
    assert token.subject.spiffe_id() == AGENT
    assert token.confirmation.key == PROOF.private.public_key()
    assert (token.proof_algorithm, token.thumbprint) == ("ES256", thumbprint(PROOF.private.public_key()))
    assert (token.expires, token.fence, token.issuer, token.token_id) == (NOW + 3600, FENCE, TD.uri, "j")
    assert token.wth == base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
    assert text not in repr(token)
    options: Any = {"verify_exp": False, "verify_iat": False}
    read = pyjwt.decode(text, ISSUER.private.public_key(), algorithms=["ES256"], options=options)
    assert read == _claims(jti="j")


_DOOR_TO_WIT = {
    "typ": "wit_typ",
    "alg": "wit_alg",
    "kid_unknown": "wit_no_trust_anchor",
    "signature": "wit_signature",
    "claim_missing": "wit_missing",
    "expired": "wit_expired",
    "not_yet_valid": "wit_not_yet_valid",
    "lifetime": "wit_lifetime",
    "subject": "wit_sub",
    "accept": "accept",
}


@pytest.mark.parametrize("profile", [wit.WIT, wit.WIT_SVID], ids=lambda profile: profile.name)
def test_every_hostile_shape_is_refused_under_the_names_of_a_wit(profile: Any) -> None:
    shapes = set()
    for case in hostile_tokens(profile, wit.HEADER, _claims(), ISSUER, now=NOW):
        case.check()
        expected = _DOOR_TO_WIT.get(case.expected, "wit_malformed")
        if case.shape == "sub-trailing-newline":
            expected = "wit_sub"
        if not len(case.keys):
            expected = "wit_no_trust_anchor"
        assert _answer(case.token, anchors={TD.uri: case.keys}, profile=profile) == expected, case
        shapes.add(case.shape)
    assert len(shapes) > 45


def test_the_first_failed_step_is_named() -> None:
    wrong_typ = {"typ": "JWT"}
    assert _answer(_token(_claims(sub="https://x.example/a"), wrong_typ)) == "wit_sub"
    assert _answer(_token(_claims(sub="spiffe://other.example/a"), wrong_typ)) == "wit_no_trust_anchor"
    assert _answer(_token(_claims(exp=1, cnf={}), wrong_typ)) == "wit_typ"
    assert _answer(_token(_claims(exp=1, cnf={}), key=LocalKey(PROOF.private, "ES256", "wit-1"))) == "wit_signature"
    assert _answer(_token(_claims(exp=1, cnf={}))) == "wit_expired"
    assert _answer(_token(_claims(exp=..., cnf={}))) == "wit_missing"
    assert _answer(_token(_claims(sub=...))) == "wit_sub"
    assert _answer(_token(_claims(cnf={}, epoch=...))) == "wit_cnf"
    assert _answer(_token(_claims(epoch=...))) == "wit_missing"
    assert _answer("") == "wit_malformed"


def test_own_wits_carry_a_fence_and_foreign_ones_are_not_fenced() -> None:
    for bare in (_claims(epoch=...), _claims(instance=...), _claims(epoch="1")):
        assert _answer(_token(bare)) == "wit_missing"
        assert _answer(_token(bare), own=TrustDomain("other.example")) == "accept"
    foreign = wit.validate(_token(_claims()), ANCHORS, now=NOW, own=TrustDomain("other.example"))
    assert foreign.fence is None


_JWK = public_jwk(PROOF.private.public_key(), alg="ES256")


@pytest.mark.parametrize(
    "cnf",
    [
        ...,
        None,
        [],
        "x",
        {},
        {"jkt": thumbprint(PROOF.private.public_key())},
        {"jwk": None},
        {"jwk": [_JWK]},
        {"jwk": {name: value for name, value in _JWK.items() if name != "alg"}},
        {"jwk": {**_JWK, "alg": "none"}},
        {"jwk": {**_JWK, "alg": "HS256"}},
        {"jwk": {**_JWK, "alg": "ES384"}},
        {"jwk": {**_JWK, "alg": "Ed25519"}},
        {"jwk": {**_JWK, "alg": ["ES256"]}},
        {"jwk": {**_JWK, "use": "enc"}},
        {"jwk": {**_JWK, "x": _JWK["y"], "y": _JWK["x"]}},
        {"jwk": private_jwk(PROOF.private, alg="ES256")},
        {"jwk": {"kty": "oct", "k": "AAAA", "alg": "HS256"}},
        {"jwk": {**public_jwk(LocalKey.new("EdDSA").private.public_key()), "alg": "EdDSA"}},
    ],
    ids=range(19),
)
def test_a_confirmation_key_that_could_not_carry_a_proof_is_refused(cnf: Any) -> None:
    assert _answer(_token(_claims(cnf=cnf))) == "wit_cnf"


def test_eddsa_is_accepted_only_where_it_is_listed() -> None:
    key = LocalKey.new("EdDSA").private.public_key()
    token = _token(_claims(cnf={"jwk": public_jwk(key, alg="EdDSA")}))
    assert _answer(token, proof_algorithms=ALL_ALGORITHMS) == "accept"
    assert _answer(token, proof_algorithms=frozenset({"Ed25519"})) == "wit_cnf"
    assert set(ALGORITHMS) - {"EdDSA"} == wit.ALGORITHMS


def test_a_wit_svid_is_narrower() -> None:
    svid: dict[str, Any] = {"profile": wit.WIT_SVID}
    assert _answer(_token(_claims(aud="x")), **svid) == "wit_malformed"
    assert _answer(_token(_claims(aud="x"))) == "accept"
    assert _answer(_token(_claims(), {"typ": "application/wit+jwt"}), **svid) == "wit_typ"
    assert _answer(_token(_claims(), {"typ": "Application/WIT+jwt"})) == "accept"
    anonymous = sign_now(wit.HEADER, _claims(), ISSUER, with_kid=False)
    assert _answer(anonymous, **svid) == "wit_malformed"
    assert _answer(anonymous) == "accept"
    edwards = LocalKey.new("Ed25519", "wit-1")
    anchors = {TD.uri: KeySet([edwards.verification])}
    assert _answer(_token(_claims(), key=edwards), anchors=anchors, **svid) == "wit_alg"
    assert _answer(_token(_claims(), key=edwards), anchors=anchors) == "accept"
    wimse = {"wimse://acme.example": ANCHORS[TD.uri]}
    assert _answer(_token(_claims(sub="wimse://acme.example/a")), anchors=wimse, **svid) == "wit_sub"
    assert _answer(_token(_claims(sub="wimse://acme.example/a")), anchors=wimse) == "accept"


def test_iat_never_limits_validity_and_nbf_does() -> None:
    assert _answer(_token(_claims(iat=NOW + 10_000))) == "accept"
    assert _answer(_token(_claims(nbf=NOW + 10))) == "wit_not_yet_valid"
    assert _answer(_token(_claims(exp=NOW + 86_400 + 10))) == "wit_lifetime"


@pytest.mark.parametrize(
    "change",
    [
        {"subject": SpiffeId.parse("spiffe://acme.example")},
        {"expires": NOW},
        {"expires": NOW + 86_401},
        {"proof_algorithm": "ES384"},
        {"proof_algorithm": "Ed25519"},
        {"proof_algorithm": "none"},
    ],
)
def test_nothing_is_built_that_a_wit_svid_forbids(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "subject": AGENT,
        "confirmation": PROOF.private.public_key(),
        "proof_algorithm": "ES256",
        "expires": NOW + 86_400,
    }
    assert "aud" not in wit.build_claims(**good, issued_at=NOW, fence=FENCE)
    assert "d" not in dump(wit.build_claims(**good, issued_at=NOW, fence=FENCE)["cnf"]["jwk"]).decode().split('"')
    with pytest.raises(CredentialError, match="template"):
        wit.build_claims(**{**good, **change}, issued_at=NOW, fence=FENCE)
