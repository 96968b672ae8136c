"""What an inner service asks before it acts."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties.proof_material import AGENT, NOW, PROOF, TD, WIT, http
from tests.properties.transaction_material import EDGE, FACTS, PAY, PERSON, URL, Inner, text_of, token, verifier

from aims.authentication import wpt
from aims.authentication.errors import AuthenticationError
from aims.authentication.liveness import StopLine
from aims.authentication.replay import MemoryWindow
from aims.authorization.errors import STATUS
from aims.authorization.transactions import field
from aims.authorization.transactions.errors import TransactionError
from aims.authorization.transactions.verification import Operation, TransactionVerifier, check_facts
from aims.identifiers import SpiffeId

OTHER = str(SpiffeId.service(TD, "other"))


async def test_a_good_caller_does_exactly_what_was_approved() -> None:
    inner = Inner()
    transaction = await inner.transactions.authorize(inner.caller(text_of()), PAY, FACTS)
    assert (transaction.token.subject, transaction.caller) == (PERSON, str(AGENT))
    assert len(transaction.digest) == 43


@pytest.mark.parametrize(
    "facts",
    [
        FACTS | {"amount": 101},
        FACTS | {"amount": "100"},
        FACTS | {"amount": 100.0},
        FACTS | {"amount": True},
        FACTS | {"account": "DE01"},
        FACTS | {"account": "DE00 "},
        FACTS | {"account": None},
        FACTS | {"more": 1},
        {"amount": 100},
        {},
    ],
)
async def test_a_body_that_differs_is_refused_while_token_proof_and_caller_are_good(facts: dict[str, Any]) -> None:
    inner = Inner()
    assert await inner.answer(text_of(), facts) == "txn_facts"
    assert STATUS[TransactionError.reasons["txn_facts"].standard] == 403
    assert await inner.answer(text_of()) == "accept", "what was refused has spent nothing"


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(-2, 2) | st.booleans() | st.text("01", max_size=1)),
    st.dictionaries(st.sampled_from("abcd"), st.integers(-2, 2) | st.booleans() | st.text("01", max_size=1)),
)
def test_facts_are_equal_member_for_member_and_type_for_type(one: dict[str, Any], other: dict[str, Any]) -> None:
    try:
        check_facts(one, other)
    except TransactionError:
        assert {(name, type(value), value) for name, value in one.items()} != {
            (name, type(value), value) for name, value in other.items()
        }
    else:
        assert one == other
        assert all(type(one[name]) is type(other[name]) for name in one)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        ({"purposes": frozenset({"read"})}, "txn_purpose"),
        ({"purposes": frozenset({"pay:all", "PAY"})}, "txn_purpose"),
        ({"callers": frozenset({EDGE})}, "txn_caller"),
        ({"callers": frozenset({str(AGENT) + "x"})}, "txn_caller"),
        ({"requesters": frozenset({OTHER})}, "txn_requester"),
        ({"requesters": frozenset({EDGE})}, "accept"),
    ],
)
async def test_purpose_caller_and_requester_must_fit(operation: dict[str, Any], reason: str) -> None:
    fields: dict[str, Any] = {"name": PAY.name, "purposes": PAY.purposes, "callers": PAY.callers}
    assert await Inner().answer(text_of(), operation=Operation(**(fields | operation))) == reason
    if reason != "accept":
        assert STATUS[TransactionError.reasons[reason].standard] == 403


async def test_everyone_in_the_chain_must_be_one_who_may_ask() -> None:
    text = text_of(token(requesters=(OTHER,)))
    only = Operation(name="a", purposes=PAY.purposes, callers=PAY.callers, requesters=frozenset({EDGE}))
    both = Operation(name="a", purposes=PAY.purposes, callers=PAY.callers, requesters=frozenset({EDGE, OTHER}))
    assert await Inner().answer(text, operation=only) == "txn_requester"
    assert await Inner().answer(text, operation=both) == "accept"


@pytest.mark.parametrize("missing", ["name", "purposes", "callers", "requesters"])
def test_an_operation_that_admits_by_emptiness_does_not_exist(missing: str) -> None:
    fields: dict[str, Any] = {"name": "a", "purposes": {"p"}, "callers": {"c"}, "requesters": {"r"}}
    fields = {name: value if name == "name" else frozenset(value) for name, value in fields.items()}
    with pytest.raises(ValueError, match="operation"):
        Operation(**(fields | {missing: "" if missing == "name" else frozenset()}))


async def test_no_token_an_unbelieved_one_and_a_stopped_one() -> None:
    inner = Inner()
    assert await inner.answer(None) == "txn_missing"
    assert await inner.answer(text_of(purp="pay")) == "txn_old"
    assert await inner.answer(text_of(exp=NOW - 6)) == "txn_expired"
    for kind, name in (("person", PERSON), ("grant", "g" * 26), ("agent", EDGE), ("agent", str(AGENT))):
        inner = Inner()
        inner.calls.stops.advance(1234, 1235, StopLine(kind, name, 1235, blocked=False))
        inner.calls.stops.heartbeat(1235)
        if name == str(AGENT):
            with pytest.raises(AuthenticationError):
                inner.caller(text_of())
        else:
            assert await inner.answer(text_of()) == "stopped"


async def test_a_stop_is_seen_before_and_after_the_window_is_asked() -> None:
    free = Operation(name="payments.read", purposes=PAY.purposes, callers=PAY.callers, single_use=False)
    inner, text = Inner(), text_of()
    caller = inner.caller(text)

    def stop() -> None:
        inner.calls.stops.advance(1234, 1235, StopLine("grant", "g" * 26, 1235, blocked=False))
        inner.calls.stops.heartbeat(1235)

    class Slow:
        """A window that answers only after a stop has arrived."""

        complete_since = 0.0

        async def claim(self, ids: list[bytes]) -> list[bool]:
            stop()
            return await inner.calls.window.claim(ids)

    slow = TransactionVerifier(verifier(), inner.calls.stops, Slow(), inner.clock)
    assert slow.examine(caller, PAY, FACTS).token.txn == "t" * 22
    with pytest.raises(AuthenticationError) as caught:
        await slow.authorize(caller, PAY, FACTS)
    assert caught.value.reason == "stopped"
    assert await inner.answer(text, operation=free) == "stopped"


async def test_a_single_use_happens_once_however_many_ask() -> None:
    inner, text = Inner(), text_of()
    answers = await asyncio.gather(*(inner.answer(text) for _ in range(50)))
    assert Counter(answers) == {"accept": 1, "txn_used": 49}
    other = Operation(name="payments.notify", purposes=PAY.purposes, callers=PAY.callers)
    assert await inner.answer(text, operation=other) == "accept", "each operation once"
    free = Operation(name="payments.read", purposes=PAY.purposes, callers=PAY.callers, single_use=False)
    assert [await inner.answer(text, operation=free) for _ in range(3)] == ["accept"] * 3


async def test_a_replacement_is_the_same_transaction() -> None:
    inner = Inner()
    first = token()
    assert await inner.answer(text_of(first)) == "accept"
    inner.clock.at = NOW + 40
    inner.calls.stops.heartbeat(1234)
    replaced = token(requesters=(EDGE,), requester=OTHER, issued_at=NOW + 40, expires=NOW + 100)
    assert await inner.answer(text_of(replaced)) == "txn_used"


async def test_a_window_that_just_started_believes_only_what_began_later() -> None:
    inner, fresh = Inner(), Inner()
    assert isinstance(fresh.calls.window, MemoryWindow)
    fresh.calls.window._since = NOW - 1
    assert await fresh.answer(text_of()) == "window_starting"
    assert await inner.answer(text_of()) == "accept"


def test_the_proof_binds_the_exact_token() -> None:
    inner, text, other = Inner(), text_of(), text_of(token(txn="u" * 22))
    claims = wpt.build_claims(WIT, URL, token_id="id", now=NOW, txn_token=text)
    proof = f"WPT {wpt.issue_now(claims, PROOF)}"
    assert inner.calls.answer(http(proof, more=[("Txn-Token", text)])) == "accept"
    assert inner.calls.answer(http(proof, more=[("Txn-Token", other)])) == "tth_mismatch"
    assert inner.calls.answer(http(proof)) == "tth_mismatch"
    bare = f"WPT {wpt.issue_now(wpt.build_claims(WIT, URL, token_id='id', now=NOW), PROOF)}"
    assert inner.calls.answer(http(bare, more=[("Txn-Token", text)])) == "tth_missing"


def test_a_txn_token_authenticates_nobody_under_any_scheme() -> None:
    inner, text = Inner(), text_of()
    for authorization in (f"Bearer {text}", f"WPT {text}", f"DPoP {text}"):
        assert inner.calls.answer(http(authorization)) != "accept"
    assert inner.calls.answer(http(f"Bearer {text}", more=[("Txn-Token", text)])) == "authorization_scheme"


def test_two_tokens_are_refused_whatever_the_proof_covers() -> None:
    text = text_of()
    assert field.of_request(http()) is None
    assert field.of_request(http(more=[("txn-TOKEN", text)])) == text
    for more in (
        [("Txn-Token", text), ("Txn-Token", text)],
        [("Txn-Token", f"{text},{text}")],
        [("Txn-Token", f"{text}, {text}")],
        [("Txn-Token", "")],
        [("Txn-Token", f"Bearer {text}")],
        [("Txn-Token", text + ".x")],
    ):
        with pytest.raises(TransactionError) as caught:
            field.of_request(http(more=more))
        assert (caught.value.reason, STATUS.get(caught.value.standard, 400)) == ("txn_header", 400)
