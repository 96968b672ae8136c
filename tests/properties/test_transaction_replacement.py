"""However often and by whomever a Txn-Token is replaced, its transaction never grows."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.properties.proof_material import TD
from tests.properties.transaction_material import EDGE, text_of, token, verifier

from aims.authorization.errors import AuthorizationError
from aims.authorization.model import Client, Memory
from aims.authorization.transactions.derivation import Derivation
from aims.authorization.transactions.keys import Held
from aims.authorization.transactions.request import TransactionRequest
from aims.authorization.transactions.transaction_token import TOKEN_TYPE, TransactionToken
from aims.identifiers import SpiffeId
from aims.policy import tables

ROWS = """
[[resources]]
name = "bank"
url = "https://bank.example/mcp"
peer = "/services/edge"
profile = "oauth-bound"
audiences = ["https://bank.example/mcp"]
scopes = ["pay"]

[[purposes]]
name = "pay"
purpose = "pay"
resource = "bank"
scopes = ["pay"]
lifetime = 60
single_use = true
replacers = ["/services/*"]

[[purposes.details]]
member = "amount"
type = "integer"
minimum = 0
maximum = 1000

[[purposes.details]]
member = "note"
type = "string"
max_length = 8
required = false

[[purposes]]
name = "look"
purpose = "look"
resource = "bank"
scopes = ["pay"]
lifetime = 60
single_use = false
"""
TABLES = tables.Tables(tables.parse(ROWS), TD.name)
HOPS = [str(SpiffeId.service(TD, f"hop-{number}")) for number in range(4)]
START = int(time.time())

details = st.none() | st.dictionaries(
    st.sampled_from(["amount", "note", "more"]), st.sampled_from([100, 101, True, "n", "m", ""]), max_size=3
)
steps = st.lists(
    st.tuples(st.sampled_from(HOPS), st.sampled_from(["pay", "look", "pay look"]), details, st.integers(0, 59)),
    min_size=1,
    max_size=12,
)


def replaced(text: str, hop: str, purpose: str, wanted: Any, now: int) -> TransactionToken:
    request = TransactionRequest(
        audience=TD.name,
        purpose=purpose,
        subject_token=text,
        subject_token_type=TOKEN_TYPE,
        details=wanted,
        context={"authn": hop[-5:]},
    )
    held = cast("Held", SimpleNamespace(verifier=verifier(), ends=START + 10**6))
    memory = cast("Memory", SimpleNamespace(stops={}, trust_domain=TD))
    client = cast("Client", SimpleNamespace(id=hop, spiffe_id=SpiffeId.parse_workload(hop)))
    return Derivation(client, None, request, TABLES, memory, now, 7).replaced(held, refuse_loops=False)[1]


@settings(max_examples=150)
@given(steps)
def test_a_transaction_only_narrows(path: list[tuple[str, str, Any, int]]) -> None:
    first = token(issued_at=START, began=START, expires=START + 60, details={"amount": 100, "note": "n"})
    value, now = first, START
    for hop, purpose, wanted, passed in path:
        now += passed
        try:
            after = replaced(text_of(value), hop, purpose, wanted, now)
        except AuthorizationError:
            continue
        assert (after.txn, after.subject, after.domain, after.actors) == (
            first.txn,
            first.subject,
            first.domain,
            first.actors,
        )
        assert (after.grant_id, after.fence.instance, after.began) == (first.grant_id, first.fence.instance, START)
        assert after.purposes <= value.purposes == first.purposes
        assert {(k, type(v), v) for k, v in after.details.items()} == {
            (k, type(v), v) for k, v in value.details.items()
        }
        assert after.requesters == (*value.requesters, value.requester)
        assert after.requester == hop
        assert value.expires > now
        assert now < after.expires <= START + 300
        assert len(after.requesters) <= 8
        assert verifier().read(text_of(after), now=now) == after
        value = after


def test_a_replacement_within_its_parent_is_accepted() -> None:
    first = token(issued_at=START, began=START, expires=START + 60, details={"amount": 100, "note": "n"})
    after = replaced(text_of(first), HOPS[0], "pay", {"amount": 100, "note": "n"}, START + 30)
    assert (after.requesters, after.details) == ((EDGE,), {"amount": 100, "note": "n"})
    assert after.fence.epoch == 7


def test_an_optional_fact_is_not_left_out() -> None:
    first = token(issued_at=START, began=START, expires=START + 60, details={"amount": 100, "note": "n"})
    with pytest.raises(AuthorizationError) as refused:
        replaced(text_of(first), HOPS[0], "pay", {"amount": 100}, START + 30)
    assert refused.value.code == "authorization.txn_changed"
