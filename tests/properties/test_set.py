"""The security event token: every rule of RFC 8417 and SSF 1.0 that a receiver checks, each broken once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties.hostile import LocalKey, compact, dump, hostile_tokens

from aims.jose import KeySet
from aims.monitoring.errors import MonitoringError
from aims.monitoring.events import (
    ACCOUNT_DISABLED,
    CREDENTIAL_COMPROMISE,
    SESSION_REVOKED,
    STREAM_UPDATED,
    VERIFICATION,
    SessionRevoked,
)
from aims.monitoring.set import (
    HEADER,
    LEEWAY,
    MAX_AGE,
    MAX_OCTETS,
    PROFILE,
    SecurityEvent,
    build_claims,
    parse_set,
    sign_set,
    verify_set,
)
from aims.monitoring.subjects import UriSubject

NOW = 1_800_000_000
ISSUER = "https://idp.example"
AUDIENCE = "https://localhost:8440/signals"
KEY = LocalKey.new("ES256")
KEYS = KeySet([KEY.verification])
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "jti": "set-1",
    "iat": NOW,
    "aud": AUDIENCE,
    "txn": "txn-1",
    "sub_id": {"format": "uri", "uri": "spiffe://local.test/agents/a"},
    "events": {SESSION_REVOKED: {"event_timestamp": NOW - 5, "reason_admin": {"en": "x"}}},
}


def signed(claims: dict[str, Any], header: dict[str, Any] | None = None) -> bytes:
    head = {"alg": "ES256", "kid": KEY.kid, **HEADER} if header is None else header
    return compact(dump(head), dump(claims), KEY.sign_now).encode("ascii")


def opened(octets: bytes, now: float = NOW, keys: KeySet = KEYS) -> SecurityEvent:
    return verify_set(parse_set(octets), keys, audience=AUDIENCE, now=now)


def refusal(octets: bytes, now: float = NOW) -> tuple[str, str]:
    with pytest.raises(MonitoringError) as refused:
        opened(octets, now)
    return refused.value.reason, refused.value.standard


def test_a_good_set_says_who_what_whom_and_when() -> None:
    event = opened(signed(CLAIMS))
    assert (event.issuer, event.jti, event.txn, event.event) == (ISSUER, "set-1", "txn-1", SESSION_REVOKED)
    assert event.subject == UriSubject("spiffe://local.test/agents/a")
    assert event.at == (NOW - 5) * 1000
    assert "eyJ" not in repr(event)
    # without the event's own time, that of toe, then that of the SET
    plain = {**CLAIMS, "events": {ACCOUNT_DISABLED: {"reason": "hijacking"}}}
    assert opened(signed(plain)).at == NOW * 1000
    assert opened(signed({**plain, "toe": NOW - 9.5})).at == NOW * 1000 - 9500


def test_every_hostile_token_gets_the_answer_of_the_door() -> None:
    cases = list(hostile_tokens(PROFILE, HEADER, CLAIMS, KEY, now=NOW, audience=AUDIENCE))
    assert len(cases) > 100
    for case in cases:
        case.check()
        if case.expected != "accept":
            octets = case.token.encode("utf-8", "surrogatepass")
            with pytest.raises(MonitoringError) as refused:
                opened(octets, keys=case.keys)
            assert refused.value.standard


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CLAIMS.items() if key != name}


def _with(**members: Any) -> dict[str, Any]:
    return {**CLAIMS, **members}


ONE: dict[str, Any] = {SESSION_REVOKED: {}}
PAYLOADS: list[Any] = [None, [], "x", 1, {"event_timestamp": "1"}, {"event_timestamp": -1}, {"event_timestamp": True}]
NEGATIVES: list[tuple[dict[str, Any], str, str]] = [
    *((_without(name), "set_claim", "invalid_request") for name in ("jti", "iat", "aud", "sub_id", "events")),
    (_without("iss"), "set_issuer", "invalid_issuer"),
    (_with(iss=""), "set_issuer", "invalid_issuer"),
    (_with(iss=["x"]), "set_issuer", "invalid_issuer"),
    (_with(sub="spiffe://local.test/agents/a"), "set_claim", "invalid_request"),
    (_with(exp=NOW + 60), "set_claim", "invalid_request"),
    (_with(exp=None), "set_claim", "invalid_request"),
    (_with(jti=""), "set_claim", "invalid_request"),
    (_with(jti="a b"), "set_claim", "invalid_request"),
    (_with(jti="a" * 257), "set_claim", "invalid_request"),
    (_with(txn="a\n"), "set_claim", "invalid_request"),
    (_with(txn=7), "set_claim", "invalid_request"),
    (_with(iat="now"), "set_claim", "invalid_request"),
    (_with(iat=True), "set_claim", "invalid_request"),
    (_with(aud="https://localhost:8440"), "set_audience", "invalid_audience"),
    (_with(aud=AUDIENCE + "/"), "set_audience", "invalid_audience"),
    (_with(aud=["a", "b"]), "set_audience", "invalid_audience"),
    (_with(aud=[]), "set_claim", "invalid_request"),
    (_with(iat=NOW + LEEWAY + 1), "set_time", "invalid_request"),
    (_with(iat=NOW - MAX_AGE - 1), "set_time", "invalid_request"),
    (_with(toe=NOW + LEEWAY + 1, events={ACCOUNT_DISABLED: {}}), "set_time", "invalid_request"),
    (_with(events={SESSION_REVOKED: {"event_timestamp": NOW + LEEWAY + 1}}), "set_time", "invalid_request"),
    (_with(events={}), "set_event", "invalid_request"),
    (_with(events={**ONE, ACCOUNT_DISABLED: {}}), "set_event", "invalid_request"),
    (_with(events={"https://evil.example/event": {}}), "set_event", "invalid_request"),
    (_with(events={SESSION_REVOKED + "/": {}}), "set_event", "invalid_request"),
    (_with(events=[SESSION_REVOKED]), "set_claim", "invalid_request"),
    *((_with(events={SESSION_REVOKED: payload}), "set_payload", "invalid_request") for payload in PAYLOADS),
    (_with(events={SESSION_REVOKED: {"initiating_entity": "root"}}), "set_payload", "invalid_request"),
    (_with(events={SESSION_REVOKED: {"reason_admin": "text"}}), "set_payload", "invalid_request"),
    (_with(events={CREDENTIAL_COMPROMISE: {}}), "set_payload", "invalid_request"),
    (_with(events={STREAM_UPDATED: {"status": "gone"}}), "set_payload", "invalid_request"),
    (_with(events={ACCOUNT_DISABLED: {"reason": "mood"}}), "set_payload", "invalid_request"),
    (_with(sub_id={"format": "email", "email": "a@example.org"}), "set_subject", "invalid_request"),
    (_with(sub_id={}), "set_subject", "invalid_request"),
    (
        _with(events={VERIFICATION: {"state": "x"}}, sub_id={"format": "opaque", "id": "s"}),
        "set_state",
        "invalid_state",
    ),
]


@pytest.mark.parametrize(("claims", "reason", "standard"), NEGATIVES)
def test_each_broken_rule_has_its_reason_and_registered_code(
    claims: dict[str, Any], reason: str, standard: str
) -> None:
    assert refusal(signed(claims)) == (reason, standard)


@pytest.mark.parametrize(
    ("header", "reason", "standard"),
    [
        ({"typ": "JWT"}, "set_typ", "invalid_request"),
        ({"typ": None}, "set_typ", "invalid_request"),
        ({"typ": "wit+jwt"}, "set_typ", "invalid_request"),
        ({"alg": "none"}, "set_alg", "invalid_key"),
        ({"alg": "HS256"}, "set_alg", "invalid_key"),
        ({"alg": "ES384"}, "set_alg", "invalid_key"),
        ({"kid": "other"}, "set_kid", "invalid_key"),
        ({"jwk": {}}, "set_malformed", "invalid_request"),
        ({"crit": ["x"], "x": 1}, "set_malformed", "invalid_request"),
    ],
)
def test_each_broken_header_has_its_reason(header: dict[str, Any], reason: str, standard: str) -> None:
    assert refusal(signed(CLAIMS, {"alg": "ES256", "kid": KEY.kid, **HEADER, **header})) == (reason, standard)
    bare = {"alg": "ES256", "kid": KEY.kid}
    assert refusal(signed(CLAIMS, bare)) == ("set_typ", "invalid_request")


def test_another_issuers_key_does_not_verify() -> None:
    other = KeySet([LocalKey.new("ES256").verification])
    with pytest.raises(MonitoringError) as refused:
        opened(signed(CLAIMS), keys=other)
    assert (refused.value.reason, refused.value.standard) == ("set_signature", "authentication_failed")
    with pytest.raises(MonitoringError) as refused:
        opened(signed(CLAIMS), keys=KeySet([]))
    assert refused.value.reason == "set_kid"


def test_size_is_bounded() -> None:
    assert refusal(signed(_with(filler="x" * MAX_OCTETS))) == ("set_too_large", "invalid_request")


def test_a_set_is_good_inside_its_window() -> None:
    for now in (NOW - LEEWAY, NOW, NOW + MAX_AGE):
        assert opened(signed(_with(events=ONE)), now).jti == "set-1"


@given(st.binary(max_size=200))
def test_no_octets_raise_anything_else(octets: bytes) -> None:
    with pytest.raises(MonitoringError):
        opened(octets)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["sub_id", "events", "aud", "jti", "iat", "txn"]),
)
def test_no_value_of_a_claim_raises_anything_else(value: object, name: str) -> None:
    with contextlib.suppress(MonitoringError):
        assert opened(signed({**CLAIMS, name: value})).issuer == ISSUER


async def test_what_we_build_we_would_take() -> None:
    claims = build_claims(
        issuer=ISSUER,
        audience=AUDIENCE,
        jti="j",
        issued_at=NOW,
        txn="t",
        subject=UriSubject("spiffe://local.test/agents/a"),
        payload=SessionRevoked(event_timestamp=NOW, initiating_entity="admin", reason_admin={"en": "Stopped."}),
    )
    token = await sign_set(claims, KEY)
    event = opened(token.encode("ascii"))
    assert (event.jti, event.txn, event.event) == ("j", "t", SESSION_REVOKED)
    assert not {"sub", "exp", "nbf"} & claims.keys()
    header = json.loads(_decoded(token.split(".")[0]))
    assert header == {"typ": "secevent+jwt", "alg": "ES256", "kid": KEY.kid}


def _decoded(part: str) -> bytes:
    import base64

    decode: Callable[[str], bytes] = base64.urlsafe_b64decode
    return decode(part + "=" * (-len(part) % 4))
