"""Chains of actors, scopes and details: what they are, and that less is less."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aims.authorization import authorization_details, scope
from aims.authorization.delegation import MAX_ACTORS, acting, read_actors, write_actors
from aims.authorization.errors import AuthorizationError

AGENTS = [f"spiffe://acme.example/agents/a{number}" for number in range(8)]
SUBJECT = "person:" + "0" * 26

chains = st.lists(st.sampled_from(AGENTS), max_size=MAX_ACTORS, unique=True).map(tuple)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


def _reason(call: Any, *arguments: Any) -> str:
    try:
        call(*arguments)
    except AuthorizationError as error:
        return error.reason
    return ""


@given(chains)
def test_a_chain_is_read_as_it_was_written(chain: tuple[str, ...]) -> None:
    assert read_actors(write_actors(chain)) == chain


@given(chains, st.sampled_from(AGENTS))
def test_whoever_acts_becomes_outermost_once(chain: tuple[str, ...], client: str) -> None:
    reason = _reason(acting, SUBJECT, chain, client)
    if chain[:1] == (client,):
        assert acting(SUBJECT, chain, client) == chain
    elif client in chain:
        assert reason == "actor_twice"
    elif len(chain) == MAX_ACTORS:
        assert reason == "chain_too_long"
    else:
        after = acting(SUBJECT, chain, client)
        assert after == (client, *chain)
        assert len(set(after)) == len(after) <= MAX_ACTORS
    # an agent that uses its own right is no actor, and does not get it back through others
    assert acting(client, (), client) == ()
    if chain and client not in chain:
        assert _reason(acting, client, chain, client) == "actor_twice"


@given(json_values)
def test_any_claim_is_a_chain_or_refused(claim: object) -> None:
    reason = _reason(read_actors, claim)
    assert claim is None or reason in {"chain_malformed", "chain_too_long", "actor_twice"}


def test_depth_is_bounded_before_it_costs() -> None:
    claim: Any = {"sub": AGENTS[0]}
    for _ in range(50_000):
        claim = {"sub": AGENTS[1], "act": claim}
    assert _reason(read_actors, claim) == "chain_too_long"


@given(st.sets(st.text(st.sampled_from("abc:./*"), min_size=1, max_size=8), min_size=1, max_size=10))
def test_scopes_are_a_set_with_one_spelling(words: set[str]) -> None:
    text = scope.write(words)
    assert scope.parse(text) == words
    assert scope.write(scope.parse(" ".join(sorted(words, reverse=True)))) == text


@pytest.mark.parametrize(
    "text",
    ["", " ", "a ", " a", "a  b", "a a", "a\tb", "a\n", 'a"b', "a\\b", "ä", "a" * 129, " ".join(map(str, range(65)))],
)
def test_what_is_no_scope(text: str) -> None:
    assert _reason(scope.parse, text) == "scope_malformed"
    assert scope.parse("a b") == {"a", "b"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "[1]",
        "[[]]",
        "null",
        '[{"type":""}]',
        '[{"type":1}]',
        '[{"typ":"a"}]',
        '[{"type":"a"},{"type":"a"}]',
        '[{"type":"a","type":"b"}]',
        '[{"type":"a"}]}',
        '[{"type":"a"}],"list":[{"type":"b"}]',
        '[{"type":"a"}],"x":1',
        '[{"type":"a"}] x',
        "[" + ",".join(f'{{"type":"a{n}"}}' for n in range(9)) + "]",
        '[{"type":"' + "a" * 5000 + '"}]',
        '[{"type":"a","n":99999999999999999999}]',
        "[" * 40 + "]" * 40,
    ],
)
def test_what_are_no_details(text: str) -> None:
    assert _reason(authorization_details.parse, text) == "details_malformed"
    assert authorization_details.parse('[{"type":"a"}, {"type":"a","n":1}]')


details = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["a", "b"])}, optional={"n": st.integers(0, 3)}),
    min_size=1,
    max_size=5,
    unique_by=repr,
)


@given(details, details)
def test_details_are_within_when_each_is_held(wanted: list[Any], held: list[Any]) -> None:
    inside = all(one in held for one in wanted)
    reason = _reason(authorization_details.require_within, tuple(wanted), tuple(held))
    assert reason == ("" if inside else "details_parent")
    assert _reason(authorization_details.require_within, tuple(wanted), ()) == "details_parent"
    assert _reason(authorization_details.require_within, (), tuple(held)) == ""
