"""An audit that cannot be written stops everything: nothing is registered, admitted, rotated or issued unrecorded."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import psycopg
import pytest
import sqlalchemy as sa
from tests.flows.provisioning_world import World, cause, open_world, request

from aims.clock import IdSource, SystemClock
from aims.keys import Purpose
from aims.provisioning.authority.model import Step
from aims.provisioning.authority.service import SCHEDULE
from aims.provisioning.registry import store
from aims.storage.database import Database
from aims.storage.errors import StorageError
from aims.storage.schema import feed_head, once, outbox


def _close_the_audit(url: str) -> None:
    if url.startswith("sqlite:///"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        connection.execute(
            "CREATE TRIGGER closed BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'the audit is closed'); END"
        )
        connection.close()
        return
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(
            "CREATE FUNCTION closed() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'the audit is closed'; END $$"
        )
        server.execute("CREATE TRIGGER closed BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION closed()")


def _state(world: World) -> tuple[object, ...]:
    with world.database.reading() as connection:
        return (
            store.read(connection),
            connection.execute(sa.select(feed_head.c.seq)).scalar_one(),
            connection.execute(sa.select(sa.func.count()).select_from(outbox)).scalar_one(),
            connection.execute(sa.select(once.c.id_hash, once.c.used_by).order_by(once.c.id_hash)).all(),
        )


async def test_what_cannot_be_recorded_does_not_happen(
    database: Database, database_url: str, clock: SystemClock, ids: IdSource
) -> None:
    world = await open_world(database, clock, ids)
    await world.owner()
    await world.node()
    agent = await world.agent()
    assert agent.entry is not None
    token = await world.token()
    keys = world.keeper.authority.state
    before = _state(world)
    _close_the_audit(database_url)
    entry_id = agent.entry.id
    actions: tuple[Callable[[], Awaitable[Any]], ...] = (
        lambda: world.owner("team-b"),
        lambda: world.agent("second"),
        lambda: world.commit(world.admin.approve(name="researcher", profile=None, cause=cause())),
        lambda: world.commit(world.admin.delete_entry(entry_id=entry_id, cause=cause())),
        lambda: world.commit(world.admin.ban_node(node_id="laptop", cause=cause())),
        lambda: world.token("third"),
        lambda: world.commit(world.joins.join(secret=token.secret, node_id="laptop", csr=request(), request_id="r")),
        lambda: world.commit(world.joins.renew(node_id="laptop", csr=request(), request_id="r")),
        lambda: world.issue(world.application(agent)),
        lambda: world.jwt(world.application(agent, ("jwt-svid",)), "https://tool.example"),
        lambda: world.keeper.step(Purpose.X509_CA, Step.PREPARE, SCHEDULE),
    )
    for action in actions:
        with pytest.raises(StorageError):
            await action()
    assert _state(world) == before
    assert world.keeper.authority.state == keys
    # over the wire as well, for a request that would be refused in any case
    status, answer = await world.routes()["join"].handle(b"{}", None)
    assert status == 503
    assert msgspec.json.decode(answer)["error"].startswith("storage.")
    assert _state(world) == before
