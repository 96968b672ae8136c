"""The node's stream: every line is passed on, and whatever is wrong with it begins it again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, cast

import msgspec
import pytest
from tests.flows.provisioning_world import DOMAIN, World, open_world

from aims.clock import IdSource, SystemClock
from aims.credentials.bundle import Bundle
from aims.node import messages, watching
from aims.node.errors import NodeError
from aims.node.pauses import Backoff
from aims.node.server_client import ServerClient, ServerRefusedError
from aims.node.server_state import ServerState
from aims.node.watching import Watch
from aims.provisioning.bundles import domain_bundle
from aims.storage.database import Database

PATIENCE = 10.0


class Streams:
    """A client whose streams are scripted: lines, or an error; after the last one the stream stays open."""

    def __init__(self, *scripts: list[dict[str, Any] | bytes | NodeError]) -> None:
        self._scripts = list(scripts)
        self.begun = 0
        self.judged_anew = 0
        self.over = asyncio.Event()

    async def watch(self, silence: float) -> AsyncGenerator[bytes, None]:
        assert silence == 10.0
        script = self._scripts[self.begun] if self.begun < len(self._scripts) else []
        self.begun += 1
        for item in script:
            if isinstance(item, NodeError):
                raise item
            yield item if isinstance(item, bytes) else msgspec.json.encode(item)
        if self.begun >= len(self._scripts):
            self.over.set()
            await asyncio.Event().wait()

    async def reconnect(self) -> None:
        self.judged_anew += 1


@pytest.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> World:
    world = await open_world(database, clock, ids)
    await world.owner()
    await world.node("laptop")
    await world.agent()
    return world


class Node:
    """A watch with its memory, and all that it passed on."""

    def __init__(self, world: World, streams: Streams) -> None:
        self.state = ServerState(DOMAIN, world.clock)
        self.heard: list[messages.Message] = []
        self.believed: list[Bundle] = []
        self.streams = streams
        self.watch = Watch(cast("ServerClient", streams), self.state, self.believed.append, self.heard.append)

    async def run(self) -> None:
        """Follow the script to its end."""
        task = asyncio.create_task(self.watch.keep())
        try:
            await asyncio.wait_for(self.streams.over.wait(), PATIENCE)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGAIN", "REFUSED"):
        monkeypatch.setattr(watching, name, Backoff(first=0.001, most=0.001))


def _state(world: World, **more: Any) -> dict[str, Any]:
    registry = world.registry
    document = {
        "type": "state",
        "seq": registry.seq,
        "entries": [registry.entry_message(entry) for entry in registry.entries_for("laptop")],
        "bundle": msgspec.json.decode(domain_bundle(world.keeper.authority).build()),
        "stops": [],
        "settings": {"trust_domain": "local.test", "max_stale": 10, "heartbeat": 2},
    }
    return document | more


async def test_every_line_is_passed_on_in_its_order(world: World) -> None:
    seq = world.registry.seq
    stop = {"type": "stop", "kind": "person", "id": "person:x", "seq": seq, "blocked": True}
    node = Node(world, Streams([_state(world), stop, {"type": "heartbeat", "seq": seq}]))
    await node.run()
    kinds = [type(message) for message in node.heard]
    assert kinds == [messages.FullState, messages.Stopped, messages.Heartbeat]
    assert (node.state.known, node.state.fresh, node.watch.problem) == (True, True, None)
    assert node.believed == [node.state.bundle]
    assert node.streams.begun == 1


async def test_what_is_wrong_begins_the_stream_again_and_is_not_passed_on(world: World) -> None:
    seq = world.registry.seq
    node = Node(
        world,
        Streams(
            [NodeError("server_unreachable")],
            [_state(world)],
            [{"type": "heartbeat", "seq": seq}],
            [b"{"],
            [_state(world), {"type": "heartbeat", "seq": seq - 1}],
            [_state(world), {"type": "more", "seq": seq}],
            [_state(world)],
        ),
    )
    known: list[bool] = []
    original = node.state.lost

    def lost() -> None:
        original()
        known.append(node.state.known)

    node.state.lost = lost  # type: ignore[method-assign]  # observed
    await node.run()
    assert node.streams.begun == 7
    assert known == [False] * 4
    assert {type(message) for message in node.heard} == {messages.FullState}
    assert len(node.heard) == 4
    assert node.state.known


async def test_a_changed_bundle_is_believed_and_judges_the_server_anew(world: World) -> None:
    first = _state(world)
    bundle = msgspec.json.decode(msgspec.json.encode(first["bundle"]))
    bundle["spiffe_sequence"] += 1
    node = Node(
        world,
        Streams(
            [first, {"type": "bundle", "seq": first["seq"], "bundle": bundle}, {"type": "heartbeat", "seq": 10**6}],
            [_state(world, bundle=bundle)],
        ),
    )
    await node.run()
    assert [each.sequence for each in node.believed] == [bundle["spiffe_sequence"] - 1, bundle["spiffe_sequence"]]
    assert (node.streams.judged_anew, node.streams.begun) == (1, 2)
    assert node.state.seq < 10**6


async def test_a_server_that_knows_the_node_no_more_takes_every_entry(world: World) -> None:
    banned = ServerRefusedError(403, "provisioning.node_banned", "The node is banned.", "")
    node = Node(world, Streams([_state(world)], [banned], []))
    seen: list[int] = []
    node.state.on_change(lambda: seen.append(len(node.state.entries)))
    await node.run()
    assert seen == [1, 0]
    assert node.watch.problem is banned
