"""Selectors: one text each, bounded, and an entry matches only what has all of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aims.attestation import AttestationError, Selector, matches, parse_selectors

TYPES = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)
VALUES = st.text(min_size=1, max_size=200).filter(str.isprintable)
SELECTORS = st.builds(Selector, TYPES, VALUES)


@given(SELECTORS)
def test_a_selector_survives_its_text(selector: Selector) -> None:
    assert Selector.parse(str(selector)) == selector


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix",
        ":uid",
        "unix:",
        "Unix:uid:0",
        "unix :uid:0",
        " unix:uid:0",
        "unix\n:uid",
        "1unix:uid",
        "unix:uid:0\n",
        "unix:a\0b",
        "unix:a\u202eb",
        "unix:a\udc80b",
        "u" * 33 + ":x",
        "unix:" + "x" * 1025,
        "unix:" + "é" * 513,
    ],
)
def test_other_text_is_no_selector(text: str) -> None:
    with pytest.raises(AttestationError) as caught:
        Selector.parse(text)
    assert caught.value.code == "attestation.selector_malformed"


@given(st.frozensets(SELECTORS, min_size=1, max_size=6), st.frozensets(SELECTORS, max_size=6))
def test_an_entry_matches_exactly_its_supersets(entry: frozenset[Selector], other: frozenset[Selector]) -> None:
    assert matches(entry, entry | other)
    for selector in entry:
        assert not matches(entry, (entry | other) - {selector})


def test_empty_long_and_doubled_lists_are_refused() -> None:
    with pytest.raises(AttestationError, match="selectors_empty"):
        matches(frozenset(), frozenset({Selector("unix", "uid:0")}))
    with pytest.raises(AttestationError, match="selectors_empty"):
        parse_selectors([])
    with pytest.raises(AttestationError, match="selector_duplicate"):
        parse_selectors(["unix:uid:0", "unix:uid:0"])
    assert len(parse_selectors(f"unix:uid:{uid}" for uid in range(64))) == 64
    with pytest.raises(AttestationError, match="selectors_too_many"):
        parse_selectors(f"unix:uid:{uid}" for uid in range(65))
