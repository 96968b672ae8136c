"""Subject identifiers: the formats that are taken, and nothing that could be read as somebody else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aims.monitoring.errors import MonitoringError
from aims.monitoring.subjects import ComplexSubject, IssSubSubject, OpaqueSubject, Simple, UriSubject, build, canonical
from aims.monitoring.subjects import parse as parse_subject

URI = {"format": "uri", "uri": "spiffe://local.test/agents/a"}
USER = {"format": "iss_sub", "iss": "https://idp.example", "sub": "145234573"}
OPAQUE = {"format": "opaque", "id": "11112222333344445555"}

_text = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=40)
_simple: st.SearchStrategy[Simple] = st.one_of(
    st.builds(UriSubject, _text), st.builds(IssSubSubject, _text, _text), st.builds(OpaqueSubject, _text)
)


def test_the_formats_that_are_taken() -> None:
    assert parse_subject(URI) == UriSubject("spiffe://local.test/agents/a")
    assert parse_subject(USER) == IssSubSubject("https://idp.example", "145234573")
    assert parse_subject(OPAQUE) == OpaqueSubject("11112222333344445555")
    both = parse_subject({"format": "complex", "user": USER, "session": OPAQUE})
    assert isinstance(both, ComplexSubject)
    assert dict(both.members) == {"user": parse_subject(USER), "session": parse_subject(OPAQUE)}


@given(_simple)
def test_a_subject_survives_the_round_trip(subject: Simple) -> None:
    assert parse_subject(build(subject)) == subject
    whole = ComplexSubject({"user": subject})
    assert parse_subject(build(whole)) == whole


@given(_simple, _simple)
def test_two_subjects_have_one_canonical_text_only_if_they_are_equal(one: Simple, other: Simple) -> None:
    assert (canonical(one) == canonical(other)) == (one == other)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "spiffe://local.test/agents/a",
        {},
        {"uri": "spiffe://local.test/agents/a"},
        {"format": "URI", "uri": "x"},
        {"format": ["uri"], "uri": "x"},
        {"format": "email", "email": "alice@example.org"},
        {"format": "aliases", "identifiers": [URI]},
        {"format": "uri"},
        {"format": "uri", "uri": ""},
        {"format": "uri", "uri": 7},
        {"format": "uri", "uri": "a\n"},
        {"format": "uri", "uri": "a" * 2049},
        {**URI, "agent": URI},
        {**USER, "sub": None},
        {"format": "iss_sub", "iss": "x"},
        {"format": "complex"},
        {"format": "complex", "user": "x"},
        {"format": "complex", "user": {"format": "complex", "user": USER}},
        {"format": "complex", "user": {**USER, "more": 1}},
        {"format": "complex", **{f"m{n}": OPAQUE for n in range(9)}},
    ],
)
def test_everything_else_is_refused(value: Any) -> None:
    with pytest.raises(MonitoringError) as refusal:
        parse_subject(value)
    assert (refusal.value.reason, refusal.value.standard) == ("set_subject", "invalid_request")


def test_a_name_that_is_too_long_to_look_up_is_refused() -> None:
    with pytest.raises(MonitoringError) as refusal:
        canonical(OpaqueSubject("a" * 1100))
    assert refusal.value.reason == "set_subject"
