"""The registry on both back ends: names for once and for ever, entries that tell workloads apart, and their records."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.flows.provisioning_world import World, cause, open_world

from aims.attestation import Selector
from aims.clock import IdSource, SystemClock
from aims.errors import AimsError
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry import store
from aims.provisioning.registry.memory import Applied, Registry
from aims.provisioning.registry.model import Kind, State
from aims.provisioning.registry.service import Demand, Registration, digest, state_change
from aims.storage.database import Database
from aims.storage.intent import Plan
from aims.storage.write import Outcome, Write


@pytest.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> World:
    return await open_world(database, clock, ids)


def _answer(plan: Plan[Any], outcome: Outcome) -> str:
    try:
        plan.answer(outcome)
    except ProvisioningError as error:
        return error.reason
    return "registered"


async def test_of_sixteen_registrations_of_one_name_one_succeeds(
    world: World, database_url: str, clock: SystemClock, ids: IdSource, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Database.open(database_url, clock=clock, ids=ids, folder=tmp_path / "other")
    try:
        await _race(world, other)
    finally:
        other.close()
    world.follow()
    assert len(world.registry.workloads) == len(world.registry.entries) == 5
    refused = [record for record in world.records() if record["type"] == "admin.refuse"]
    assert len(refused) == 75
    assert all(record["outcome"] == "refused" for record in refused)


async def _race(world: World, other: Database) -> None:
    await world.owner()
    await world.owner("team-b")
    for round_ in range(5):
        wanted = [
            Registration(
                kind=Kind.AGENT,
                name=f"race-{round_}",
                owner="team-a" if turn % 2 else "team-b",
                launch_uids=(1000,),
                nodes=frozenset({"laptop"}),
            )
            for turn in range(16)
        ]
        plans = [world.admin.register(each, cause()) for each in wanted]
        databases = (world.database, other)
        outcomes = await asyncio.gather(*(databases[turn % 2].commit(plan.write) for turn, plan in enumerate(plans)))
        answers = [_answer(plan, outcome) for plan, outcome in zip(plans, outcomes, strict=True)]
        assert sorted(answers) == ["name_taken"] * 15 + ["registered"]


async def test_a_retired_name_is_never_given_again(world: World) -> None:
    await world.owner()
    await world.owner("team-b")
    registered = await world.agent("scout")
    effects, changes = state_change(world.registry, registered.workload, State.RETIRED)
    await world.database.commit(Write(record=lambda _: b"{}", effects=effects, changes=changes))
    world.follow()
    assert world.registry.workload("scout").state is State.RETIRED
    assert world.registry.entries_of(registered.workload) == ()
    with pytest.raises(ProvisioningError) as refused:
        await world.agent("scout", "team-b")
    assert refused.value.reason == "name_taken"
    with pytest.raises(ProvisioningError) as retired:
        state_change(world.registry, world.registry.workload("scout"), State.ACTIVE)
    assert retired.value.reason == "identity_retired"
    # memory that lags behind does not help: the database itself keeps the name
    stale = Registry(world.registry.trust_domain, store.Rows((world.registry.owner("team-b"),), (), (), ()), 0)
    world.registry, fresh = stale, world.registry
    plan = world.admin.register(
        Registration(kind=Kind.SERVICE, name="scout", owner="team-b", launch_uids=(1000,)), cause()
    )
    outcome = await world.database.commit(plan.write)
    world.registry = fresh
    with pytest.raises(ProvisioningError) as again:
        plan.answer(outcome)
    assert again.value.reason == "name_taken"


@pytest.mark.parametrize(
    "name", ["../admin", "%2e%2e", "a%2fb", "", "a" * 64, "A", "a/b", "a\n", ".", "-a", "ä", "a b"]
)
async def test_a_name_that_is_no_single_plain_segment_is_refused(world: World, name: str) -> None:
    await world.owner()
    before = len(world.records())
    for kind in Kind:
        with pytest.raises(ProvisioningError) as refused:
            await world.agent(name, kind=kind)
        assert refused.value.reason == "name_malformed"
    assert len(world.records()) == before


async def test_a_wanted_identifier_takes_nobodys_place(world: World) -> None:
    from aims.identifiers import SpiffeId

    await world.owner()
    for text in (
        "spiffe://local.test/agents/other",
        "spiffe://local.test/nodes/laptop",
        "spiffe://local.test/services/aims",
        "spiffe://other.test/agents/researcher",
    ):
        with pytest.raises(AimsError) as refused:
            await world.agent(spiffe_id=SpiffeId.parse(text))
        assert refused.value.code == "provisioning.name_reserved"
    with pytest.raises(AimsError) as outside:
        await world.agent(spiffe_id=SpiffeId.parse("spiffe://local.test/elsewhere/researcher"))
    assert outside.value.code == "policy.identifier"
    with pytest.raises(AimsError) as server:
        await world.agent("aims", kind=Kind.SERVICE)
    assert server.value.code == "provisioning.name_reserved"


async def test_an_entry_needs_launch_or_a_uid_of_its_own(world: World) -> None:
    await world.owner()
    await world.agent("researcher", nodes=frozenset())
    await world.agent("backend", kind=Kind.SERVICE, launch_uids=(), nodes=frozenset())

    async def entry(name: str, *selectors: str) -> str:
        demand = Demand(selectors=frozenset(map(Selector.parse, selectors)), nodes=frozenset({"laptop"}))
        try:
            return (await world.commit(world.admin.create_entry(name=name, demand=demand, cause=cause()))).id
        except ProvisioningError as error:
            return error.reason

    assert await entry("researcher", "unix:path:/usr/bin/python3") == "entry_selectors"
    assert await entry("researcher", "unix:gid:100") == "entry_selectors"
    assert await entry("researcher", "docker:image:x", "launch:unmeasured") == "entry_selector_type"
    assert await entry("researcher", "unix:uid:01000") == "entry_selector_type"
    assert await entry("backend", "launch:unmeasured") == "launch_uids"
    alone = await entry("backend", "unix:uid:2000")
    assert len(alone) == 26
    assert await entry("researcher", "unix:uid:2000") == "entry_uid_shared"
    assert await entry("backend", "unix:uid:2000", "unix:gid:1") == "entry_uid_shared"
    assert await entry("researcher", "launch:unmeasured", "unix:uid:2000") == "entry_uid_shared"
    assert len(await entry("researcher", "launch:unmeasured")) == 26
    # researchers run under 1000, so it stands for nobody
    assert await entry("backend", "unix:uid:1000") == "entry_uid_shared"
    await world.commit(world.admin.delete_entry(entry_id=alone, cause=cause()))
    assert len(await entry("backend", "unix:uid:2000")) == 26


async def test_two_servers_cannot_share_a_uid_out_together(world: World) -> None:
    await world.owner()
    for name in ("one", "two"):
        await world.agent(name, kind=Kind.SERVICE, launch_uids=(), nodes=frozenset())
    demand = Demand(selectors=frozenset({Selector.parse("unix:uid:3000")}), nodes=frozenset({"laptop"}))
    plans = [world.admin.create_entry(name=name, demand=demand, cause=cause()) for name in ("one", "two")]
    launched = world.admin.register(
        Registration(kind=Kind.AGENT, name="three", owner="team-a", launch_uids=(3000,), nodes=frozenset({"laptop"})),
        cause(),
    )
    outcomes = await asyncio.gather(*(world.database.commit(plan.write) for plan in (*plans, launched)))
    assert sorted(outcome.verdict for outcome in outcomes) == ["committed", "conflict", "conflict"]


async def test_entries_follow_an_approval_and_concurrent_ones_do_not_overwrite(world: World) -> None:
    from aims.attestation import LaunchProfile

    await world.owner()
    registered = await world.agent()
    profile = LaunchProfile(executable="a" * 64, head=("/usr/bin/python3", "/opt/a.py"))
    other = LaunchProfile(executable="b" * 64, head=("/usr/bin/python3", "/opt/a.py"))
    first = world.admin.approve(name="researcher", profile=profile, cause=cause("new version"))
    second = world.admin.approve(name="researcher", profile=other, cause=cause())
    await world.commit(first)
    with pytest.raises(ProvisioningError) as late:
        await world.commit(second)
    assert late.value.reason == "changed"
    assert registered.entry is not None
    entry = world.registry.entry(registered.entry.id)
    assert entry.selectors == frozenset({profile.selector()})
    message = world.registry.entry_message(entry)
    assert message["profile"]["executable"] == "a" * 64
    assert message["launch_uids"] == [1000]
    approved = [record for record in world.records() if record["type"] == "identity.approve"]
    assert [record["cause"]["reason"] for record in approved] == ["new version"]
    assert approved[0]["operator"]["user"] == "alice"
    assert approved[0]["prev_state_digest"] != approved[0]["new_state_digest"]


async def test_no_record_holds_an_owners_contact_or_its_digest(world: World) -> None:
    one = world.admin.register_owner(name="team-b", kind="team", contact="b@example.org", cause=cause())
    other = world.admin.register_owner(name="team-b", kind="team", contact="c@example.org", cause=cause())
    await world.commit(one)
    with pytest.raises(ProvisioningError) as taken:
        await world.commit(other)
    assert taken.value.reason == "name_taken"
    assert world.registry.owner("team-b").contact == "b@example.org"
    record = next(record for record in world.records() if record["resource"] == "owner:team-b")
    assert "example.org" not in repr(record)
    assert record["new_state_digest"] == digest(replace(world.registry.owner("team-b"), contact="guess"))


async def test_memory_that_follows_the_feed_equals_memory_that_was_loaded(world: World) -> None:
    seen: list[Applied] = []
    stop = world.registry.watch(seen.append)
    await world.owner()
    registered = await world.agent()
    await world.agent("service", kind=Kind.SERVICE)
    await world.node()
    await world.commit(world.admin.ban_node(node_id="laptop", cause=cause()))
    assert registered.entry is not None
    await world.commit(world.admin.delete_entry(entry_id=registered.entry.id, cause=cause()))
    with world.database.reading() as connection:
        loaded = Registry.load(connection, world.registry.trust_domain)
    assert loaded.seq == world.registry.seq
    for name in ("owners", "workloads", "entries"):
        assert set(getattr(loaded, name)) == set(getattr(world.registry, name))
    assert [node.id for node in loaded.nodes] == ["laptop"]
    assert [applied.kind for applied in seen].count("entry") == 3
    count = len(seen)
    stop()
    await world.owner("team-c")
    assert len(seen) == count


async def test_a_node_is_told_of_its_own_entries_alone(world: World) -> None:
    await world.owner()
    await world.node("laptop")
    await world.node("desk", frozenset({Selector.parse("node:room:5"), Selector.parse("node:os:linux")}))
    mine = await world.agent("mine")
    yours = await world.agent("yours", nodes=frozenset({"desk"}))
    seen: list[Applied] = []
    world.registry.watch(seen.append)
    demand = Demand(
        selectors=frozenset({Selector.parse("launch:unmeasured")}),
        node_selectors=frozenset({Selector.parse("node:room:5")}),
    )
    third = await world.commit(world.admin.create_entry(name="mine", demand=demand, cause=cause()))
    assert mine.entry is not None
    assert yours.entry is not None
    assert {entry.id for entry in world.registry.entries_for("laptop")} == {mine.entry.id}
    assert {entry.id for entry in world.registry.entries_for("desk")} == {yours.entry.id, third.id}
    assert world.registry.difference(seen[-1], "laptop") == ((), ())
    assert world.registry.difference(seen[-1], "desk") == ((third,), ())
    moved = Demand(selectors=demand.selectors, nodes=frozenset({"laptop"}))
    after = await world.commit(world.admin.update_entry(entry_id=third.id, demand=moved, cause=cause()))
    assert world.registry.difference(seen[-1], "desk") == ((), (third.id,))
    assert world.registry.difference(seen[-1], "laptop") == ((after,), ())
    await world.commit(world.admin.ban_node(node_id="desk", cause=cause()))
    assert world.registry.difference(seen[-1], "desk") is None
    assert world.registry.entries_for("desk") == ()
