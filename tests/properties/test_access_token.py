"""The access token: hostile tokens, what it must and may not carry, and how it is held against its presenter."""

from __future__ import annotations

import dataclasses
from typing import Any

import jwt as pyjwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties.hostile import LocalKey, hostile_tokens

from aims.authentication import dpop
from aims.authentication.liveness import StopName
from aims.authorization.access_token import (
    HEADER,
    MAX_LIFETIME,
    PROFILE,
    AccessToken,
    AccessTokenVerifier,
    Confirmation,
    Presentation,
)
from aims.authorization.errors import AuthorizationError
from aims.credentials import jwt_svid, wit
from aims.credentials.model import Fence
from aims.jose import KeySet, sign_now

NOW = 1_764_000_000
ISSUER = "https://localhost:8440"
TOOL = "https://localhost:9443/mcp"
AGENT = "spiffe://acme.example/agents/researcher"
OTHER = "spiffe://acme.example/agents/writer"
FENCE = Fence("node-1:" + "a" * 26, 1234)
KEY = LocalKey.new("ES256", "at-1")
THUMB, ANOTHER = "A" * 43, "B" * 42 + "A"
VERIFIER = AccessTokenVerifier(ISSUER, KeySet([KEY.verification]))
TOKEN = AccessToken(
    issuer=ISSUER,
    subject=AGENT,
    client_id=AGENT,
    audience=TOOL,
    scopes=frozenset({"read", "write"}),
    issued_at=NOW,
    expires=NOW + 600,
    token_id="0" * 26,
    grant_id="agent:researcher",
    fence=FENCE,
    confirmation=Confirmation("jkt", THUMB),
)
DPOP = Presentation(scheme="DPoP", jkt=THUMB)


def _text(header: dict[str, Any] | None = None, key: LocalKey = KEY, **changes: Any) -> str:
    claims = {name: value for name, value in {**TOKEN.claims(), **changes}.items() if value is not ...}
    return sign_now(dict(HEADER) if header is None else header, claims, key)


def _answer(text: str, now: float = NOW) -> str:
    try:
        VERIFIER.read(text, now=now)
    except AuthorizationError as error:
        return error.reason
    return "accept"


def test_every_hostile_token_gets_the_answer_that_the_door_owes() -> None:
    cases = list(hostile_tokens(PROFILE, dict(HEADER), TOKEN.claims(), KEY, now=NOW))
    assert len(cases) > 50
    for case in cases:
        case.check()
        if case.expected != "accept" and case.keys is not VERIFIER.keys:
            verifier = AccessTokenVerifier(ISSUER, case.keys)
            with pytest.raises(AuthorizationError):
                verifier.read(case.token, now=NOW)


def test_what_is_built_is_read_again() -> None:
    full = dataclasses.replace(
        TOKEN,
        subject="person:" + "0" * 26,
        client_id=OTHER,
        audience=OTHER,
        actors=(OTHER, AGENT),
        may_act=OTHER,
        resource=TOOL,
        details=({"type": "share", "copies": 2},),
        txn="t" * 26,
        confirmation=Confirmation("x5t#S256", THUMB),
    )
    for token in (TOKEN, full, dataclasses.replace(TOKEN, confirmation=None)):
        assert VERIFIER.read(sign_now(HEADER, token.claims(), KEY), now=NOW) == token
    claims = full.claims()
    assert claims["act"] == {"sub": OTHER, "act": {"sub": AGENT}}
    assert claims["may_act"] == {"sub": OTHER}
    assert full.target == TOOL
    assert TOKEN.target == TOOL


def test_another_implementation_reads_it() -> None:
    read = pyjwt.decode(
        _text(),
        KEY.private.public_key(),
        ["ES256"],
        audience=TOOL,
        issuer=ISSUER,
        options={"verify_exp": False, "verify_iat": False},
    )
    assert read == TOKEN.claims()
    assert pyjwt.get_unverified_header(_text()) == {"typ": "at+jwt", "alg": "ES256", "kid": "at-1"}


def test_every_name_whose_stop_ends_the_token_is_listed() -> None:
    token = dataclasses.replace(TOKEN, subject="person:" + "0" * 26, client_id=OTHER, actors=(OTHER, AGENT))
    assert set(token.names) == {
        StopName("person", "person:" + "0" * 26),
        StopName("agent", OTHER),
        StopName("agent", AGENT),
        StopName("grant", "agent:researcher"),
        StopName("instance", FENCE.instance),
        StopName("node", "node-1"),
    }
    assert token.epoch == 1234


