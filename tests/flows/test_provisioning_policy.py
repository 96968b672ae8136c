"""Every rule and row of the shipped policy that provisioning stands on is used: without it something changes."""

from __future__ import annotations

from collections.abc import Awaitable

import pytest
from tests.flows.provisioning_world import DOMAIN, Policy, World, open_world, request
from tests.mutations import mutations

from aims.clock import IdSource, SystemClock
from aims.errors import AimsError
from aims.policy.bundle import Bundle
from aims.policy.engine import Engine
from aims.policy.tables import Tables
from aims.provisioning.registry.model import Kind
from aims.provisioning.registry.service import Registered
from aims.storage.database import Database

OURS = (
    "rule registered_with_owner",
    "identifiers.agents",
    "identifiers.services",
    "identifiers.nodes",
    "postures.shared-uid",
    "postures.node-uid",
    "postures.unmeasured",
    "lifetimes.x509-svid",
    "lifetimes.wit",
    "lifetimes.wit-unmeasured",
    "lifetimes.jwt-svid",
    "lifetimes.join-token",
)


async def _seen(action: Awaitable[int]) -> str:
    try:
        return f"{await action} s"
    except AimsError as error:
        return error.code


async def _story(world: World, name: str) -> list[str]:
    """Register, join and issue under new names, and note what came of each step."""

    async def token() -> int:
        await world.token(name)
        return 0

    async def register(kind: Kind) -> int:
        await world.agent(f"{name}-{kind}", kind=kind)
        return 0

    async def renew() -> int:
        joined = await world.commit(world.joins.renew(node_id="laptop", csr=request(), request_id="r"))
        return -(-(joined.expires_at - int(world.clock.now())) // 10) * 10

    async def issue(agent: str, kind: str, **evidence: str) -> int:
        registered = registrations[agent]
        shown = world.evidence(*(["launch:unmeasured"] if agent == "unmeasured" else []), **evidence)
        if kind == "jwt":
            application = world.application(registered, ("jwt-svid",), evidence=shown)
            end = (await world.jwt(application, "https://tool.example")).expires_at
        else:
            end = (await world.issue(world.application(registered, evidence=shown))).expires_at
        return -(-(end - int(world.clock.now())) // 10) * 10

    registrations = {
        workload.name: Registered(workload, world.registry.entries_of(workload)[0])
        for workload in world.registry.workloads
        if workload.name in {"measured", "unmeasured"}
    }
    steps: list[Awaitable[int]] = [token(), *(register(kind) for kind in Kind), renew()]
    for agent in ("measured", "unmeasured"):
        for kind in ("both", "jwt"):
            steps += [issue(agent, kind, posture=posture) for posture in ("shared-uid", "node-uid")]
    return [await _seen(step) for step in steps]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_no_rule_or_row_can_be_taken_away_unnoticed(
    database: Database, clock: SystemClock, ids: IdSource
) -> None:
    world = await open_world(database, clock, ids)
    await world.owner()
    await world.node()
    await world.agent("measured")
    await world.agent("unmeasured", profile=None)
    whole = await _story(world, "whole")
    assert all(step.endswith(" s") for step in whole)
    found = dict(mutations(Bundle.shipped()))
    assert set(OURS) <= set(found)
    for number, missing in enumerate(OURS):
        world.policy = Policy(Engine(found[missing]), Tables(found[missing].rows, DOMAIN.name))
        assert await _story(world, f"m{number}") != whole, missing
