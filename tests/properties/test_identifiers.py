"""Identifiers: vectors of the drafts, round trips, and refusal of everything else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.properties.strategies import segments, spiffe_id_texts, trust_domain_names

from aims.identifiers import IdentifierError, SpiffeId, TrustDomain, WorkloadIdentifier

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/wimse/identifier.json").read_text("utf-8"))
TD = TrustDomain("acme.example")


def _text(case: dict[str, Any]) -> str:
    if case["identifier"] is not None:
        return str(case["identifier"])
    octets = 2048 if case["expected"]["result"] == "accept" else 2049
    return "wimse://trust.example/".ljust(octets, "a")


@pytest.mark.parametrize("case", VECTORS["syntax"], ids=lambda case: repr(_text(case))[:60])
def test_every_published_syntax_case_gets_its_verdict_and_reason(case: dict[str, Any]) -> None:
    if case["expected"]["result"] == "accept":
        parsed = WorkloadIdentifier.parse(_text(case))
        assert str(parsed) == _text(case)
        assert parsed.origin == case["origin"]
    else:
        with pytest.raises(IdentifierError) as refusal:
            WorkloadIdentifier.parse(_text(case))
        assert refusal.value.reason == case["expected"]["reason"]


@pytest.mark.parametrize("case", VECTORS["comparison"])
def test_identifiers_compare_on_the_whole_uri(case: dict[str, Any]) -> None:
    first, second = WorkloadIdentifier.parse(case["a"]), WorkloadIdentifier.parse(case["b"])
    assert (first == second) is case["equal"]
    assert len({first, second}) == (1 if case["equal"] else 2)


@given(spiffe_id_texts())
@settings(deadline=None)
def test_a_spiffe_id_survives_the_round_trip_octet_by_octet(text: str) -> None:
    parsed = SpiffeId.parse(text)
    assert str(parsed) == text
    assert SpiffeId(parsed.trust_domain, parsed.path) == parsed
    assert SpiffeId.build(parsed.trust_domain, *parsed.segments) == parsed
    assert WorkloadIdentifier.parse(text).spiffe_id() == parsed
    assert parsed.is_member_of(parsed.trust_domain)
    assert not parsed.is_member_of(TrustDomain(parsed.trust_domain.name[:250] + "x"))


def _grammar(text: str) -> bool:
    """SPIFFE-ID 2, written a second time and differently."""
    if len(text) > 2048 or not text.startswith("spiffe://"):
        return False
    name, *path = text[9:].split("/")
    return bool(re.fullmatch(r"[a-z0-9._\-]{1,255}", name)) and all(
        re.fullmatch(r"[a-zA-Z0-9._\-]+", part) and part not in {".", ".."} for part in path
    )


@given(
    st.one_of(
        st.text(max_size=40),
        st.text("spife:/.%?#@[]~ \nAa0-_", max_size=30).map("spiffe://".__add__),
        st.tuples(
            spiffe_id_texts(), st.integers(0, 60), st.sampled_from(["/", "..", "%2e", "\n", "é", "A", "\0", ":"])
        ).map(lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]),
    )
)
@example("spiffe://td/a\n")
@example("spiffe://td\n")
@example("SPIFFE://td/a")
@example("spiffe://TD/a")
@example("spiffe://td/.hidden")
@example("spiffe://td/\u0661")
@settings(deadline=None)
def test_exactly_the_grammar_is_accepted(text: str) -> None:
    try:
        parsed = SpiffeId.parse(text)
    except IdentifierError:
        assert not _grammar(text)
    else:
        assert _grammar(text)
        assert str(parsed) == text


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: TrustDomain(""), "empty_authority"),
        (lambda: TrustDomain("a" * 256), "trust_domain_too_long"),
        (lambda: TrustDomain("Acme"), "trust_domain_chars"),
        (lambda: TrustDomain("acme\n"), "trust_domain_chars"),
        (lambda: TrustDomain.parse("spiffe://acme/x"), "segment_chars"),
        (lambda: TrustDomain.parse("wimse://acme"), "unknown_scheme"),
        (lambda: SpiffeId.parse("wimse://acme/x"), "unknown_scheme"),
        (lambda: SpiffeId.parse("spiffe://acme/" + "a" * 2035), "too_long"),
        (lambda: SpiffeId.parse_workload("spiffe://acme"), "empty_path"),
        (lambda: SpiffeId.parse("spiffe://acme/"), "empty_path"),
        (lambda: SpiffeId(TD, "agents/x"), "segment_chars"),
        (lambda: SpiffeId(TD, "/a" * 1030), "too_long"),
        (lambda: WorkloadIdentifier("spiffe", TD, "/a~b"), "segment_chars"),
        (lambda: WorkloadIdentifier("wimse", TrustDomain("acme."), "/a"), "trust_domain_trailing_dot"),
        (lambda: WorkloadIdentifier.parse("wimse://acme/a").spiffe_id(), "unknown_scheme"),
    ],
)
def test_no_value_exists_that_its_rules_forbid(build: Callable[[], object], reason: str) -> None:
    with pytest.raises(IdentifierError) as refusal:
        build()
    assert refusal.value.code == f"identifiers.{reason}"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../admin", "a/b", "%2e%2e", "a b", "a\n", "é", "a~b", "x" * 2049, "a:b", "a?b", "a#b"]
)
@pytest.mark.parametrize(
    "build",
    [
        lambda name: SpiffeId.agent(TD, name),
        lambda name: SpiffeId.service(TD, name),
        lambda name: SpiffeId.node(TD, name),
        lambda name: SpiffeId.build(TD, name, "child"),
        lambda name: SpiffeId.build(TD, "parent", name),
    ],
    ids=["agent", "service", "node", "first", "last"],
)
def test_a_name_from_outside_stays_one_segment(build: Callable[[str], SpiffeId], name: str) -> None:
    with pytest.raises(IdentifierError):
        build(name)


@given(trust_domain_names(), segments())
@settings(deadline=None)
def test_default_paths_are_the_agreed_ones(domain: str, name: str) -> None:
    td = TrustDomain(domain)
    assert str(SpiffeId.agent(td, name)) == f"spiffe://{domain}/agents/{name}"
    assert str(SpiffeId.service(td, name)) == f"spiffe://{domain}/services/{name}"
    assert str(SpiffeId.node(td, name)) == f"spiffe://{domain}/nodes/{name}"
    assert TrustDomain.parse(td.uri) == td
    assert SpiffeId.parse(td.uri) == SpiffeId(td, "")


def test_values_equal_only_their_own_type_and_cannot_change() -> None:
    agent = SpiffeId.agent(TD, "a")
    values: list[object] = [TD, agent, WorkloadIdentifier.parse(str(agent)), str(agent), str(TD)]
    assert len(set(values)) == len(values)
    with pytest.raises(AttributeError):
        agent.path = "/agents/b"  # type: ignore[misc]  # the point of the test
    with pytest.raises((AttributeError, TypeError)):
        agent.extra = 1  # type: ignore[attr-defined]  # the point of the test
