"""The JWT-SVID: built and validated, against hostile tokens, foreign libraries and foreign trust domains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jwt as pyjwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spiffe import JwtSvid as PySpiffeJwtSvid
from tests.properties.hostile import SHAPES, LocalKey, hostile_tokens
from tests.properties.strategies import spiffe_id_texts

from aims.credentials import jwt_svid
from aims.credentials.errors import CredentialError
from aims.credentials.jwt_svid import JwtSvid
from aims.credentials.model import Fence
from aims.errors import AimsError
from aims.identifiers import SpiffeId, TrustDomain
from aims.jose import KeySet, sign_now
from aims.jose.jwk import thumbprint

NOW = 1_764_000_000
TD = TrustDomain("acme.example")
OTHER = TrustDomain("other.example")
AGENT = SpiffeId.agent(TD, "researcher")
FENCE = Fence("node-1:" + "a" * 26, 1234)
KEY = LocalKey.new("ES256", "jwt-1")
OTHER_KEY = LocalKey.new("ES256", "jwt-1")
BUNDLES = {TD: KeySet([KEY.verification]), OTHER: KeySet([OTHER_KEY.verification])}
AUDIENCE = "https://tool.example/mcp"
JKT = thumbprint(OTHER_KEY.private.public_key())


def _claims(**changes: Any) -> dict[str, Any]:
    claims = jwt_svid.build_claims(
        AGENT,
        [AUDIENCE],
        issued_at=NOW,
        expires=NOW + 300,
        issuer="https://localhost:8440/spiffe",
        fence=FENCE,
        jkt=JKT,
    )
    return {**claims, **changes}


def _token(claims: dict[str, Any], key: LocalKey = KEY) -> str:
    return sign_now(jwt_svid.HEADER, claims, key)


def _open(token: str, own: TrustDomain | None = TD, now: float = NOW) -> JwtSvid:
    return jwt_svid.validate(token, BUNDLES, audience=AUDIENCE, now=now, own=own)


def _answer(token: str, own: TrustDomain | None = TD) -> str:
    try:
        _open(token, own)
    except AimsError as error:
        return error.code
    return "accept"


def test_what_is_built_validates_and_says_the_same() -> None:
    svid = _open(_token(_claims(jti="j")))
    assert svid.subject == AGENT
    assert svid.audience == (AUDIENCE,)
    assert (svid.expires, svid.issued_at, svid.token_id) == (NOW + 300, NOW, "j")
    assert (svid.fence, svid.jkt, svid.issuer) == (FENCE, JKT, "https://localhost:8440/spiffe")
    assert FENCE.node == "node-1"
    assert JKT not in repr(svid).replace(f"jkt='{JKT}'", "")


@given(spiffe_id_texts(), st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_foreign_libraries_read_our_tokens(text: str, audience: Sequence[str]) -> None:
    subject = SpiffeId.parse(text)
    claims = jwt_svid.build_claims(
        subject, audience, issued_at=NOW, expires=NOW + 300, issuer="https://i.example", fence=FENCE
    )
    token = _token(claims)
    options: Any = {"verify_exp": False, "verify_iat": False, "require": ["sub", "aud", "exp"]}
    read = pyjwt.decode(token, KEY.private.public_key(), algorithms=["ES256"], audience=audience[0], options=options)
    assert read == claims
    bundles = {subject.trust_domain: KeySet([KEY.verification])}
    svid = jwt_svid.validate(token, bundles, audience=audience[0], now=NOW, own=subject.trust_domain)
    assert svid.subject == subject
    assert set(svid.audience) == set(audience)


def test_py_spiffe_reads_our_tokens() -> None:
    claims = {**_claims(), "exp": 2**33}
    svid = PySpiffeJwtSvid.parse_insecure(_token(claims), {AUDIENCE})
    assert str(svid.spiffe_id) == str(AGENT)


def test_every_hostile_shape_is_refused_by_the_validator_as_by_the_door() -> None:
    seen = set()
    for case in hostile_tokens(jwt_svid.PROFILE, jwt_svid.HEADER, _claims(), KEY, now=NOW, audience=AUDIENCE):
        case.check()
        seen.add(case.shape)
        try:
            jwt_svid.validate(case.token, {TD: case.keys}, audience=AUDIENCE, now=NOW, own=TD)
        except AimsError as error:
            answer = error.reason
        else:
            answer = "accept"
        assert answer == (case.expected if len(case.keys) else "no_trust_anchor"), case
    assert seen >= {shape["id"] for shape in SHAPES} - {"exp-far"}


@pytest.mark.parametrize("algorithm", ["EdDSA", "Ed25519"])
def test_algorithms_outside_the_closed_set_are_refused(algorithm: str) -> None:
    key = LocalKey.new(algorithm)
    with pytest.raises(AimsError) as refusal:
        jwt_svid.validate(_token(_claims(), key), {TD: KeySet([key.verification])}, audience=AUDIENCE, now=NOW, own=TD)
    assert refusal.value.code == "jose.alg"


def test_only_the_bundle_of_the_subjects_trust_domain_verifies() -> None:
    assert _answer(_token(_claims(), OTHER_KEY)) == "jose.signature"
    foreign = _claims(sub="spiffe://other.example/agents/x")
    assert _answer(_token(foreign, KEY)) == "jose.signature"
    assert _answer(_token(foreign, OTHER_KEY)) == "accept"
    unknown = _claims(sub="spiffe://unknown.example/agents/x")
    assert _answer(_token(unknown)) == "credentials.no_trust_anchor"
    with pytest.raises(CredentialError, match="no_trust_anchor"):
        jwt_svid.validate(_token(_claims()), {TD: KeySet()}, audience=AUDIENCE, now=NOW, own=TD)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": None},
        {"epoch": "1"},
        {"epoch": True},
        {"epoch": -1},
        {"epoch": 1.0},
        {"instance": None},
        {"instance": "a" * 26},
        {"instance": "node/1:" + "a" * 26},
        {"instance": "node:" + "a" * 27},
        {"instance": "node:" + "a" * 26 + "\n"},
        {"instance": "n" * 300 + ":" + "a" * 26},
    ],
)
def test_own_credentials_without_fence_are_refused_and_foreign_ones_are_not_fenced(change: dict[str, Any]) -> None:
    bare = {name: value for name, value in _claims(**change).items() if value is not None}
    assert _answer(_token(bare)) == "credentials.unfenced"
    assert _answer(_token(bare), own=None) == "accept"
    svid = _open(_token({**bare, "sub": "spiffe://other.example/agents/x"}, OTHER_KEY))
    assert svid.fence is None


@pytest.mark.parametrize(
    "cnf", [{}, {"jkt": "x"}, {"jkt": JKT + "="}, {"jkt": 1}, {"jwk": {}}, {"jkt": JKT, "kid": "x"}]
)
def test_a_binding_that_is_not_understood_refuses_the_token(cnf: dict[str, Any]) -> None:
    assert _answer(_token(_claims(cnf=cnf))) == "credentials.cnf"


@pytest.mark.parametrize(
    "change",
    [
        {"audience": []},
        {"audience": ""},
        {"audience": "https://one.example"},
        {"audience": ["a", ""]},
        {"subject": SpiffeId.parse("spiffe://acme.example")},
        {"expires": NOW},
        {"expires": NOW - 1},
        {"expires": NOW + 601},
        {"jkt": "short"},
    ],
)
def test_nothing_is_built_that_the_specification_or_the_limit_forbids(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"subject": AGENT, "audience": [AUDIENCE], "expires": NOW + 600}
    assert jwt_svid.build_claims(**good, issued_at=NOW, issuer="i", fence=FENCE)["exp"] == NOW + 600
    with pytest.raises(CredentialError, match="template"):
        jwt_svid.build_claims(**{**good, **change}, issued_at=NOW, issuer="i", fence=FENCE)
