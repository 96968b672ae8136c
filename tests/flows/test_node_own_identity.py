"""The node's own identity: renewed in time with a key of its own, and never lost on the way."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import cast

import msgspec
import pytest
from tests.flows.provisioning_world import World, open_world

from aims.clock import IdSource, SystemClock
from aims.identifiers import SpiffeId
from aims.jose import base64url
from aims.keys import Purpose
from aims.node import own_identity, pauses
from aims.node.errors import NodeError
from aims.node.own_identity import OwnIdentity
from aims.node.pauses import Backoff, half_life
from aims.node.server_client import ServerClient, Welcome
from aims.node.state import Identity, StateFolder, request_of, welcomed
from aims.storage.database import Database

PATIENCE = 10.0


class Server:
    """Renews by the server's own handler; the first ``away`` calls find nobody."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.identity: Identity | None = None
        self.asked = 0
        self.away = 0

    async def renew(self, csr: bytes) -> Welcome:
        self.asked += 1
        if self.asked <= self.away:
            raise NodeError("server_unreachable")
        assert self.identity is not None
        body = msgspec.json.encode({"csr": base64url.encode(csr).decode()})
        status, octets = await self._world.routes()["renew"].handle(body, self.identity.svid)
        assert status == 200, octets
        return msgspec.json.decode(octets, type=Welcome)


@pytest.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> World:
    return await open_world(database, clock, ids)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "SLICE", 0.01)
    monkeypatch.setattr(own_identity, "_AGAIN", Backoff(first=0.001, most=0.001))


async def _joined(world: World, folder: StateFolder) -> Identity:
    token = await world.token("laptop")
    key = await folder.keys.create(Purpose.NODE)
    body = {
        "secret": base64url.encode(token.secret).decode(),
        "node": "laptop",
        "csr": base64url.encode(request_of(key)).decode(),
    }
    status, octets = await world.routes()["join"].handle(msgspec.json.encode(body), None)
    assert status == 200, octets
    world.follow()
    identity = welcomed(
        msgspec.json.decode(octets, type=Welcome),
        spiffe_id=SpiffeId.node(world.registry.trust_domain, "laptop"),
        key=key,
        public_url=token.url,
        ca=token.ca,
        now=world.clock.now(),
    )
    await folder.save(identity)
    return identity


async def test_it_is_renewed_at_half_life_with_a_fresh_key_and_stored_before_it_is_shown(
    world: World, tmp_path: Path
) -> None:
    folder = StateFolder(tmp_path / "node", world.clock)
    server = Server(world)
    server.identity = before = await _joined(world, folder)
    own = OwnIdentity(before, folder, world.clock)
    rotated = asyncio.Event()
    stored: list[str] = []

    def hear() -> None:
        stored.append((tmp_path / "node" / "node.json").read_text())
        rotated.set()

    own.context.on_change(hear)
    server.away = 3
    task = asyncio.create_task(own.keep(cast("ServerClient", server)))
    try:
        # not before its time
        world.clock.offset += 1500  # of 3600 s
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rotated.wait(), 0.1)
        assert server.asked == 0
        world.clock.offset += 600
        await asyncio.wait_for(rotated.wait(), PATIENCE)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert server.asked == 4, "away three times, then there"
    after = own.identity
    assert after.spiffe_id == before.spiffe_id
    assert after.key.kid != before.key.kid
    assert after.svid.not_after > before.svid.not_after
    assert after.key.kid in stored[0]
    assert await folder.keys.kids(Purpose.NODE) == (after.key.kid,)
    loaded = await folder.load()
    assert loaded is not None
    assert loaded.svid.serial == after.svid.serial
    folder.close()


def test_half_lives_are_spread_and_in_the_middle() -> None:
    moments = {half_life(1000.0, 1100.0) for _ in range(200)}
    assert len(moments) > 100
    assert min(moments) >= 1045.0
    assert max(moments) <= 1055.0
    assert half_life(1000.0, 900.0) == 1000.0


def test_pauses_grow_to_a_bound_and_differ() -> None:
    backoff = Backoff(first=1.0, most=8.0)
    for failures, most in ((0, 1.0), (1, 2.0), (3, 8.0), (10_000, 8.0)):
        pauses_ = {backoff.delay(failures) for _ in range(50)}
        assert len(pauses_) > 10
        assert most / 2 <= min(pauses_) <= max(pauses_) <= most
