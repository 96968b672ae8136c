"""Entries that the rules let stand side by side never give one process the identities of two workloads."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aims.attestation import Selector
from aims.identifiers import SpiffeId, TrustDomain
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry.model import Entry, Kind, Node, NodeState, Workload, parse_name, uid_of
from aims.provisioning.registry.rules import check_entry

DOMAIN = TrustDomain("local.test")
UIDS = (1, 2, 3)
PROFILES = ("launch:unmeasured", "launch:profile:" + "a" * 64, "launch:profile:" + "b" * 64)


def _workload(name: str, owner: str, launch_uids: tuple[int, ...]) -> Workload:
    return Workload(
        kind=Kind.AGENT,
        name=name,
        spiffe_id=SpiffeId.agent(DOMAIN, name),
        owner=owner,
        launch_uids=launch_uids,
        created=0,
    )


def _entry(number: int, workload: Workload, selectors: set[str]) -> Entry:
    return Entry(
        id=f"{number:026d}",
        spiffe_id=workload.spiffe_id,
        selectors=frozenset(map(Selector.parse, selectors)),
        nodes=frozenset({"laptop"}),
    )


workloads = st.builds(
    lambda owner, uids: (owner, tuple(sorted(uids))),
    st.sampled_from(["team-a", "team-b"]),
    st.sets(st.sampled_from(UIDS)),
)
selector_sets = st.sets(
    st.sampled_from([*PROFILES, *(f"unix:uid:{uid}" for uid in UIDS), "unix:gid:9"]), min_size=1, max_size=4
)


def _satisfied(entry: Entry, workload: Workload, *, uid: int, launched_as: str, profile: str) -> bool:
    """What a node does: a launched program is its name's alone; evidence must show every selector."""
    shown = {f"unix:uid:{uid}", "unix:gid:9"} | ({profile} if launched_as else set())
    if entry.launch is not None and (launched_as != workload.name or uid not in workload.launch_uids):
        return False
    return set(map(str, entry.selectors)) <= shown


@given(st.lists(st.tuples(workloads, selector_sets), min_size=2, max_size=4))
def test_no_process_satisfies_entries_of_two_workloads(
    drawn: list[tuple[tuple[str, tuple[int, ...]], set[str]]],
) -> None:
    accepted: list[tuple[Entry, Workload]] = []
    for number, ((owner, launch_uids), selectors) in enumerate(drawn):
        workload = _workload(f"w{number}", owner, launch_uids)
        entry = _entry(number, workload, selectors)
        try:
            check_entry(entry, workload, accepted)
        except ProvisioningError:
            continue
        accepted.append((entry, workload))
    for uid, profile in itertools.product(UIDS, PROFILES):
        for launched_as in ("", *(workload.name for _, workload in accepted)):
            # a program runs launched under a uid only if somebody may launch it there
            launcher = next((workload for _, workload in accepted if workload.name == launched_as), None)
            if launcher is not None and uid not in launcher.launch_uids:
                continue
            given_to = {
                workload.name
                for entry, workload in accepted
                if _satisfied(entry, workload, uid=uid, launched_as=launched_as, profile=profile)
            }
            assert len(given_to) <= 1, (uid, profile, launched_as)


@given(selector_sets, workloads)
def test_an_accepted_entry_names_launch_or_a_uid(selectors: set[str], drawn: tuple[str, tuple[int, ...]]) -> None:
    owner, launch_uids = drawn
    workload = _workload("w", owner, launch_uids)
    entry = _entry(0, workload, selectors)
    try:
        check_entry(entry, workload, ())
    except ProvisioningError:
        return
    assert entry.launch is not None or len(entry.uids) == 1
    assert entry.launch is None or workload.launch_uids


@given(st.text(max_size=70))
def test_a_name_is_one_canonical_segment_or_none(text: str) -> None:
    try:
        name = parse_name(text)
    except ProvisioningError:
        return
    assert name == text == text.lower()
    assert str(SpiffeId.agent(DOMAIN, name)) == f"spiffe://local.test/agents/{text}"
    assert len(SpiffeId.agent(DOMAIN, name).segments) == 2


@given(st.text("0123456789+- _", max_size=12))
def test_a_uid_has_one_spelling(text: str) -> None:
    selector = Selector("unix", f"uid:{text}")
    try:
        uid = uid_of(selector)
    except ProvisioningError:
        return
    assert f"{uid}" == text


@given(st.sets(st.sampled_from(["a", "b", "c"])), st.sets(st.sampled_from(["node:x:1", "node:y:2"])), st.booleans())
def test_an_entry_is_bound_by_a_name_or_by_all_of_its_selectors(names: set[str], facts: set[str], shown: bool) -> None:
    selectors = frozenset(map(Selector.parse, facts))
    if not names and not selectors:
        with pytest.raises(ProvisioningError):
            _bound(names, selectors)
        return
    node = Node(
        id="a",
        spiffe_id=SpiffeId.node(DOMAIN, "a"),
        state=NodeState.ACTIVE,
        selectors=selectors if shown else frozenset(list(selectors)[1:]),
        created=0,
    )
    expected = "a" in names or (bool(selectors) and shown)
    assert _bound(names, selectors).is_bound_to(node) is expected


def _bound(names: set[str], selectors: frozenset[Selector]) -> Entry:
    return Entry(
        id="0" * 26,
        spiffe_id=SpiffeId.agent(DOMAIN, "w"),
        selectors=frozenset({Selector.parse("launch:unmeasured")}),
        nodes=frozenset(names),
        node_selectors=selectors,
    )
