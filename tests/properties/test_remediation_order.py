"""The order of events decides, not the order of their arrival; and a stop is lifted only by who made it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aims.monitoring.judgement import judge
from aims.monitoring.model import Applied, Cause, Remedy, Said, Standing
from aims.storage.write import Name

AGENT = Name("agent", "spiffe://local.test/agents/a")
REMEDIES = [Remedy.SUSPEND, Remedy.RESUME, Remedy.REVOKE]


def _cause(second: int, issuer: str = "https://idp.example") -> Cause:
    return Cause(txn="t", at=second * 1000, request_id="r", decision={}, member={}, issuer=issuer)


@given(st.dictionaries(st.integers(1, 50), st.sampled_from(REMEDIES), min_size=1, max_size=8), st.randoms())
def test_no_order_of_arrival_undoes_a_stop(events: dict[int, Remedy], chance: object) -> None:
    arrivals = list(events.items())
    chance.shuffle(arrivals)  # type: ignore[attr-defined]  # Hypothesis gives a Random
    standing = Standing(name=AGENT)
    for second, remedy in arrivals:
        _, standing = judge(standing, remedy, _cause(second))
    states = [remedy for _, remedy in sorted(events.items()) if remedy is not Remedy.REVOKE]
    if states and states[-1] is Remedy.SUSPEND:
        assert standing.blocked
    if Remedy.SUSPEND not in states:
        assert not standing.blocked


@given(st.dictionaries(st.integers(1, 50), st.sampled_from(REMEDIES), min_size=1, max_size=8))
def test_events_of_one_party_in_their_order_end_with_the_last(events: dict[int, Remedy]) -> None:
    standing = Standing(name=AGENT)
    for second, remedy in sorted(events.items()):
        _, standing = judge(standing, remedy, _cause(second))
    states = [remedy for _, remedy in sorted(events.items()) if remedy is not Remedy.REVOKE]
    assert standing.blocked == (bool(states) and states[-1] is Remedy.SUSPEND)


PARTIES = ["https://a.example", "https://b.example", "https://c.example"]


@given(
    st.dictionaries(
        st.integers(1, 50), st.tuples(st.sampled_from(PARTIES), st.sampled_from(REMEDIES)), min_size=1, max_size=10
    ),
    st.randoms(),
)
def test_no_lift_of_one_party_makes_the_stop_of_another_stale(
    events: dict[int, tuple[str, Remedy]], chance: object
) -> None:
    arrivals = list(events.items())
    chance.shuffle(arrivals)  # type: ignore[attr-defined]  # Hypothesis gives a Random
    standing = Standing(name=AGENT)
    for second, (party, remedy) in arrivals:
        _, standing = judge(standing, remedy, _cause(second, party))
    for party in PARTIES:
        own = [remedy for _, (who, remedy) in sorted(events.items()) if who == party and remedy is not Remedy.REVOKE]
        if own and own[-1] is Remedy.SUSPEND:
            assert standing.blocked
    # an administrator's word is about everybody's: what came before it stays undone, whoever says it late
    _, standing = judge(standing, Remedy.SUSPEND, _cause(60, ""))
    _, standing = judge(standing, Remedy.RESUME, _cause(61, ""))
    for second, (party, remedy) in arrivals:
        assert judge(standing, remedy, _cause(second, party))[0] in {Applied.STALE, Applied.ALREADY}
        _, standing = judge(standing, remedy, _cause(second, party))
    assert not standing.blocked


def test_a_party_that_was_late_lifts_its_own_stop_whatever_others_did_since() -> None:
    one, other = "https://a.example", "https://b.example"
    standing = Standing(name=AGENT)
    for issuer, remedy, second in ((one, Remedy.SUSPEND, 50), (one, Remedy.RESUME, 55), (other, Remedy.SUSPEND, 20)):
        applied, standing = judge(standing, remedy, _cause(second, issuer))
        assert applied is Applied.DONE
    assert judge(standing, Remedy.RESUME, _cause(30, one))[0] is Applied.STALE
    assert judge(standing, Remedy.RESUME, _cause(60, one))[0] is Applied.HELD
    applied, standing = judge(standing, Remedy.RESUME, _cause(30, other))
    assert (applied, standing.blocked) == (Applied.DONE, False)


def test_what_lifts_nothing_makes_no_later_stop_stale() -> None:
    _, standing = judge(Standing(name=AGENT), Remedy.RESUME, _cause(50, "https://a.example"))
    applied, standing = judge(standing, Remedy.SUSPEND, _cause(10, "https://b.example"))
    assert (applied, standing.blocked) == (Applied.DONE, True)


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "https://a.example", "https://b.example"]), st.sampled_from(REMEDIES)),
        max_size=12,
    )
)
def test_nobody_lifts_what_somebody_else_holds(steps: list[tuple[str, Remedy]]) -> None:
    standing = Standing(name=AGENT)
    holders: set[str] = set()
    for second, (issuer, remedy) in enumerate(steps, 1):
        applied, standing = judge(standing, remedy, _cause(second, issuer))
        if remedy is Remedy.SUSPEND:
            holders.add(issuer)
        elif remedy is Remedy.RESUME and (issuer == "" or holders <= {issuer}):
            holders.clear()
        elif remedy is Remedy.RESUME:
            assert applied is Applied.HELD
        assert standing.blocked == bool(holders)


def test_within_one_second_the_stop_wins() -> None:
    idp = "https://idp.example"
    stopped = Standing(name=AGENT, blocked=True, held_by=idp, stopped_at=10_900, said={idp: Said(stopped_at=10_900)})
    assert judge(stopped, Remedy.RESUME, _cause(10))[0] is Applied.STALE
    for lifted_by in (idp, "admin"):
        resumed = Standing(name=AGENT, resumed_at=10_900, said={lifted_by: Said(lifted_at=10_900)})
        assert judge(resumed, Remedy.SUSPEND, _cause(10))[0] is Applied.DONE
        assert judge(resumed, Remedy.SUSPEND, _cause(9))[0] is Applied.STALE
        assert judge(resumed, Remedy.REVOKE, _cause(9))[0] is Applied.STALE


def test_what_has_ended_for_good_is_neither_stopped_nor_lifted() -> None:
    for remedy in (Remedy.SUSPEND, Remedy.REVOKE, Remedy.RETIRE):
        assert judge(Standing(name=AGENT), remedy, _cause(1), retired=True) == (Applied.ALREADY, Standing(name=AGENT))
    assert judge(Standing(name=AGENT), Remedy.RESUME, _cause(1), retired=True)[0] is Applied.HELD
    suspended = Standing(name=AGENT, blocked=True, held_by="admin")
    assert judge(suspended, Remedy.RETIRE, _cause(1))[0] is Applied.DONE
