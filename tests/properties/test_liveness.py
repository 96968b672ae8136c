"""What an enforcement point says about stops: from full state, lines and heartbeats to refusals."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties.proof_material import FixedClock

from aims.authentication import liveness
from aims.authentication.errors import CONSEQUENCES, AuthenticationError
from aims.authentication.liveness import MAX_NUMBER, Liveness, Named, StopLine, StopName, StopView, names_of
from aims.identifiers import TrustDomain
from aims.storage.write import Name

TD = TrustDomain("acme.example")
AGENT = "spiffe://acme.example/agents/a"
OTHER = "spiffe://acme.example/agents/b"
FOREIGN = "spiffe://other.example/agents/a"
INSTANCE = "node-1:" + "a" * 26
NAMES = names_of(AGENT, instance=INSTANCE, grant_id="agent:a", client_id=AGENT)
OK, STOPPED, UNKNOWN = Liveness.OK, Liveness.STOPPED, Liveness.STATE_UNKNOWN


def _view(clock: FixedClock, *lines: StopLine, number: int = 100) -> StopView:
    view = StopView(clock, TD)
    view.full(number, lines)
    view.heartbeat(number)
    return view


def test_every_name_of_a_credential_is_a_name_that_a_stop_can_hit() -> None:
    names = names_of("person:x", AGENT, OTHER, client_id=AGENT, grant_id="g", instance=INSTANCE)
    assert set(names) == {
        ("person", "person:x"),
        ("agent", AGENT),
        ("agent", OTHER),
        ("grant", "g"),
        ("instance", INSTANCE),
        ("node", "node-1"),
    }
    clock = FixedClock()
    for kind, id_ in names:
        for line, epoch, expected in (
            (StopLine(kind, id_, 50, blocked=True), 99, STOPPED),
            (StopLine(kind, id_, 50, blocked=False), 49, STOPPED),
            (StopLine(kind, id_, 50, blocked=False), 50, OK),
            (StopLine(kind, id_ + "x", 50, blocked=True), 49, OK),
        ):
            assert _view(clock, line).check(names, epoch) is expected, line


def test_names_of_the_store_are_names_here() -> None:
    names: Iterable[Named] = [Name("agent", AGENT)]
    clock = FixedClock()
    assert _view(clock).check(names, 1) is OK
    assert _view(clock, StopLine("agent", AGENT, 2, blocked=False)).check(names, 1) is STOPPED


def test_nothing_is_known_before_full_state_and_heartbeat() -> None:
    clock = FixedClock()
    view = StopView(clock, TD)
    assert view.check(NAMES, 5) is UNKNOWN
    view.heartbeat(100)
    assert (view.check(NAMES, 5), view.number) == (UNKNOWN, None)
    view.full(100, ())
    assert view.check(NAMES, 5) is UNKNOWN
    view.heartbeat(99)
    assert view.check(NAMES, 5) is UNKNOWN
    view.heartbeat(100)
    assert (view.check(NAMES, 5), view.number) == (OK, 100)


def test_state_is_known_for_max_stale_after_the_last_heartbeat_by_the_monotonic_clock() -> None:
    clock = FixedClock(1000)
    view = StopView(clock, TD, max_stale=4)
    view.full(7, ())
    view.heartbeat(7)
    clock.at = 1004
    assert view.check(NAMES, 5) is OK
    clock.at = 1004.01
    assert view.check(NAMES, 5) is UNKNOWN
    view.advance(7, 8)  # a line alone proves nothing about the head
    assert view.check(NAMES, 5) is UNKNOWN
    view.heartbeat(8)
    assert view.check(NAMES, 5) is OK
    clock.at = 1010
    view.heartbeat(8, 4.5)  # passed on by somebody who has had it for a while
    assert view.check(NAMES, 5) is UNKNOWN
    view.heartbeat(8, 3.5)
    assert view.check(NAMES, 5) is OK
    clock.at = 1011
    assert view.check(NAMES, 5) is UNKNOWN
    view.heartbeat(8, -100)
    view.heartbeat(8, 4)  # never makes older what was heard since
    clock.at = 1015
    assert view.check(NAMES, 5) is OK
    clock.at = 999  # no monotonic clock does this
    assert view.check(NAMES, 5) is UNKNOWN
    for wrong in (0, -1, 10.1):
        with pytest.raises(ValueError, match="max_stale"):
            StopView(clock, TD, max_stale=wrong)


def test_a_gap_in_numbers_asks_for_full_state_and_loses_no_stop() -> None:
    clock = FixedClock()
    view = _view(clock)
    view.advance(100, 101, StopLine("agent", OTHER, 101, blocked=True))
    view.advance(100, 101)  # seen already
    view.heartbeat(101)
    assert (view.check(NAMES, 5), view.check(names_of(OTHER), 200)) == (OK, STOPPED)
    view.advance(102, 103, StopLine("agent", AGENT, 103, blocked=True))
    assert view.number is None
    assert (view.check(names_of(FOREIGN), None), view.check(NAMES, 200)) == (UNKNOWN, STOPPED)
    view.heartbeat(103)
    assert view.check(names_of(FOREIGN), None) is UNKNOWN
    view.full(103, [StopLine("agent", AGENT, 103, blocked=True)])
    view.heartbeat(103)
    assert (view.check(NAMES, 200), view.check(names_of(OTHER), 200)) == (STOPPED, OK)


def test_a_heartbeat_that_is_ahead_is_a_gap() -> None:
    view = _view(FixedClock())
    view.heartbeat(101)
    assert (view.number, view.check(NAMES, 5)) == (None, UNKNOWN)


def test_an_older_full_state_is_not_taken() -> None:
    clock = FixedClock()
    view = _view(clock, StopLine("agent", AGENT, 90, blocked=True))
    view.full(99, ())
    view.heartbeat(99)
    assert (view.number, view.check(NAMES, 95), view.check(names_of(OTHER), 95)) == (None, STOPPED, UNKNOWN)


def test_resuming_keeps_old_credentials_dead() -> None:
    view = _view(FixedClock(), StopLine("agent", AGENT, 50, blocked=True))
    view.advance(100, 101, StopLine("agent", AGENT, 101, blocked=False))
    view.heartbeat(101)
    assert [view.check(NAMES, epoch) for epoch in (50, 100, 101)] == [STOPPED, STOPPED, OK]
    view.advance(101, 102, StopLine("agent", AGENT, 60, blocked=True))  # late news never undoes newer
    view.heartbeat(102)
    assert view.check(NAMES, 101) is OK


def test_own_credentials_need_an_epoch_and_foreign_ones_are_refused_by_name_only() -> None:
    clock = FixedClock()
    view = _view(
        clock, StopLine("agent", FOREIGN + "2", 50, blocked=True), StopLine("agent", FOREIGN, 50, blocked=False)
    )
    assert view.check(names_of(AGENT), None) is STOPPED
    assert view.check(names_of("person:x"), None) is STOPPED
    assert view.check(names_of(FOREIGN, grant_id="g"), None) is STOPPED
    assert view.check(names_of(FOREIGN), None) is OK
    assert view.check(names_of(FOREIGN + "2"), None) is STOPPED
    assert view.check(names_of("spiffe://acme.example2/agents/a"), None) is OK
    assert view.check((), 5) is UNKNOWN


def test_refusals_have_their_codes_and_consequences() -> None:
    view = _view(FixedClock(), StopLine("node", "node-1", 50, blocked=True))
    with pytest.raises(AuthenticationError, match=r"authentication\.stopped"):
        view.require(NAMES, 60)
    view.lost()
    with pytest.raises(AuthenticationError, match=r"authentication\.state_unknown"):
        view.require(names_of(FOREIGN), None)
    assert (CONSEQUENCES["stopped"].status, CONSEQUENCES["state_unknown"].status) == (401, 503)


@pytest.mark.parametrize(
    "line",
    [
        ("robot", AGENT, 1, True),
        ("agent", "", 1, True),
        ("agent", "x" * 2049, 1, True),
        ("agent", AGENT, -1, True),
        ("agent", AGENT, MAX_NUMBER + 1, True),
        ("agent", AGENT, True, True),
        ("agent", AGENT, 1.0, True),
        ("agent", AGENT, 1, 1),
    ],
)
def test_a_line_that_no_stop_has_does_not_exist(line: tuple[str, str, int, bool]) -> None:
    kind, id_, seq, blocked = line
    with pytest.raises(ValueError, match="stop"):
        StopLine(kind, id_, seq, blocked)


def test_more_stops_than_a_view_may_hold_leave_it_without_knowledge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "MAX_STOPS", 2)
    view = _view(FixedClock(), *(StopLine("agent", id_, 1, blocked=False) for id_ in "ab"))
    assert view.check(NAMES, 5) is OK
    view.advance(100, 101, StopLine("agent", "c", 101, blocked=False))
    view.heartbeat(101)
    assert view.check(NAMES, 5) is UNKNOWN
    with pytest.raises(ValueError, match="too many"):
        view.full(101, [StopLine("agent", id_, 1, blocked=False) for id_ in "abc"])
    view.heartbeat(101)
    assert view.check(NAMES, 5) is UNKNOWN


_LINES = st.lists(
    st.tuples(st.sampled_from(["agent", "person", "grant"]), st.sampled_from("abc"), st.booleans()), max_size=12
)


@given(lines=_LINES, cut=st.integers(0, 12), epoch=st.integers(0, 13), dropped=st.sets(st.integers(1, 12)))
def test_lines_and_full_state_tell_the_same_or_the_view_says_that_it_does_not_know(
    lines: list[tuple[str, str, bool]], cut: int, epoch: int, dropped: set[int]
) -> None:
    numbered = [StopLine(kind, id_, at, blocked) for at, (kind, id_, blocked) in enumerate(lines, 1)]
    cut = min(cut, len(numbered))
    whole = _view(FixedClock(), *numbered, number=len(numbered))
    partial = _view(FixedClock(), *numbered[:cut], number=cut)
    for line in numbered[cut:]:
        if line.seq not in dropped:
            partial.advance(line.seq - 1, line.seq, line)
    partial.heartbeat(len(numbered))
    for kind in ("agent", "person", "grant"):
        for id_ in "abc":
            answer, full = (view.check([StopName(kind, id_)], epoch) for view in (partial, whole))
            if dropped & {line.seq for line in numbered[cut:]}:
                assert answer is not OK
            else:
                assert answer is full
