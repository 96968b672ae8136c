"""Two processes on one database: what one changes the other learns by the feed, keys included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.flows.provisioning_world import DOMAIN, World, cause, open_world

from aims.clock import IdSource, SystemClock
from aims.keys import Purpose, open_store
from aims.provisioning.authority.keeper import Keeper
from aims.provisioning.authority.model import LIFE, Step
from aims.provisioning.authority.service import PURPOSES, SCHEDULE, AuthorityService
from aims.provisioning.bundles import domain_bundle
from aims.provisioning.registry.memory import Applied, Registry
from aims.storage.database import Database


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  the feed has no event for a test
            await asyncio.sleep(0.01)


@pytest.fixture
async def other(database_url: str, clock: SystemClock, ids: IdSource, tmp_path: Path) -> AsyncIterator[Database]:
    """The same database, open a second time as another process of this host has it."""
    second = Database.open(database_url, clock=clock, ids=ids, folder=tmp_path)
    yield second
    second.close()


@pytest.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource, tmp_path: Path) -> World:
    return await open_world(database, clock, ids, f"file:{tmp_path / 'keys'}")


async def test_a_registry_follows_another_process(world: World, other: Database) -> None:
    await world.owner()
    with other.reading() as connection:
        registry = Registry.load(connection, DOMAIN)
    seen: list[Applied] = []
    end = registry.watch(seen.append)

    def reload() -> None:
        with other.reading() as connection:
            registry.reload(connection)

    other.feed.subscribe(registry.apply, reload)
    other.feed.start(asyncio.get_running_loop())
    await _until(lambda: bool(seen))
    assert [applied.kind for applied in seen] == ["reload"]
    await world.node()
    registered = await world.agent()
    await _until(lambda: registry.seq >= world.registry.seq)
    assert registry.entries_for("laptop") == (registered.entry,)
    assert [applied.kind for applied in seen] == ["reload", "node", "workload", "entry"]
    assert registry.difference(seen[0], "laptop") is None
    await world.commit(world.admin.ban_node(node_id="laptop", cause=cause()))
    await _until(lambda: registry.entries_for("laptop") == ())
    end()


async def test_a_keeper_takes_over_what_another_did(
    world: World, other: Database, clock: SystemClock, ids: IdSource, tmp_path: Path
) -> None:
    uri = f"file:{tmp_path / 'keys'}"
    keeper = Keeper(other, AuthorityService(open_store(uri), uri, DOMAIN, clock, ids), DOMAIN)
    await keeper.open()
    changed: list[str] = []
    other.feed.subscribe(lambda event: changed.append(event.kind), lambda: None)
    other.feed.start(asyncio.get_running_loop())
    await _until(other.feed.fresh)
    clock.offset += LIFE[Purpose.X509_CA] / 2 + 1
    assert await world.keeper.step(Purpose.WIT_SVID, Step.PREPARE, SCHEDULE)
    await _until(lambda: changed == ["authority"])
    # what was done meanwhile is not done again, and the other steps are taken
    assert (Purpose.WIT_SVID, Step.PREPARE) not in await keeper.turn(clock.now())
    assert all(keeper.authority.state.due(each, clock.now()) is None for each in PURPOSES)
    await world.keeper.refresh()
    assert keeper.authority.state == world.keeper.authority.state
    assert domain_bundle(keeper.authority) == domain_bundle(world.keeper.authority)
