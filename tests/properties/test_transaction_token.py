"""The Txn-Token as a kind of token: what it holds, what is refused, and that no other kind passes for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties.hostile import LocalKey, hostile_tokens
from tests.properties.proof_material import AGENT, NOW, TD, WIT, proof_text
from tests.properties.proof_material import ISSUER as WIT_KEY
from tests.properties.transaction_material import ISSUER, KEY, PERSON, text_of, token, verifier

from aims.authorization.access_token import HEADER as ACCESS_HEADER
from aims.authorization.access_token import AccessToken, AccessTokenVerifier, Confirmation
from aims.authorization.errors import STATUS, AuthorizationError
from aims.authorization.transactions.errors import TransactionError
from aims.authorization.transactions.transaction_token import (
    HEADER,
    MAX_LIFETIME,
    MAX_REPLACEMENTS,
    PROFILE,
    TransactionTokenVerifier,
)
from aims.credentials import jwt_svid, wit
from aims.credentials.errors import CredentialError
from aims.credentials.model import Fence
from aims.identifiers import SpiffeId, TrustDomain
from aims.jose import JoseError, KeySet, open_token, sign_now

CHAIN = [str(SpiffeId.service(TD, f"hop-{number}")) for number in range(MAX_REPLACEMENTS + 1)]


def refusal(text: str, reader: TransactionTokenVerifier | None = None, now: float = NOW) -> str:
    try:
        (reader or verifier()).read(text, now=now)
    except TransactionError as error:
        # an unbelieved token is 401, or the caller would take it for a request that may be repeated
        return error.reason if STATUS.get(error.standard, 400) == 401 else f"{error.reason} is not 401"
    return "accept"


def test_hostile_tokens_get_their_reason() -> None:
    for case in hostile_tokens(PROFILE, HEADER, token().claims(), KEY, now=NOW, audience=TD.name):
        case.check()


@given(
    life=st.integers(1, MAX_LIFETIME),
    requesters=st.lists(st.sampled_from(CHAIN), max_size=MAX_REPLACEMENTS, unique=True),
    details=st.dictionaries(
        st.sampled_from(["amount", "note", "fast"]), st.integers(0, 2**53 - 1) | st.booleans() | st.text(max_size=20)
    ),
    epoch=st.integers(0, 2**53 - 1),
    acts=st.booleans(),
)
def test_what_is_written_is_what_is_read(
    life: int, requesters: list[str], details: dict[str, Any], epoch: int, acts: bool
) -> None:
    value = token(
        expires=NOW + life,
        requesters=tuple(requesters),
        details=details,
        fence=Fence("node-1:" + "a" * 26, epoch),
        actors=(str(AGENT),) if acts else (),
    )
    assert verifier().read(text_of(value), now=NOW) == value


def test_every_party_of_a_token_can_end_it() -> None:
    value = token(requesters=tuple(CHAIN[:2]))
    kinds = {(name.kind, name.id) for name in value.names}
    assert kinds == {
        ("person", PERSON),
        ("agent", str(AGENT)),
        ("agent", value.requester),
        ("agent", CHAIN[0]),
        ("agent", CHAIN[1]),
        ("grant", "g" * 26),
        ("instance", "node-1:" + "a" * 26),
        ("node", "node-1"),
    }


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"aud": "other.example"}, "txn_audience"),
        ({"aud": [TD.name]}, "txn_audience"),
        ({"aud": TD.uri}, "txn_audience"),
        ({"iss": ISSUER + "/"}, "txn_issuer"),
        ({"iss": "https://localhost:8440"}, "txn_issuer"),
        ({"iss": ...}, "accept"),
        ({"exp": NOW - 6}, "txn_expired"),
        ({"iat": NOW + 6}, "txn_expired"),
        ({"exp": NOW + MAX_LIFETIME + 1}, "txn_lifetime"),
        ({"iat": NOW - 250, "exp": NOW + 60}, "txn_lifetime"),
        ({"scope": ["pay"]}, "txn_claims"),
        ({"scope": "pay  pay"}, "txn_claims"),
        ({"req_wl": [CHAIN[0]]}, "txn_claims"),
        ({"req_wl": f"{CHAIN[0]},{CHAIN[1]}"}, "txn_claims"),
        ({"req_wl": TD.uri}, "txn_claims"),
        ({"tctx": [1]}, "txn_claims"),
        ({"rctx": "x"}, "txn_claims"),
        ({"sub": "ada@example.org"}, "txn_claims"),
        ({"sub": str(AGENT)}, "txn_claims"),
        ({"act": {"sub": PERSON}}, "txn_claims"),
        ({"act": {"sub": str(AGENT), "role": "admin"}}, "txn_claims"),
        ({"instance": ...}, "txn_claims"),
        ({"epoch": ...}, "txn_claims"),
        ({"epoch": -1}, "txn_claims"),
        ({"grant_id": ...}, "txn_claims"),
        ({"txn": ...}, "txn_claims"),
        ({"txn": "t" * 129}, "txn_claims"),
        ({"req_wl_chain": CHAIN[:1]}, "txn_claims"),
        ({"txn_iat": NOW}, "txn_claims"),
        ({"req_wl_chain": CHAIN[:1], "txn_iat": NOW + 1}, "txn_claims"),
        ({"req_wl_chain": CHAIN, "txn_iat": NOW}, "txn_lifetime"),
        ({"req_wl_chain": CHAIN[:1], "txn_iat": NOW - MAX_LIFETIME + 59}, "txn_lifetime"),
        ({"req_wl_chain": CHAIN[:1], "txn_iat": NOW - MAX_LIFETIME + 60}, "accept"),
        # the shapes of earlier drafts are refused, never translated
        ({"purp": "pay"}, "txn_old"),
        ({"azd": {"amount": 1}}, "txn_old"),
        ({"scope": ..., "purp": "pay", "tctx": ..., "azd": {}}, "txn_old"),
        ({"actor": {"sub": "x"}}, "txn_old"),
        ({"principal": {"sub": "x"}}, "txn_old"),
    ],
)
def test_claims_that_a_token_may_not_have(claims: dict[str, Any], reason: str) -> None:
    assert refusal(text_of(**claims)) == reason


def test_headers_keys_and_signatures() -> None:
    claims, stranger = token().claims(), LocalKey.new("ES256", "txn-1")
    for typ in ("JWT", "at+jwt", "txn_token", "wit+jwt", "wpt+jwt", "dpop+jwt", "secevent+jwt"):
        assert refusal(sign_now({"typ": typ}, claims, KEY)) == "txn_typ"
    assert refusal(sign_now({"typ": "application/TxnToken+JWT"}, claims, KEY)) == "accept"
    assert refusal(sign_now(HEADER, claims, LocalKey.new("ES256", "unknown"))) == "txn_signature"
    assert refusal(sign_now(HEADER, claims, stranger)) == "txn_signature"
    assert refusal(sign_now(HEADER, claims, KEY, with_kid=False)) == "txn_malformed"
    assert (
        refusal(text_of(), TransactionTokenVerifier(ISSUER, TrustDomain("other.example"), KeySet([KEY.verification])))
        == "txn_audience"
    )
    assert refusal(text_of(), TransactionTokenVerifier(ISSUER, TD, KeySet())) == "txn_signature"


@pytest.mark.parametrize(
    "changes",
    [
        {"purposes": frozenset()},
        {"expires": NOW},
        {"expires": NOW + MAX_LIFETIME + 1},
        {"began": NOW - MAX_LIFETIME + 59},
        {"issued_at": NOW + 0.5},
        {"requesters": tuple(CHAIN)},
    ],
)
def test_a_token_that_breaks_its_own_rules_is_not_made(changes: dict[str, Any]) -> None:
    with pytest.raises(AuthorizationError) as caught:
        token(**changes).claims()
    assert caught.value.reason == "template"


def test_no_other_kind_of_token_passes_for_it_nor_the_reverse() -> None:
    # one key for everything: what tells kinds apart must hold where keys do not
    keys = KeySet([KEY.verification])
    access = AccessToken(
        issuer=ISSUER,
        subject=str(AGENT),
        client_id=str(AGENT),
        audience=TD.name,
        scopes=frozenset({"pay"}),
        issued_at=NOW,
        expires=NOW + 60,
        token_id="j",
        grant_id="g",
        fence=Fence("node-1:" + "a" * 26, 1),
        confirmation=Confirmation("jkt", "A" * 43),
    )
    for text in (sign_now(ACCESS_HEADER, access.claims() | token().claims(), KEY), WIT, proof_text()):
        assert refusal(text) == "txn_typ"
    mine = text_of(client_id=str(AGENT), jti="j", scope="pay")
    for accept in (
        lambda: AccessTokenVerifier(ISSUER, keys).read(mine, now=NOW),
        lambda: wit.validate(mine, {TD.uri: keys}, now=NOW, own=TD),
        lambda: jwt_svid.validate(mine, {TD: keys}, audience=TD.name, now=NOW, own=TD),
        lambda: open_token(mine, wit.WIT_SVID, keys, now=NOW),
    ):
        with pytest.raises((AuthorizationError, CredentialError, JoseError)):
            accept()
    # and the keys of other purposes are not known here
    assert refusal(sign_now(HEADER, token().claims(), WIT_KEY)) == "txn_signature"