@pytest.mark.parametrize("claim", sorted({*TOKEN.claims()} - {"agent", "cnf"}))
def test_a_required_claim_is_missing(claim: str) -> None:
    expected = "token_issuer" if claim == "iss" else "token_claims"
    without: dict[str, Any] = {claim: ...}
    assert _answer(_text(**without)) == expected
    assert _answer(_text()) == "accept"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": ISSUER + "/"}, "token_issuer"),
        ({"iss": ISSUER + "/txn"}, "token_issuer"),
        ({"aud": [TOOL, OTHER]}, "token_claims"),
        ({"aud": [TOOL]}, "token_claims"),
        ({"exp": NOW - 6}, "token_expired"),
        ({"iat": NOW + 60}, "token_expired"),
        ({"nbf": NOW + 60}, "token_expired"),
        ({"exp": NOW + MAX_LIFETIME + 1}, "token_claims"),
        ({"sub": "researcher"}, "token_claims"),
        ({"sub": "spiffe://acme.example"}, "token_claims"),
        ({"client_id": "person:" + "0" * 26}, "token_claims"),
        ({"client_id": "https://client.test"}, "token_claims"),
        ({"scope": ""}, "token_claims"),
        ({"scope": " "}, "token_claims"),
        ({"scope": "read  write"}, "token_claims"),
        ({"scope": ["read"]}, "token_claims"),
        ({"epoch": -1}, "token_claims"),
        ({"epoch": "1"}, "token_claims"),
        ({"epoch": True}, "token_claims"),
        ({"instance": "node-1"}, "token_claims"),
        ({"grant_id": "g" * 129}, "token_claims"),
        ({"jti": "j" * 129}, "token_claims"),
        ({"cnf": {}}, "token_claims"),
        ({"cnf": {"jkt": "short"}}, "token_claims"),
        ({"cnf": {"jkt": THUMB, "x5t#S256": THUMB}}, "token_claims"),
        ({"cnf": {"jwk": {}}}, "token_claims"),
        ({"cnf": "x"}, "token_claims"),
        ({"act": {}}, "chain_malformed"),
        ({"act": {"sub": "person:" + "0" * 26}}, "chain_malformed"),
        ({"act": {"sub": OTHER, "role": "admin"}}, "chain_malformed"),
        ({"act": {"sub": OTHER, "act": None}}, "chain_malformed"),
        ({"act": {"sub": OTHER, "act": []}}, "chain_malformed"),
        ({"act": {"sub": OTHER, "act": {"sub": OTHER}}}, "actor_twice"),
        ({"act": {"sub": AGENT}}, "actor_twice"),
        ({"may_act": {}}, "chain_malformed"),
        ({"may_act": {"sub": [OTHER]}}, "chain_malformed"),
        ({"may_act": {"sub": OTHER, "iss": "https://evil.test"}}, "chain_malformed"),
        ({"may_act": {"sub": OTHER, "aud": TOOL}}, "chain_malformed"),
        ({"authorization_details": []}, "token_claims"),
        ({"authorization_details": [{}]}, "token_claims"),
        ({"authorization_details": [{"type": "a"}, {"type": "a"}]}, "token_claims"),
        ({"agent": "yes"}, "token_claims"),
        ({"may_act": {"sub": OTHER, "iss": ISSUER}}, "accept"),
        ({"unknown": 1}, "accept"),
        ({}, "accept"),
    ],
)
def test_a_claim_out_of_its_form_refuses(changes: dict[str, Any], reason: str) -> None:
    assert _answer(_text(**changes)) == reason


def test_a_fifth_actor_refuses() -> None:
    chain: dict[str, Any] | None = None
    for number in range(5):
        actor = {"sub": f"spiffe://acme.example/agents/a{number}"}
        chain = actor if chain is None else {**actor, "act": chain}
        assert _answer(_text(act=chain)) == ("accept" if number < 4 else "chain_too_long")


