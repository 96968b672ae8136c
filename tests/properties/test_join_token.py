"""The text of a join token: one spelling, every other refused, nothing of it in an error."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aims.identifiers import TrustDomain
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.join_token import PREFIX, JoinToken, secret_hash

TOKEN = JoinToken(
    trust_domain=TrustDomain("local.test"), node="laptop", url="https://localhost:8440", ca=bytes(32), secret=b"s" * 32
)


def _text(document: object) -> str:
    return PREFIX + base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


def _members() -> dict[str, object]:
    text = TOKEN.encode().removeprefix(PREFIX)
    members = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    assert isinstance(members, dict)
    return members


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_a_token_survives_its_text(ca: bytes, secret: bytes) -> None:
    token = JoinToken(
        trust_domain=TrustDomain("acme.example"), node="n-1", url="https://[::1]:8440", ca=ca, secret=secret
    )
    assert JoinToken.parse(token.encode()) == token


@pytest.mark.parametrize(
    "change",
    [
        {"td": "UPPER"},
        {"node": "../admin"},
        {"node": ""},
        {"url": "http://localhost:8440"},
        {"url": "https://user@localhost"},
        {"url": "https://localhost:8440/path"},
        {"ca": "AA"},
        {"secret": "AA"},
        {"secret": 5},
        {"extra": "x"},
    ],
)
def test_a_token_with_a_bad_member_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ProvisioningError) as refused:
        JoinToken.parse(_text(_members() | change))
    assert refused.value.reason == "join_token_malformed"
    assert str(_members()["secret"]) not in str(refused.value)


@given(st.text(max_size=60) | st.just(TOKEN.encode() + "=") | st.just(" " + TOKEN.encode()) | st.just("x" * 5000))
def test_any_other_text_is_refused(text: str) -> None:
    for candidate in (text, PREFIX + text):
        with pytest.raises(ProvisioningError) as refused:
            JoinToken.parse(candidate)
        assert refused.value.reason == "join_token_malformed"


@given(st.binary(max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_one_secret_opens_one_name(secret: bytes, one: str, other: str) -> None:
    assert (secret_hash(one, secret) == secret_hash(other, secret)) is (one == other)
