"""PKCE and redirect URIs: the two things that tie a code to who asked for it."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aims.authorization.people import pkce, redirect
from aims.authorization.people.errors import PeopleError

UNRESERVED = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
RFC_VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
RFC_CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_the_example_of_the_specification() -> None:
    assert pkce.transform(RFC_VERIFIER) == RFC_CHALLENGE
    pkce.check(RFC_VERIFIER, pkce.challenge(RFC_CHALLENGE, "S256"))


@given(st.text(UNRESERVED, min_size=43, max_size=128), st.text(UNRESERVED, min_size=43, max_size=128))
def test_only_the_verifier_itself_fits(verifier: str, other: str) -> None:
    digest = hashlib.sha256(verifier.encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    pkce.check(verifier, challenge)
    if other != verifier:
        with pytest.raises(PeopleError):
            pkce.check(other, challenge)


@pytest.mark.parametrize("verifier", [None, "", "a" * 42, "a" * 129, "a" * 42 + "+", "a" * 43 + "\n", "\u00e9" * 43])
def test_a_malformed_verifier_fits_nothing(verifier: str | None) -> None:
    with pytest.raises(PeopleError) as caught:
        pkce.check(verifier, pkce.transform(verifier) if verifier and verifier.isascii() else RFC_CHALLENGE)
    assert caught.value.reason == "code_verifier"


@pytest.mark.parametrize("method", [None, "", "plain", "s256", "S256 ", "S512"])
def test_no_method_but_s256(method: str | None) -> None:
    with pytest.raises(PeopleError):
        pkce.challenge(RFC_CHALLENGE, method)


@pytest.mark.parametrize(
    "uri",
    [
        "http://app.example/cb",
        "http://localhost/cb",
        "https://app.example/cb#x",
        "https://u@app.example/cb",
        "https://app.example:0/cb",
        "https://app.example/c b",
        "https://*.example/cb",
        "https://APP.example/cb",
        "ftp://app.example/cb",
        "myapp:/cb",
        "javascript:alert(1)",
        "//app.example/cb",
        "/cb",
        "",
        "https://app.example/" + "a" * 1024,
        "https://app.example/cb\n",
    ],
)
def test_what_may_not_be_registered(uri: str) -> None:
    with pytest.raises(PeopleError):
        redirect.check(uri)


@given(st.integers(1, 65535), st.sampled_from(["127.0.0.1", "[::1]"]), st.sampled_from(["", "/", "/cb", "/cb?a=b"]))
def test_a_loopback_address_may_have_any_port(port: int, host: str, path: str) -> None:
    registered = redirect.check(f"http://{host}{path}")
    assert redirect.allowed(f"http://{host}:{port}{path}", [registered])
    assert not redirect.allowed(f"http://{host}:{port}{path}x", [registered])
    assert not redirect.allowed(f"https://{host}:{port}{path}", [registered])
    other = "[::1]" if host == "127.0.0.1" else "127.0.0.1"
    assert not redirect.allowed(f"http://{other}:{port}{path}", [registered])


@given(st.text(max_size=80))
def test_nothing_is_allowed_that_is_not_registered(uri: str) -> None:
    assert redirect.allowed(uri, []) is False
    assert redirect.allowed(uri, ["https://app.example/cb"]) is (uri == "https://app.example/cb")


def test_an_answer_keeps_the_query_and_escapes_what_it_adds() -> None:
    answer = redirect.response(
        "https://a.example/cb?x=1", (("state", "a&b=c #\u00e9"), ("none", None), ("iss", "https://i"))
    )
    assert answer == "https://a.example/cb?x=1&state=a%26b%3Dc%20%23%C3%A9&iss=https%3A%2F%2Fi"
    assert redirect.origin("https://a.example:8443/cb?x") == "https://a.example:8443"
    assert redirect.origin("com.example.app:/cb") == "com.example.app:"
