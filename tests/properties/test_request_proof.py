"""A whole request under a call profile: what a verifier believes, and what any change to a good request costs."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.properties.hostile import P256_ORDER, LocalKey, b64
from tests.properties.proof_material import (
    AGENT,
    ANCHORS,
    FENCE,
    ISSUER,
    NOW,
    PROOF,
    TD,
    TXN,
    URL,
    WIT,
    FixedClock,
    World,
    http,
    proof_claims,
    proof_text,
    rules,
    wit_text,
    wit_value,
)

from aims.authentication import dpop
from aims.authentication.errors import CONSEQUENCES, AuthenticationError
from aims.authentication.liveness import StopLine
from aims.authentication.replay import MAX_LIFE, MemoryWindow
from aims.authentication.request import MAX_FIELDS, HttpRequest
from aims.authentication.verified_wit import WitVerifier
from aims.authentication.wpt import token_hash
from aims.credentials import jwt_svid, wit
from aims.credentials.errors import CredentialError
from aims.identifiers import SpiffeId, TrustDomain
from aims.jose import KeySet, sign_now


def _good(**changes: Any) -> HttpRequest:
    return http(f"WPT {proof_text(**changes)}")


async def test_a_good_request_gives_its_caller_once() -> None:
    world = World()
    text = proof_text(tth=token_hash(TXN))
    request = http(f"WPT {text}", more=[("Txn-Token", TXN)])
    caller = await world.door.authenticate(request)
    assert (str(caller.agent), caller.instance, caller.epoch) == (str(AGENT), FENCE.instance, FENCE.epoch)
    assert (caller.thumbprint, caller.profile) == (wit_value().thumbprint, "wimse-method-bound")
    assert (caller.txn_token, caller.expires, caller.issued_at) == (TXN, NOW + 3600, NOW)
    assert {name.kind for name in caller.names} == {"agent", "instance", "node"}
    assert all(secret not in repr(caller) + repr(request) for secret in (TXN, text, WIT))
    with pytest.raises(AuthenticationError, match=r"authentication\.wpt_replay"):
        await world.door.authenticate(request)


async def test_sixteen_equal_requests_at_once_give_one_caller() -> None:
    world = World()
    for round_ in range(5):
        request = _good(jti=f"race-{round_}")
        answers = await asyncio.gather(*(world.spend(request) for _ in range(16)))
        assert sorted(answers) == ["accept"] + ["wpt_replay"] * 15


async def test_a_malleated_signature_is_the_same_proof() -> None:
    world = World()
    head, body, tail = proof_text().split(".")
    raw = base64.urlsafe_b64decode(tail + "==")
    twin = raw[:32] + (P256_ORDER - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    assert await world.spend(http(f"WPT {head}.{body}.{tail}")) == "accept"
    assert await world.spend(http(f"WPT {head}.{body}.{b64(twin)}")) == "wpt_replay"


async def test_a_refused_request_spends_nothing() -> None:
    world = World()
    assert await world.spend(http(f"WPT {proof_text(htm='GET')}")) == "wpt_htm"
    world.stops.advance(1234, 1235, StopLine("node", "node-2", 1235, blocked=True))
    assert await world.spend(_good()) == "accept"
    assert await world.spend(_good()) == "wpt_replay"


WIT_REFUSALS: list[tuple[str, str | None]] = [
    ("wit_header_count", None),
    ("wit_malformed", ""),
    ("wit_malformed", f"{WIT}, {WIT}"),
    ("wit_malformed", f" {WIT}"),
    ("wit_malformed", WIT + "."),
    ("wit_sub", wit_text(sub="https://acme.example/a")),
    ("wit_no_trust_anchor", wit_text(sub="spiffe://other.example/agents/researcher")),
    ("wit_no_trust_anchor", wit_text(sub="wimse://acme.example/agents/researcher")),
    ("wit_no_trust_anchor", wit_text(LocalKey(ISSUER.private, "ES256", "wit-2"))),
    ("wit_typ", sign_now({"typ": "JWT"}, {"sub": str(AGENT), "exp": NOW + 9}, ISSUER)),
    ("wit_alg", sign_now({"typ": "wit+jwt"}, {"sub": str(AGENT), "exp": NOW + 9}, LocalKey.new("Ed25519", "wit-1"))),
    ("wit_signature", wit_text(LocalKey.new("ES256", "wit-1"))),
    ("wit_missing", wit_text(exp=...)),
    ("wit_missing", wit_text(epoch=...)),
    ("wit_missing", wit_text(instance=...)),
    ("wit_expired", wit_text(exp=NOW - 5)),
    ("wit_not_yet_valid", wit_text(nbf=NOW + 6)),
    ("wit_lifetime", wit_text(exp=NOW + 90_000)),
    ("wit_cnf", wit_text(cnf={})),
]


@pytest.mark.parametrize(("reason", "text"), WIT_REFUSALS, ids=range(len(WIT_REFUSALS)))
def test_each_fault_of_a_wit_is_named_and_answered_with_400(reason: str, text: str | None) -> None:
    world = World()
    wth = token_hash(WIT if text is None else text)
    assert world.answer(http(f"WPT {proof_text(wth=wth)}", wit=text)) == reason
    assert world.answer(_good()) == "accept"
    assert (CONSEQUENCES[reason].status, CONSEQUENCES[reason].challenge) == (400, "")
    assert reason in CredentialError.reasons


def test_the_wit_comes_first_and_there_is_one() -> None:
    world = World()
    twice = [("workload-identity-token", WIT)]
    assert world.answer(http("Bearer x", more=twice)) == "wit_header_count"
    assert world.answer(http(None, wit=wit_text(exp=NOW - 5))) == "wit_expired"
    assert world.answer(http("Bearer x")) == "authorization_scheme"
    assert world.answer(http(None)) == "authorization_count"


def test_each_reason_has_one_consequence_and_proof_faults_challenge() -> None:
    assert set(CONSEQUENCES) == set(AuthenticationError.reasons)
    for name in ("authorization_count", "wpt_replay", "wpt_signature", "wth_mismatch", "tth_missing", "oth_unknown"):
        assert (CONSEQUENCES[name].status, CONSEQUENCES[name].challenge) == (401, "WPT")
    for name in ("state_unknown", "window_starting", "window_unavailable"):
        assert CONSEQUENCES[name].status == 503


def test_a_target_outside_of_the_resource_is_refused_before_anything_is_read() -> None:
    world = World()
    for uri in ("https://tool.example/mcp2", "https://tool.example/", "https://other.example/mcp"):
        assert world.answer(http(f"WPT {proof_text(aud=uri, htu=uri)}", uri=uri)) == "target_outside"
    below = URL + "/x?y=1"
    assert world.answer(http(f"WPT {proof_text(aud=URL + '/x', htu=below)}", uri=below)) == "accept"
    assert world.answer(http(f"WPT {proof_text(aud='urn:tool', htu=below)}", uri=below)) == "accept"
    assert world.answer(http(f"WPT {proof_text(aud=URL, htu=below)}", uri=below)) == "wpt_aud"


async def test_a_stop_is_refused_before_the_proof_is_spent_and_again_after_the_wait() -> None:
    for kind, id_ in (("agent", str(AGENT)), ("instance", FENCE.instance), ("node", "node-1")):
        world = World()
        world.stops.advance(1234, 1235, StopLine(kind, id_, 1235, blocked=False))
        world.stops.heartbeat(1235)
        assert await world.spend(_good()) == "stopped", kind
        assert await world.spend(http(f"WPT {proof_text(wth=token_hash(OLDER))}", wit=OLDER)) == "stopped"
        newer = wit_text(epoch=1235)
        assert await world.spend(http(f"WPT {proof_text(wth=token_hash(newer))}", wit=newer)) == "accept"

    class Slow(MemoryWindow):
        async def claim(self, ids: list[bytes]) -> list[bool]:
            world.stops.advance(1234, 1235, StopLine("agent", str(AGENT), 1235, blocked=True))
            return await super().claim(ids)

    clock = FixedClock(NOW - 10_000)
    world = World(window=Slow(clock))
    clock.at = NOW
    assert await world.spend(_good()) == "stopped"


OLDER = wit_text(epoch=3)


async def test_a_blind_enforcement_point_refuses() -> None:
    world = World()
    world.stops.lost()
    assert await world.spend(_good()) == "state_unknown"
    world.stops.full(1234, ())
    world.stops.heartbeat(1234)
    assert await world.spend(_good()) == "accept"
    world.clock.at = NOW + 10.5
    assert await world.spend(_good(jti="id-2")) == "state_unknown"


async def test_a_young_window_refuses_older_proofs_and_an_absent_one_everything() -> None:
    clock = FixedClock()
    young = World(window=MemoryWindow(clock))
    assert await young.spend(_good()) == "window_starting"
    assert await young.spend(_good(iat=...)) == "window_starting"
    clock.at = young.clock.at = NOW + 6
    young.stops.heartbeat(1234)
    assert await young.spend(_good(iat=NOW + 6)) == "accept"
    settled = World(window=MemoryWindow(FixedClock(NOW - MAX_LIFE)))
    assert settled.answer(_good(iat=...)) == "accept"

    class Away(MemoryWindow):
        async def claim(self, ids: list[bytes]) -> list[bool]:
            raise AuthenticationError("window_unavailable", f"{len(ids)} ids")

    away = World(window=Away(FixedClock(NOW - 10_000)))
    assert await away.spend(_good()) == "window_unavailable"


def test_foreign_workloads_are_believed_without_a_fence_and_never_as_ours() -> None:
    foreign = TrustDomain("other.example")
    world = World()
    world.wits.trust({**ANCHORS, foreign.uri: KeySet([ISSUER.verification])})
    text = wit_text(sub=str(SpiffeId.agent(foreign, "a")), epoch=..., instance=...)
    request = http(f"WPT {proof_text(wth=token_hash(text))}", wit=text)
    caller = world.door.prove(request)
    assert (caller.instance, caller.epoch) == (None, None)
    assert [name.kind for name in caller.names] == ["agent"]


def test_a_known_wit_is_judged_again_when_it_expires_or_its_anchors_change() -> None:
    wits = WitVerifier(ANCHORS, own=TD, capacity=2)
    first = wits.verify(WIT, now=NOW)
    assert wits.verify(WIT, now=NOW + 1) is first
    assert wits.verify(WIT, now=NOW - 1) is not first
    assert wits.verify(WIT, now=NOW + 3604).subject == first.subject
    with pytest.raises(AuthenticationError, match="wit_expired"):
        wits.verify(WIT, now=NOW + 3605)
    with pytest.raises(AuthenticationError, match="wit_signature"):
        wits.verify(WIT[:-2] + ("AA" if not WIT.endswith("AA") else "BA"), now=NOW)
    kept = wits.verify(WIT, now=NOW)
    for number in range(2):
        wits.verify(wit_text(jti=str(number)), now=NOW)
    assert wits.verify(WIT, now=NOW) is not kept
    wits.trust({TD.uri: KeySet([LocalKey.new("ES256", "wit-1").verification])})
    with pytest.raises(AuthenticationError, match="wit_signature"):
        wits.verify(WIT, now=NOW)
    wits.trust({})
    with pytest.raises(AuthenticationError, match="wit_no_trust_anchor"):
        wits.verify(WIT, now=NOW)
    nothing = WitVerifier(ANCHORS, own=TD, capacity=0)
    assert nothing.verify(WIT, now=NOW) is not nothing.verify(WIT, now=NOW)


def _kinds() -> dict[str, str]:
    public, jkt = PROOF.private.public_key(), wit_value().thumbprint
    svid = jwt_svid.build_claims(
        AGENT, [URL], issued_at=NOW, expires=NOW + 300, issuer="https://a.example", fence=FENCE, jkt=jkt
    )
    access: dict[str, Any] = {**svid, "client_id": str(AGENT), "jti": "x"}
    workload = wit.build_claims(AGENT, public, "ES256", issued_at=NOW, expires=NOW + 3600, fence=FENCE)
    bound = dpop.build_claims("POST", URL, token_id="x", now=NOW)

    def issued(typ: str, claims: dict[str, Any]) -> str:
        return sign_now({"typ": typ}, claims, ISSUER)

    def proved(typ: str, claims: dict[str, Any]) -> str:
        return sign_now({"typ": typ}, claims, PROOF, with_kid=False)

    return {
        "wit": WIT,
        "wpt": proof_text(),
        "dpop": dpop.issue_now(bound, PROOF, public),
        "jwt-svid": issued("JWT", svid),
        "access token": issued("at+jwt", access),
        "txn-token": issued("txntoken+jwt", access),
        "set": issued("secevent+jwt", access),
        # the most that another kind can share with the right one: all claims, and the right key
        "wit as jwt": issued("JWT", workload),
        "wpt as jwt": proved("JWT", proof_claims()),
        "wpt as dpop": proved("dpop+jwt", proof_claims()),
        "dpop as wpt": proved("wpt+jwt", bound),
        "pop": proved("oauth-client-attestation-pop+jwt", proof_claims()),
    }


KINDS = _kinds()


def _dpop_answer(request: HttpRequest) -> str:
    try:
        dpop.verify_proof(request, now=NOW)
    except AuthenticationError as error:
        return error.reason
    return "accept"


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_of_one_kind_is_none_of_another(kind: str) -> None:
    world, text = World(), KINDS[kind]
    as_wit = world.answer(http(f"WPT {proof_text(wth=token_hash(text))}", wit=text))
    assert (as_wit == "accept") == (kind == "wit"), as_wit
    as_wpt = world.answer(http(f"WPT {text}"))
    assert (as_wpt == "accept") == (kind == "wpt"), as_wpt
    if kind in {"wpt as jwt", "wpt as dpop", "pop"}:
        assert as_wpt == "wpt_typ"
    if kind == "wit as jwt":
        assert as_wit == "wit_typ"
    as_dpop = _dpop_answer(HttpRequest.of("POST", URL, [("DPoP", text)]))
    assert (as_dpop == "accept") == (kind == "dpop"), as_dpop
    for scheme in ("Bearer", "DPoP"):
        assert world.answer(http(f"{scheme} {text}")) == "authorization_scheme"


FIELDS = [
    ("Workload-Identity-Token", WIT),
    ("Txn-Token", TXN),
    ("Authorization", f"WPT {proof_text(tth=token_hash(TXN))}"),
]
WORLD = World()


def _answer_of(fields: list[tuple[str, str]]) -> str:
    try:
        return WORLD.answer(_request(fields))
    except AuthenticationError as error:
        return error.reason


def _request(fields: list[tuple[str, str]], method: str = "POST", uri: str = URL) -> HttpRequest:
    return HttpRequest.of(method, uri, fields)


@settings(max_examples=300)
@given(which=st.integers(0, 2), data=st.data())
def test_no_single_bit_of_a_covered_field_can_change(which: int, data: st.DataObject) -> None:
    assert WORLD.answer(_request(FIELDS)) == "accept"
    name, value = FIELDS[which]
    octets = bytearray(value.encode("ascii"))
    bit = data.draw(st.integers(0, len(octets) * 8 - 1))
    octets[bit // 8] ^= 1 << bit % 8
    fields = [*FIELDS]
    fields[which] = (name, octets.decode("latin-1"))
    same = which == 2 and fields[2][1].lower().startswith("wpt ") and fields[2][1][3:] == value[3:]
    assert (_answer_of(fields) == "accept") == same, (bit, octets)


@settings(max_examples=100)
@given(
    method=st.sampled_from(["GET", "PUT", "post", "POST2"]),
    uri=st.sampled_from(["https://tool.example/mcp/x", "http://tool.example/mcp", "https://tool.example:444/mcp"]),
    gone=st.integers(0, 2),
    twice=st.integers(0, 2),
)
def test_no_method_target_or_field_can_be_exchanged_dropped_or_doubled(
    method: str, uri: str, gone: int, twice: int
) -> None:
    assert WORLD.answer(_request(FIELDS, uri=URL + "?unprotected")) == "accept"
    assert WORLD.answer(_request(FIELDS, method=method)) == "wpt_htm"
    assert WORLD.answer(_request(FIELDS, uri=uri)) in {"target_outside", "wpt_aud"}
    assert WORLD.answer(_request([field for at, field in enumerate(FIELDS) if at != gone])) != "accept"
    assert WORLD.answer(_request([*FIELDS, FIELDS[twice]])) != "accept"
    assert WORLD.answer(_request([(FIELDS[twice][0].upper(), "x"), *FIELDS])) != "accept"


@given(changes=st.dictionaries(st.sampled_from(["aud", "exp", "wth", "jti", "tth", "htm", "htu"]), st.sampled_from(
    [..., None, "", 0, 1.5, True, [], {}, "x", ["x"]]
), min_size=1))  # fmt: skip
def test_no_signed_proof_with_a_wrong_claim_passes(changes: dict[str, Any]) -> None:
    answer = WORLD.answer(http(f"WPT {proof_text(**{'tth': token_hash(TXN), **changes})}", more=[("Txn-Token", TXN)]))
    fine = changes == {"jti": "x"}
    assert (answer == "accept") == fine


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("", []),
        ("PO ST", []),
        ("P" * 33, []),
        ("GET", [("", "x")]),
        ("GET", [("a b", "x")]),
        ("GET", [("a:", "x")]),
        ("GET", [("a\n", "x")]),
        ("GET", [("a", "x\r\nAuthorization: WPT x")]),
        ("GET", [("a", "x\0")]),
        ("GET", [("a", "\u0100")]),
        ("GET", [("a" * 257, "x")]),
        ("GET", [("a", "x" * 65_537)]),
        ("GET", [("a", "x")] * (MAX_FIELDS + 1)),
    ],
    ids=range(13),
)
def test_a_request_that_no_http_library_should_deliver_does_not_exist(
    method: str, headers: list[tuple[str | bytes, str | bytes]]
) -> None:
    with pytest.raises(AuthenticationError, match="request_malformed"):
        HttpRequest.of(method, URL, headers)


def test_octets_and_text_make_the_same_request_and_names_have_no_case() -> None:
    text = HttpRequest.of("GET", URL, [("X-A", "\u00e9 v"), ("x-a", "w")], body_sha256=b"x" * 32)
    octets = HttpRequest.of("GET", URL, [(b"x-A", b"\xe9 v"), (b"X-a", b"w")], body_sha256=b"x" * 32)
    assert text == octets
    assert text.all("x-a") == ["\u00e9 v", "w"]
    assert HttpRequest.of("GET", URL, [("a", "x")] * MAX_FIELDS).fields[-1] == ("a", "x")
    with pytest.raises(AuthenticationError, match="request_malformed"):
        HttpRequest.of("GET", URL, [], body_sha256=b"x")


def test_call_rules_are_of_a_wimse_profile_and_bounded() -> None:
    assert World(rules("wimse")).answer(_good(htm=..., htu=...)) == "accept"
    assert World().answer(_good(htm=..., htu=...)) == "wpt_htm"
    for wrong in ({"profile": "bearer"}, {"url": "https://a/../b"}, {"leeway": 31}, {"longest": 601}):
        with pytest.raises(ValueError, match=r"profile|url|leeway|longest"):
            rules(**wrong)
    assert dataclasses.replace(rules(), longest=60).proof.longest == 60
