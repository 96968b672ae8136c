"""Stopping and resuming on both back ends: what falls, what stays, and in which order events count."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.flows.monitoring_world import issue_fenced, new_person, operator, planned, remedied, signal
from tests.flows.provisioning_world import World, open_world

from aims.clock import IdSource, SystemClock
from aims.errors import AimsError
from aims.monitoring.errors import MonitoringError
from aims.monitoring.model import Applied, Remedy
from aims.monitoring.remediation import Remediation, look
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry.model import State
from aims.storage.database import Database
from aims.storage.write import Name, Write

OTHER = "https://other.example"


@pytest.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> World:
    world = await open_world(database, clock, ids)
    await world.owner()
    await world.node("laptop")
    return world


async def _agent(world: World, name: str = "researcher") -> Name:
    return Name("agent", str((await world.agent(name)).workload.spiffe_id))


async def _refused(wanted: object) -> str:
    with pytest.raises(AimsError) as refusal:
        await wanted  # type: ignore[misc]  # each case is an awaitable of its own type
    return refusal.value.code


async def test_a_suspended_agent_gets_nothing_and_its_old_credentials_stay_dead_after_resuming(world: World) -> None:
    registered = await world.agent()
    agent = Name("agent", str(registered.workload.spiffe_id))
    issued = await world.issue(world.application(registered))
    stopped = await remedied(world, agent, Remedy.SUSPEND)
    assert (stopped.applied, stopped.subject) == (Applied.DONE, agent)
    assert world.registry.workload("researcher").state is State.SUSPENDED
    assert await _refused(world.issue(world.application(registered))) == "provisioning.identity_suspended"
    assert await issue_fenced(world, agent, seen=world.registry.seq) == "stopped"
    resumed = await remedied(world, agent, Remedy.RESUME)
    assert resumed.applied is Applied.DONE
    # what was issued with an older number stays dead, what is issued now lives
    assert await issue_fenced(world, agent, seen=issued.epoch) == "stopped"
    fresh = await world.issue(world.application(registered))
    assert fresh.epoch >= resumed.seq > stopped.seq > issued.epoch
    assert await issue_fenced(world, agent, seen=fresh.epoch) == "committed"


async def test_a_stop_leaves_one_record_with_its_cause(world: World) -> None:
    agent = await _agent(world)
    before = len(world.records())
    stopped = await remedied(world, agent, Remedy.SUSPEND, operator(world, "odd calls"))
    records = world.records()[before:]
    assert len(records) == 1
    record = records[0]
    assert (record["type"], record["outcome"], record["resource"]) == ("identity.suspend", "success", agent.id)
    assert record["cause"] == {"admin": "alice", "reason": "odd calls"}
    assert record["change"] == stopped.seq
    assert record["txn"] == stopped.txn


async def test_retiring_is_for_good(world: World) -> None:
    registered = await world.agent()
    agent = Name("agent", str(registered.workload.spiffe_id))
    await remedied(world, agent, Remedy.SUSPEND)
    assert (await remedied(world, agent, Remedy.RETIRE)).applied is Applied.DONE
    assert world.registry.workload("researcher").state is State.RETIRED
    assert world.registry.entries_of(registered.workload) == ()
    assert await _refused(remedied(world, agent, Remedy.RESUME)) == "provisioning.identity_retired"
    assert (await remedied(world, agent, Remedy.RESUME, signal(world, at=world.clock.now()))).applied is Applied.HELD
    for remedy in (Remedy.RETIRE, Remedy.SUSPEND, Remedy.REVOKE):
        assert (await remedied(world, agent, remedy)).applied is Applied.ALREADY
    assert await issue_fenced(world, agent, seen=world.registry.seq) == "stopped"
    # the tombstone: neither the name nor the identifier is given again
    with pytest.raises(ProvisioningError) as taken:
        await world.agent("researcher")
    assert taken.value.reason == "name_taken"


async def test_doing_a_thing_twice_does_it_once(world: World) -> None:
    agent = await _agent(world)
    first = await remedied(world, agent, Remedy.SUSPEND)
    head = world.registry.seq
    second = await remedied(world, agent, Remedy.SUSPEND)
    assert (second.applied, second.seq, world.registry.seq) == (Applied.ALREADY, 0, head)
    assert first.seq == head
    await remedied(world, agent, Remedy.RESUME)
    assert (await remedied(world, agent, Remedy.RESUME)).applied is Applied.ALREADY


async def test_revoking_kills_what_was_issued_and_blocks_nothing(world: World) -> None:
    registered = await world.agent()
    agent = Name("agent", str(registered.workload.spiffe_id))
    issued = await world.issue(world.application(registered))
    await remedied(world, agent, Remedy.REVOKE)
    assert await issue_fenced(world, agent, seen=issued.epoch) == "stopped"
    assert (await world.issue(world.application(registered))).epoch > issued.epoch


async def test_revoking_a_suspended_agent_does_not_lift_the_suspension(world: World) -> None:
    agent = await _agent(world)
    late = await planned(world, agent, Remedy.REVOKE, operator(world))  # decided before the suspension
    assert (await remedied(world, agent, Remedy.SUSPEND)).applied is Applied.DONE
    assert await _refused(world.commit(late)) == "monitoring.changed"
    assert (await remedied(world, agent, Remedy.REVOKE)).applied is Applied.ALREADY
    assert await issue_fenced(world, agent, seen=world.registry.seq) == "stopped"


async def test_two_remedies_in_one_batch_cannot_undo_each_other(world: World) -> None:
    agent = await _agent(world)
    person = await new_person(world)
    for subject in (agent, person):
        plans = [await planned(world, subject, remedy, operator(world)) for remedy in (Remedy.SUSPEND, Remedy.REVOKE)]
        outcomes = await asyncio.gather(*(world.database.commit(plan.write) for plan in plans))
        world.follow()
        assert sorted(outcome.verdict.value for outcome in outcomes) == ["committed", "conflict"]
        blocked = outcomes[0].verdict == "committed"
        verdict = await issue_fenced(world, subject, seen=world.registry.seq)
        assert verdict == ("stopped" if blocked else "committed")


async def test_a_revocation_that_changes_no_time_is_guarded_too(world: World) -> None:
    agent = await _agent(world)
    at = world.clock.now()
    await remedied(world, agent, Remedy.REVOKE, signal(world, at=at))
    same = await planned(world, agent, Remedy.REVOKE, signal(world, at=at))
    await remedied(world, agent, Remedy.SUSPEND)
    assert await _refused(world.commit(same)) == "monitoring.changed"
    assert await issue_fenced(world, agent, seen=world.registry.seq) == "stopped"


async def test_stopping_a_person_ends_that_persons_delegations_only(world: World) -> None:
    agent = await _agent(world)
    stopped, other = await new_person(world), Name("person", f"person:{world.ids.new()}")
    before = world.registry.seq
    assert (await remedied(world, stopped, Remedy.SUSPEND)).applied is Applied.DONE
    seen = world.registry.seq
    assert await issue_fenced(world, agent, stopped, seen=seen) == "stopped"
    assert await issue_fenced(world, agent, other, seen=before) == "committed"
    assert await issue_fenced(world, agent, seen=before) == "committed"
    assert stopped.id not in repr(world.records())
    (record,) = (entry for entry in world.records() if entry.get("type") == "person.suspend")
    assert record["principal"]["format"] == "commitment"
    assert (await remedied(world, stopped, Remedy.RESUME)).applied is Applied.DONE
    assert await issue_fenced(world, agent, stopped, seen=seen) == "stopped"
    assert await issue_fenced(world, agent, stopped, seen=world.registry.seq) == "committed"
    assert await _refused(remedied(world, other, Remedy.SUSPEND)) == "monitoring.person_unknown"


async def test_a_quarantined_instance_leaves_the_others_alone(world: World) -> None:
    registered = await world.agent()
    agent = Name("agent", str(registered.workload.spiffe_id))
    application = world.application(registered)
    await world.issue(application)
    bad, good = Name("instance", application.instance), Name("instance", world.instance())
    assert (await remedied(world, bad, Remedy.QUARANTINE)).applied is Applied.DONE
    assert world.last_record()["details"]["agent"] == agent.id
    seen = world.registry.seq
    assert await issue_fenced(world, agent, bad, seen=seen) == "stopped"
    assert await issue_fenced(world, agent, good, seen=0) == "committed"
    assert world.registry.workload("researcher").state is State.ACTIVE
    assert (await remedied(world, bad, Remedy.RELEASE)).applied is Applied.DONE
    assert await issue_fenced(world, agent, bad, seen=seen) == "stopped"
    assert await issue_fenced(world, agent, bad, seen=world.registry.seq) == "committed"
    # one that never got a credential is known only by what the administrator says, one that did is not another agent's
    assert (await remedied(world, good, Remedy.QUARANTINE, agent=agent.id)).applied is Applied.DONE
    other = await _agent(world, "other")
    assert await _refused(remedied(world, bad, Remedy.QUARANTINE, agent=other.id)) == "monitoring.instance_unknown"
    view = await world.database.read(lambda connection: look(connection, world.registry, bad))
    with pytest.raises(MonitoringError) as refusal:
        Remediation(clock=world.clock, ids=world.ids).plan(view, Remedy.RETIRE, operator(world))
    assert refusal.value.reason == "remedy"


@pytest.mark.parametrize(
    ("subject", "remedy", "code"),
    [
        (Name("agent", "spiffe://local.test/agents/nobody"), Remedy.SUSPEND, "provisioning.identity_unknown"),
        (Name("agent", ""), Remedy.SUSPEND, "provisioning.identity_unknown"),
        (Name("instance", "laptop"), Remedy.QUARANTINE, "monitoring.subject_malformed"),
        (Name("person", "alice@example.org"), Remedy.SUSPEND, "monitoring.subject_malformed"),
        (Name("node", "laptop"), Remedy.SUSPEND, "monitoring.remedy"),
        (Name("grant", "g"), Remedy.RETIRE, "monitoring.remedy"),
        (Name("instance", "laptop:" + "a" * 26), Remedy.QUARANTINE, "monitoring.instance_unknown"),
    ],
)
async def test_what_cannot_be_done_is_refused(world: World, subject: Name, remedy: Remedy, code: str) -> None:
    head = world.registry.seq
    assert await _refused(remedied(world, subject, remedy)) == code
    assert world.registry.seq == head


async def test_an_older_event_never_undoes_a_newer_one(world: World) -> None:
    agent = await _agent(world)
    now = world.clock.now()
    assert (await remedied(world, agent, Remedy.SUSPEND, signal(world, at=now - 60))).applied is Applied.DONE
    assert (await remedied(world, agent, Remedy.RESUME, signal(world, at=now - 61))).applied is Applied.STALE
    assert (await remedied(world, agent, Remedy.RESUME, signal(world, at=now - 60))).applied is Applied.STALE
    assert (await remedied(world, agent, Remedy.RESUME, signal(world, at=now - 30))).applied is Applied.DONE
    for remedy in (Remedy.SUSPEND, Remedy.REVOKE, Remedy.RETIRE):
        assert (await remedied(world, agent, remedy, signal(world, at=now - 31))).applied is Applied.STALE
    assert world.registry.workload("researcher").state is State.ACTIVE
    # an enabling event that lifted nothing makes no stop stale: its sender could make others' stops void in advance
    assert (await remedied(world, agent, Remedy.RESUME, signal(world, at=now - 10))).applied is Applied.ALREADY
    assert (await remedied(world, agent, Remedy.SUSPEND, signal(world, at=now - 20))).applied is Applied.DONE
    assert (await remedied(world, agent, Remedy.RESUME)).applied is Applied.DONE
    # an administrator is never too late
    assert (await remedied(world, agent, Remedy.SUSPEND)).applied is Applied.DONE
    assert (await remedied(world, agent, Remedy.RESUME)).applied is Applied.DONE


async def test_what_one_transmitter_lifted_makes_nobody_elses_stop_stale(world: World) -> None:
    agent = await _agent(world)
    now = world.clock.now()

    async def said(remedy: Remedy, ago: int, issuer: str) -> Applied:
        return (await remedied(world, agent, remedy, signal(world, at=now - ago, issuer=issuer))).applied

    one, other = OTHER, "https://idp.example"
    assert await said(Remedy.SUSPEND, 40, one) is Applied.DONE
    assert await said(Remedy.RESUME, 20, one) is Applied.DONE
    # older than that resumption, which was about another stop
    assert await said(Remedy.SUSPEND, 30, other) is Applied.DONE
    assert world.registry.workload("researcher").state is State.SUSPENDED
    assert await said(Remedy.RESUME, 10, one) is Applied.HELD
    assert await said(Remedy.RESUME, 25, other) is Applied.DONE
    # each party's own older stop is stale, and after an administrator everybody's
    assert await said(Remedy.SUSPEND, 21, one) is Applied.STALE
    assert await said(Remedy.SUSPEND, 26, other) is Applied.STALE
    assert await said(Remedy.SUSPEND, 24, other) is Applied.DONE
    assert (await remedied(world, agent, Remedy.RESUME)).applied is Applied.DONE
    for issuer in (one, other, "https://third.example"):
        assert await said(Remedy.SUSPEND, 2, issuer) is Applied.STALE
    assert world.registry.workload("researcher").state is State.ACTIVE


async def test_only_who_stopped_or_an_administrator_resumes(world: World) -> None:
    agent = await _agent(world)
    now = world.clock.now()
    await remedied(world, agent, Remedy.SUSPEND)
    later = now + 60
    assert (await remedied(world, agent, Remedy.SUSPEND, signal(world, at=now + 1))).applied is Applied.ALREADY
    assert (await remedied(world, agent, Remedy.RESUME, signal(world, at=later))).applied is Applied.HELD
    await remedied(world, agent, Remedy.RESUME)
    assert (await remedied(world, agent, Remedy.SUSPEND, signal(world, at=later))).applied is Applied.DONE
    assert (await remedied(world, agent, Remedy.SUSPEND, signal(world, at=later, issuer=OTHER))).applied is (
        Applied.ALREADY
    )
    for issuer in (OTHER, "https://idp.example"):
        resumed = await remedied(world, agent, Remedy.RESUME, signal(world, at=later + 1, issuer=issuer))
        assert resumed.applied is Applied.HELD
    assert (await remedied(world, agent, Remedy.RESUME)).applied is Applied.DONE


async def test_a_memory_that_has_fallen_behind_decides_by_the_database(world: World) -> None:
    agent = await _agent(world)
    plan = await planned(world, agent, Remedy.SUSPEND, operator(world))
    await world.database.commit(plan.write)  # and the feed is not read
    assert world.registry.workload("researcher").state is State.ACTIVE
    assert (await remedied(world, agent, Remedy.RESUME)).applied is Applied.DONE
    assert world.registry.workload("researcher").state is State.ACTIVE


async def _race(world: World, second: Database, agent: Name) -> tuple[int, int]:
    """Stop the agent while 200 issues are in flight; return how many came in before, and how many after the answer."""
    seen = world.registry.seq
    first, answered = asyncio.Event(), asyncio.Event()
    before: list[int] = []
    after: list[int] = []

    async def issue(store: Database) -> None:
        for _ in range(5):
            late = answered.is_set()
            outcome = await store.commit(Write(record=lambda _: b"{}", names=(agent,), seen=seen))
            if outcome.verdict == "committed":
                (after if late else before).append(seen)
                first.set()

    issuing = [asyncio.create_task(issue(store)) for _ in range(100) for store in (world.database, second)]
    plan = await planned(world, agent, Remedy.SUSPEND, operator(world))
    async with asyncio.timeout(10):
        await first.wait()
    stopped = plan.answer(await world.database.commit(plan.write))
    answered.set()
    await asyncio.gather(*issuing)
    await issue(second)
    # what slipped in before carries an epoch below the stop, which every verifier compares
    assert all(epoch < stopped.seq for epoch in before)
    world.follow()
    return len(before), len(after)


async def test_nothing_is_issued_after_a_stop_has_answered(
    world: World, database_url: str, tmp_path: Path, clock: SystemClock, ids: IdSource
) -> None:
    """T4: two writers, 200 issues in flight with an old memory, one stop."""
    second = Database.open(database_url, clock=clock, ids=ids, folder=tmp_path)
    try:
        for _ in range(5):
            before, after = await _race(world, second, await _agent(world, f"a{ids.new()[-12:]}"))
            assert before > 0
            assert after == 0
    finally:
        second.close()


async def test_a_remedy_that_is_refused_changes_nothing_and_is_recorded(world: World) -> None:
    agent = await _agent(world)
    plans = [await planned(world, agent, Remedy.SUSPEND, operator(world)) for _ in range(2)]
    await world.commit(plans[0])
    head = world.registry.seq
    with pytest.raises(MonitoringError) as refusal:
        await world.commit(plans[1])
    assert refusal.value.reason == "changed"
    assert world.registry.seq == head
    record = world.last_record()
    assert (record["type"], record["decision"]["effect"]) == ("admin.refuse", "deny")
    assert record["decision"]["reason"] == "storage.conflict"
