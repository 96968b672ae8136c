"""DPoP proofs: the examples of RFC 9449, each refusal beside its accepted twin, hostile tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import jwt as pyjwt
import pytest
from tests.properties.hostile import LocalKey, compact, dump, hostile_tokens
from tests.properties.proof_material import NOW, changed

from aims.authentication import dpop
from aims.authentication.dpop import DPOP, DpopProof, verify_proof
from aims.authentication.errors import CONSEQUENCES, AuthenticationError
from aims.authentication.request import HttpRequest
from aims.authentication.target import covers, normal, same
from aims.authentication.wpt import token_hash
from aims.jose import sign_now
from aims.jose.jwk import private_jwk, public_jwk, thumbprint

URL = "https://server.example.com/token"
KEY = LocalKey.new("ES256")
JWK = public_jwk(KEY.private.public_key())
HEADER = {"typ": "dpop+jwt", "jwk": JWK}

# RFC 9449 4.1 (Figure 2) and 7.1 (Figure 14): code components of an IETF document, Revised BSD licence.
_EXAMPLE_HEAD = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyV"
    "VFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19."
)
EXAMPLE_TOKEN_REQUEST = (
    f"{_EXAMPLE_HEAD}eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2Vu"
    "IiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
)
EXAMPLE_RESOURCE_REQUEST = (
    f"{_EXAMPLE_HEAD}eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90"
    "ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP3"
    "5yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
)
EXAMPLE_TOKEN = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
EXAMPLE_JKT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"


def _http(*proofs: str, method: str = "POST", uri: str = URL) -> HttpRequest:
    return HttpRequest.of(method, uri, [("DPoP", proof) for proof in proofs])


def _claims(**changes: Any) -> dict[str, Any]:
    return changed(dpop.build_claims("POST", URL, token_id="id-1", now=NOW), changes)


def _proof(key: LocalKey = KEY, *, header: Any = HEADER, **changes: Any) -> str:
    return sign_now(header, _claims(**changes), key, with_kid=False)


def _answer(*proofs: str, now: float = NOW, uri: str = URL, method: str = "POST", **options: Any) -> str:
    try:
        verify_proof(_http(*proofs, uri=uri, method=method), now=now, **options)
    except AuthenticationError as error:
        return error.reason
    return "accept"


def test_the_examples_of_the_rfc_verify() -> None:
    first = verify_proof(_http(EXAMPLE_TOKEN_REQUEST), now=1562262616)
    assert (first.jkt, first.claim.id, first.issued_at) == (EXAMPLE_JKT, "-BwC3ESc6acc2lTc", 1562262616)
    request = _http(EXAMPLE_RESOURCE_REQUEST, method="GET", uri="https://resource.example.org/protectedresource")
    second = verify_proof(request, now=1562262618, access_token=EXAMPLE_TOKEN, jkt=EXAMPLE_JKT)
    assert second.claim.id == "e1j3V_bKic8-LAEB"
    with pytest.raises(AuthenticationError, match="dpop_ath"):
        verify_proof(request, now=1562262618, access_token=EXAMPLE_TOKEN + "x", jkt=EXAMPLE_JKT)


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512", "PS256", "RS256"])
async def test_what_is_issued_verifies_and_foreign_libraries_read_it(algorithm: str) -> None:
    key = LocalKey.new(algorithm)
    public = key.private.public_key()
    claims = dpop.build_claims("GET", f"{URL}?q#f", token_id="x", now=NOW + 0.9, access_token="tok", nonce="n")
    text = await dpop.issue(claims, key, public)
    found = verify_proof(
        _http(text, method="GET"), now=NOW, access_token="tok", jkt=thumbprint(public), nonces=frozenset({"m", "n"})
    )
    assert isinstance(found, DpopProof)
    assert (found.jkt, found.key.key, found.issued_at) == (thumbprint(public), public, NOW)
    assert (found.claim.space, found.claim.holder, found.claim.expires) == ("dpop", found.jkt, NOW + 330)
    assert pyjwt.get_unverified_header(dpop.issue_now(claims, key, public))["jwk"] == public_jwk(public)
    options: Any = {"verify_iat": False}
    assert pyjwt.decode(text, pyjwt.PyJWK({**public_jwk(public), "alg": algorithm}), options=options) == claims


REFUSALS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("dpop_missing", {"jti": ...}, {"jti": "x"}),
    ("dpop_missing", {"htm": ...}, {}),
    ("dpop_missing", {"htu": ...}, {}),
    ("dpop_missing", {"iat": ...}, {}),
    ("dpop_malformed", {"jti": 1}, {"jti": "1"}),
    ("dpop_malformed", {"iat": str(NOW)}, {"iat": NOW + 0.5}),
    ("dpop_htm", {"htm": "post"}, {"htm": "POST"}),
    ("dpop_htm", {"htm": "GET"}, {"htm": "POST"}),
    ("dpop_htu", {"htu": "https://server.example.com/Token"}, {"htu": "https://SERVER.example.com:443/token?a#b"}),
    ("dpop_htu", {"htu": "http://server.example.com/token"}, {"htu": "HTTPS://server.example.com/%74oken"}),
    ("dpop_htu", {"htu": "https://server.example.com/token/"}, {"htu": URL}),
    ("dpop_htu", {"htu": "https://server.example.com:444/token"}, {"htu": URL}),
    ("dpop_htu", {"htu": "https://a@server.example.com/token"}, {"htu": URL}),
    ("dpop_htu", {"htu": "/token"}, {"htu": URL}),
    ("dpop_iat", {"iat": NOW - 65}, {"iat": NOW - 64}),
    ("dpop_iat", {"iat": NOW + 6}, {"iat": NOW + 5}),
    ("dpop_iat", {"exp": NOW - 5}, {"exp": NOW + 5}),
    ("dpop_iat", {"nbf": NOW + 6}, {"nbf": NOW}),
]


@pytest.mark.parametrize(("reason", "bad", "good"), REFUSALS, ids=range(len(REFUSALS)))
def test_each_claim_is_refused_by_name_beside_a_twin_that_passes(
    reason: str, bad: dict[str, Any], good: dict[str, Any]
) -> None:
    assert _answer(_proof(**bad)) == reason
    assert _answer(_proof(**good)) == "accept"
    assert CONSEQUENCES[reason].challenge.startswith("DPoP ")
    assert AuthenticationError(reason).standard == "invalid_dpop_proof"


def test_token_key_and_nonce_bind_where_they_are_asked_for() -> None:
    bound = _proof(ath=token_hash("tok"), nonce="n1")
    assert _answer(bound) == "accept"
    assert _answer(bound, access_token="tok", nonces=frozenset({"n1"}), jkt=thumbprint(KEY.private.public_key())) == (
        "accept"
    )
    assert _answer(bound, access_token="tok2") == "dpop_ath"
    assert _answer(_proof(), access_token="tok") == "dpop_ath"
    assert _answer(bound, nonces=frozenset({"n2"})) == "dpop_nonce"
    assert _answer(_proof(), nonces=frozenset({"n2"})) == "dpop_nonce"
    assert _answer(bound, nonces=frozenset()) == "dpop_nonce"
    assert AuthenticationError("dpop_nonce").standard == "use_dpop_nonce"
    assert _answer(bound, jkt=EXAMPLE_JKT) == "dpop_key"
    stolen = LocalKey.new("ES256")
    other = {"typ": "dpop+jwt", "jwk": public_jwk(stolen.private.public_key())}
    assert _answer(_proof(stolen, header=other), jkt=thumbprint(KEY.private.public_key())) == "dpop_key"


def test_exactly_one_dpop_field() -> None:
    assert _answer() == "dpop_header_count"
    assert _answer(_proof(), _proof()) == "dpop_header_count"
    assert _answer(f"{_proof()}, {_proof()}") == "dpop_malformed"
    assert _answer(_proof()) == "accept"


@pytest.mark.parametrize(
    "jwk",
    [
        ...,
        None,
        "x",
        [JWK],
        {},
        private_jwk(KEY.private),
        {"kty": "oct", "k": "AAAA"},
        {**JWK, "use": "enc"},
        {**JWK, "key_ops": ["sign"]},
        {**JWK, "x": JWK["y"], "y": JWK["x"]},
        {**JWK, "crv": "P-384"},
        {**JWK, "x": JWK["x"] + "="},
        {**JWK, "alg": "ES384"},
    ],
    ids=range(13),
)
def test_the_key_in_the_proof_is_one_public_key(jwk: Any) -> None:
    assert _answer(_proof(header=changed(HEADER, {"jwk": jwk}))) == "dpop_jwk"
    fine = {**JWK, "use": "sig", "key_ops": ["verify"], "kid": "k", "alg": "ES256", "extra": 1}
    assert _answer(_proof(header={**HEADER, "jwk": fine})) == "accept"


def test_another_key_or_algorithm_does_not_verify() -> None:
    stranger, edwards = LocalKey.new("ES256"), LocalKey.new("Ed25519")
    assert _answer(_proof(stranger)) == "dpop_signature"
    assert _answer(_proof(edwards)) == "dpop_alg"
    edwards_header = {"typ": "dpop+jwt", "jwk": public_jwk(edwards.private.public_key())}
    assert _answer(_proof(edwards, header=edwards_header)) == "accept"
    renamed = {**edwards_header, "alg": "EdDSA"}
    assert _answer(compact(dump(renamed), dump(_claims()), edwards.sign_now)) == "dpop_alg"


_DOOR_TO_DPOP = {
    "typ": "dpop_typ",
    "alg": "dpop_alg",
    "signature": "dpop_signature",
    "claim_missing": "dpop_missing",
    "expired": "dpop_iat",
    "not_yet_valid": "dpop_iat",
    "accept": "accept",
}


def test_every_hostile_shape_is_refused_under_the_names_of_a_dpop_proof() -> None:
    shapes = set()
    for case in hostile_tokens(DPOP, HEADER, _claims(), KEY, now=NOW):
        case.check()
        # the key comes with the proof, so shapes that are about a set of keys mean nothing here
        if len(case.keys) != 1 or case.shape == "alg-key-mismatch":
            continue
        if not case.token.isprintable() or len(case.token) > 60_000:
            with pytest.raises(AuthenticationError, match=r"request_malformed|dpop_malformed"):
                verify_proof(_http(case.token), now=NOW)
            continue
        assert _answer(case.token) == _DOOR_TO_DPOP.get(case.expected, "dpop_malformed"), case
        shapes.add(case.shape)
    assert len(shapes) > 40


def test_the_window_can_be_narrowed_and_not_widened() -> None:
    assert _answer(_proof(iat=NOW - 300), max_age=300) == "accept"
    assert _answer(_proof(iat=NOW - 305), max_age=300) == "dpop_iat"
    assert _answer(_proof(iat=NOW - 16), max_age=10) == "dpop_iat"
    for wrong in ({"max_age": 301}, {"max_age": 0}, {"profile": dataclasses.replace(DPOP, leeway=31)}):
        with pytest.raises(ValueError, match="max_age"):
            _answer(_proof(), **wrong)
    for bad in ({"method": ""}, {"token_id": ""}, {"access_token": ""}, {"nonce": ""}, {"target_uri": "x"}):
        given: dict[str, Any] = {"method": "GET", "target_uri": URL, "token_id": "x", "now": NOW, **bad}
        with pytest.raises(AuthenticationError, match="proof_template"):
            dpop.build_claims(**given)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "x",
        "ftp://a/b",
        "https://",
        "https:///x",
        "https://a:0/x",
        "https://a:/x",
        "https://a:065/x",
        "https://u@a/x",
        "https://a/x y",
        "https://a/\u00e9",
        "https://a/%zz",
        "https://a/./x",
        "https://a/x/..",
        "https://a/%2E%2e/x",
        "https://a/x\n",
        "https://a/x#\n",
        "https://a/x?\n",
        "https://a\\b/x",
        "https://a/" + "x" * 8192,
    ],
)
def test_what_two_servers_could_read_in_two_ways_has_no_normal_form(uri: str) -> None:
    assert normal(uri) is None
    assert not same(uri, uri)
    with pytest.raises(AuthenticationError, match="request_malformed"):
        HttpRequest.of("GET", uri, [])


def test_targets_are_compared_in_their_normal_form_and_covered_by_whole_segments() -> None:
    assert normal("HTTPS://A.example:443?x") == "https://a.example/"
    assert normal("http://[::1]:8080/%7ex%2f") == "http://[::1]:8080/~x%2F"
    assert covers("https://a/mcp", "https://a/mcp")
    assert covers("https://a/mcp", "https://a/mcp/x?y")
    assert covers("https://a/", "https://a/x")
    assert covers("https://a/mcp/", "https://a/mcp/x")
    for other in (
        "https://a/mcp2",
        "https://a/",
        "https://b/mcp",
        "http://a/mcp",
        "https://a/MCP",
        "https://a/mcp%2fx",
    ):
        assert not covers("https://a/mcp", other)