def test_a_token_of_another_kind_or_key_is_none() -> None:
    for typ in ("JWT", "wit+jwt", "wpt+jwt", "dpop+jwt", "txntoken+jwt", "oauth-id-jag+jwt", "secevent+jwt"):
        assert _answer(_text({"typ": typ})) == "token_typ"
    assert _answer(_text({"alg": "ES256"})) == "token_typ"
    assert _answer(_text({"typ": "application/at+jwt"})) == "accept"
    assert _answer(_text({"typ": "AT+JWT"})) == "accept"
    assert _answer(_text(key=LocalKey.new("ES256", "at-1"))) == "token_signature"
    assert _answer(_text(key=LocalKey.new("ES256", "at-2"))) == "token_signature"
    assert _answer("x") == "token_malformed"


@pytest.mark.parametrize("profile", [jwt_svid.PROFILE, wit.WIT, wit.WIT_SVID, dpop.DPOP])
def test_an_access_token_is_no_token_of_another_kind(profile: Any) -> None:
    from aims.jose import JoseError, open_token

    with pytest.raises(JoseError) as refused:
        open_token(_text(), profile, KeySet([KEY.verification]), now=NOW, audience=TOOL)
    assert refused.value.reason == "typ"


# --- at a resource


def _accept(text: str, presented: Presentation = DPOP, audience: Any = TOOL, *, unbound: bool = False) -> str:
    try:
        VERIFIER.accept(text, presented, audience=audience, now=NOW, unbound=unbound)
    except AuthorizationError as error:
        return error.reason
    return "accept"


def test_a_token_is_held_against_audience_scheme_and_key() -> None:
    text = _text()
    assert _accept(text) == "accept"
    assert _accept(text, audience={TOOL, "urn:tool"}) == "accept"
    assert _accept(text, audience=set()) == "token_audience"
    assert _accept(text, audience="urn:tool") == "token_audience"
    # a token for somebody else, presented by somebody else: it was merely forwarded
    assert _accept(text, Presentation(scheme="DPoP", jkt=ANOTHER), audience="urn:tool") == "token_passthrough"
    assert _accept(text, Presentation(scheme="Bearer"), audience="urn:tool") == "token_passthrough"
    assert _accept(text, Presentation(scheme="Bearer", jkt=THUMB)) == "token_scheme"
    assert _accept(text, Presentation(scheme="DPoP", jkt=ANOTHER)) == "token_binding"
    assert _accept(text, Presentation(scheme="DPoP")) == "token_binding"
    assert _accept(text, Presentation(scheme="DPoP", certificate=THUMB)) == "token_binding"
    bound = _text(cnf={"x5t#S256": THUMB})
    assert _accept(bound, Presentation(scheme="Bearer", certificate=THUMB)) == "accept"
    assert _accept(bound, Presentation(scheme="Bearer", certificate=ANOTHER)) == "token_binding"
    assert _accept(bound, Presentation(scheme="Bearer", jkt=THUMB)) == "token_binding"
    assert _accept(bound, Presentation(scheme="DPoP", certificate=THUMB)) == "token_scheme"
    bare = _text(cnf=...)
    assert _accept(bare, Presentation(scheme="Bearer")) == "token_unbound"
    assert _accept(bare, Presentation(scheme="Bearer"), unbound=True) == "accept"
    assert _accept(bare, Presentation(scheme="DPoP", jkt=THUMB), unbound=True) == "token_scheme"
    # even where bearer is allowed, a bound token stays bound
    assert _accept(text, Presentation(scheme="Bearer"), unbound=True) == "token_scheme"
    assert _accept(bound, Presentation(scheme="Bearer"), unbound=True) == "token_binding"


@pytest.mark.parametrize(
    "changes",
    [
        {"scopes": frozenset()},
        {"expires": NOW},
        {"expires": NOW + MAX_LIFETIME + 1},
        {"expires": NOW + 1.5},
    ],
)
def test_no_token_is_made_that_no_verifier_takes(changes: dict[str, Any]) -> None:
    with pytest.raises(AuthorizationError) as refused:
        dataclasses.replace(TOKEN, **changes).claims()
    assert refused.value.reason == "template"
    assert TOKEN.claims()


@given(st.binary(max_size=400) | st.text(max_size=400))
def test_anything_is_refused_with_an_error_of_this_layer(text: bytes | str) -> None:
    with pytest.raises(AuthorizationError):
        VERIFIER.read(text, now=NOW)
