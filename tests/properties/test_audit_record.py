"""The record: canonical, complete for its type, and free of what must not be in it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it has no stubs
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from aims.audit import record as module
from aims.audit.canonical import MAX_INTEGER, decode, encode
from aims.audit.errors import AuditError
from aims.audit.record import REQUIRED, SEVEN, TYPES, body, inert, placed, recorder
from aims.storage.write import Outcome, Verdict

SCHEMA_SHA256 = "e78a76d4f06fb80a8663614e124891611d0dd3110796b327260b3957bde8c8f8"

VALIDATOR = jsonschema.Draft202012Validator(module.SCHEMA)

names = st.text(st.characters(max_codepoint=127), max_size=12)
integers = st.integers(-MAX_INTEGER, MAX_INTEGER)
scalars = st.none() | st.booleans() | integers | st.text(max_size=30)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=20
)


@given(values)
def test_canonical_json_is_that_of_another_implementation(value: Any) -> None:
    octets = encode(value)
    assert octets == rfc8785.dumps(value)
    assert decode(octets) == value
    assert json.loads(octets) == value


@given(st.text(min_size=1), st.integers(0, 0x10FFFF))
def test_text_of_any_kind_is_escaped_alike(text: str, extra: int) -> None:
    if not 0xD800 <= extra <= 0xDFFF:
        assert encode(text + chr(extra)) == rfc8785.dumps(text + chr(extra))


@pytest.mark.parametrize(
    "value",
    [1.0, math.nan, math.inf, 2**53, -(2**53), {"é": 1}, {1: 2}, "\ud800", {"a": object()}, b"x", {1, 2}, [[1.5]]],
)
def test_what_has_no_one_form_is_refused(value: Any) -> None:
    with pytest.raises(AuditError, match="not_canonical"):
        encode(value)


def test_depth_is_bounded() -> None:
    nested: Any = 1
    for _ in range(17):
        nested = [nested]
    with pytest.raises(AuditError, match="deeper"):
        encode(nested)


@pytest.mark.parametrize(
    "octets",
    [b"", b" 1", b'{"b":1,"a":2}', b'{"a":1,"a":1}', b"1.0", b"1e3", b"-0", b"NaN", b"9007199254740992", b'"\\u0041"',
     b'"\\ud800"', b'"\xff"', b"[" * 100_000, b"9" * 5_000, b"{}{}", b'{"\xc3\xa9":1}'],
)  # fmt: skip
def test_another_form_of_a_value_is_refused(octets: bytes) -> None:
    with pytest.raises(AuditError, match="not_canonical"):
        decode(octets)


AGENT = "spiffe://local.test/agents/mail"
WHOLE: dict[str, Any] = {
    "type": "token.exchange",
    "outcome": "success",
    "time": 1_764_000_000.25,
    "id": "0" * 26,
    "agent": {"id": AGENT, "instance": "n1:" + "a" * 26, "key_thumbprint": "x" * 43},
    "principal": {"format": "commitment", "commitment": "A" * 43},
    "chain": (AGENT,),
    "client_id": AGENT,
    "delegation": {"id": "g1", "root": "g0", "depth": 1},
    "token": {"iss": "https://localhost:8440", "jti": "j1", "aud": ["https://localhost:9000/mcp"],
              "scope_asked": "mail.read mail.send", "scope_given": "mail.read", "exp": 1_764_000_600, "epoch": 12},
    "txn": "t1",
    "request_id": "r1",
    "resource": "https://localhost:9000/mcp",
    "action": "exchange",
    "decision": {"effect": "permit", "policy_digest": "d" * 43, "rules": ["delegation"]},
    "posture": {"level": "node-uid", "attestor": "unix"},
    "cause": {"reason": "asked"},
    "details": {"retry": False, "count": 3, "note": "ünïcode \n"},
}  # fmt: skip


def _read(octets: bytes) -> dict[str, Any]:
    value = decode(octets)
    assert isinstance(value, dict)
    return value


def test_the_schema_is_frozen() -> None:
    octets = Path(module.__file__).with_name("record.schema.json").read_bytes()
    jsonschema.Draft202012Validator.check_schema(json.loads(octets))
    # Records that were hashed are never given back: a change here needs a new version, or must only widen.
    assert hashlib.sha256(octets).hexdigest() == SCHEMA_SHA256


def test_a_record_has_the_seven_members_and_follows_the_schema() -> None:
    octets = body(**WHOLE)
    record = _read(octets)
    VALIDATOR.validate(record)
    assert octets == rfc8785.dumps(record)
    assert record["time"] == 1_764_000_000_250
    assert record["v"] == 1
    assert record["risk"] is None
    entry = _read(placed(octets, seq=7, writer="w", writer_seq=3, recorded=9))
    VALIDATOR.validate(entry)
    assert {name: entry[name] for name in record} == record


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_a_record_without_what_its_type_demands_is_refused(kind: str) -> None:
    whole = {**WHOLE, "type": kind}
    VALIDATOR.validate(_read(body(**whole)))
    bare = {name: whole[name] for name in ("type", "outcome", "time", "id")}
    needed = {name: whole.get(name) for demand in REQUIRED[kind] for name in SEVEN[demand]}
    VALIDATOR.validate(_read(body(**{**bare, **needed})))
    for demand in REQUIRED[kind]:
        without = {name: value for name, value in whole.items() if name not in SEVEN[demand]}
        for lacking in (without, {**whole, **dict.fromkeys(SEVEN[demand])}, {**without, SEVEN[demand][0]: {}}):
            with pytest.raises(AuditError, match="record_incomplete"):
                body(**lacking)
        nulled = {**_read(body(**whole)), **dict.fromkeys(SEVEN[demand])}
        with pytest.raises(jsonschema.ValidationError):
            VALIDATOR.validate(nulled)


def test_a_decision_needs_its_action() -> None:
    for name in ("action", "decision"):
        with pytest.raises(AuditError, match="record_incomplete"):
            body(**{**WHOLE, name: None})


@pytest.mark.parametrize(
    "change",
    [
        {"type": "token.invented"},
        {"type": ["token.issue"]},
        {"outcome": "maybe"},
        {"time": "now"},
        {"time": -1},
        {"time": math.nan},
        {"time": True},
        {"time": 2.0**60},
        {"id": ""},
        {"id": "a b"},
        {"id": "a\n"},
        {"unknown": 1},
        {"seq": 1},
        {"agent": {"instance": "x"}},
        {"agent": {"id": AGENT, "more": "x"}},
        {"agent": AGENT},
        {"token": {"exp": 1.5}},
        {"token": {"exp": True}},
        {"token": {"exp": -1}},
        {"token": {"exp": 2**53}},
        {"token": {"aud": []}},
        {"token": {"aud": "x"}},
        {"decision": {"effect": "perhaps"}},
        {"details": {"a": 1.5}},
        {"details": {"a": ["x"]}},
        {"details": {"A": "x"}},
        {"details": {"a\n": "x"}},
        {"details": {str(n): "x" for n in range(17)}},
        {"details": {1: "x"}},
        {"claimed": {"agent": 5}},
        {"chain": ["x"] * 9},
        {"resource": "x" * 2_049},
        {"resource": "\ud800"},
        {"resource": 7},
    ],
)
def test_a_malformed_member_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(AuditError, match="record_malformed"):
        body(**{**WHOLE, **change})


def test_a_record_above_16_kib_is_refused() -> None:
    large = {
        f"n{n}".replace("0", "z").translate(str.maketrans("123456789", "abcdefghi")): "x" * 2_000 for n in range(9)
    }
    with pytest.raises(AuditError, match="record_too_large"):
        body(**{**WHOLE, "details": large})
    with pytest.raises(AuditError, match="record_too_large"):
        placed(encode({"a": "x" * 16_384}), seq=0, writer="w", writer_seq=1, recorded=0)


B64 = "abcdefghijklmnopqrstuvwxyz012345"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{B64}.{B64}.{B64}", "record_secret"),
        (f"Bearer {B64}.{B64}.{B64}~", "record_secret"),
        (f"x.{B64}.{B64}.{B64}", "record_secret"),
        (f"{B64}..{B64}.{B64}.{B64}", "record_secret"),
        (f"eyJhbGciOiJub25lIn0.{B64}.", "record_secret"),
        ("-----BEGIN PRIVATE KEY-----", "record_secret"),
        ("person:" + "a" * 26, "record_person"),
        ("see person:" + "0" * 26 + " there", "record_person"),
    ],
)
def test_a_token_a_key_or_a_person_in_a_record_is_refused(text: str, reason: str) -> None:
    for change in ({"resource": text}, {"details": {"note": text}}, {"token": {"scope_asked": text}}):
        with pytest.raises(AuditError) as refused:
            body(**{**WHOLE, **change})
        assert refused.value.reason == reason
        assert B64 not in str(refused.value)
    record = _read(body(**{**WHOLE, "resource": inert(text)}))
    assert record["resource"].startswith("sha256:")


@pytest.mark.parametrize(
    "text",
    ["spiffe://a.example.org/agents/mail", "https://api.service.internal.example.com:8440/x", f"{B64}.{B64}",
     "Person::x", "person:short", "1.2.3", "a.b.c"],
)  # fmt: skip
def test_ordinary_names_are_no_tokens(text: str) -> None:
    assert _read(body(**{**WHOLE, "resource": text}))["resource"] == text
    assert inert(text) == text


@given(st.text(max_size=400) | st.just("x" * 100_000) | st.just(f"{B64}.{B64}.{B64}"))
def test_what_a_stranger_claims_never_breaks_a_record_and_never_names_the_agent(text: str) -> None:
    octets = body(
        type="request.refuse",
        outcome="refused",
        time=1.0,
        id="1",
        request_id="r1",
        action="token",
        decision={"effect": "deny", "reason": "authentication.wit_signature"},
        claimed={"agent": text, "client_id": AGENT, "kid": None},
    )
    record = _read(octets)
    VALIDATOR.validate(record)
    assert record["agent"] is None
    assert record["principal"] is None
    assert sorted(record["claimed"]) == ["agent", "client_id"]
    assert len(record["claimed"]["agent"]) <= 256


def test_a_write_that_loses_is_recorded_as_refused() -> None:
    record = recorder(refuse="token.refuse", **{**WHOLE, "new_state_digest": "n"})
    assert record(Outcome(Verdict.COMMITTED)) == body(**{**WHOLE, "new_state_digest": "n"})
    assert _read(record(Outcome(Verdict.COMMITTED, seq=9)))["change"] == 9
    lost = _read(record(Outcome(Verdict.STOPPED, culprit="person:" + "a" * 26, stop_seq=44)))
    VALIDATOR.validate(lost)
    assert (lost["type"], lost["outcome"]) == ("token.refuse", "refused")
    assert (lost["decision"]["effect"], lost["decision"]["reason"]) == ("deny", "storage.stopped")
    assert (lost["cause"]["reason"], lost["cause"]["stop_seq"]) == ("stopped", 44)
    assert lost["cause"]["event"].startswith("sha256:")
    assert not {"jti", "scope_given", "exp"} & lost["token"].keys()
    assert "new_state_digest" not in lost
    for verdict in Verdict:
        assert _read(record(Outcome(verdict)))["id"] == WHOLE["id"]
    with pytest.raises(AuditError, match="record_incomplete"):
        recorder(refuse="token.refuse", **{**WHOLE, "agent": None})
    with pytest.raises(AuditError, match="record_malformed"):
        recorder(refuse="token.invented", **WHOLE)
    with pytest.raises(AuditError, match=r"identity\.register needs resource"):
        recorder(refuse="identity.register", **{**WHOLE, "type": "grant.issue", "resource": None})


@pytest.mark.parametrize(
    "octets", [b"", b"[]", b"1", b'{"seq":1}', b'{"writer":"x"}', b'{"a": 1}', b'{"a":1.5}', b'{"b":1,"a":1}', b"\xff"]
)
def test_a_body_that_is_not_canonical_or_has_a_place_gets_none(octets: bytes) -> None:
    with pytest.raises(AuditError, match="record_malformed"):
        placed(octets, seq=0, writer="w", writer_seq=1, recorded=0)
