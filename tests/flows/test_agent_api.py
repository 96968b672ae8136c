"""agent.sock on a real socket: who may ask, what a watcher hears and in which order, and what may be claimed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from tests.flows.sdk_world import AGENT, EPOCH, OTHER, SERVER, TD, TOOL, Seat, World, resource, world
from tests.flows.workload_api_fake import RawClient, until

from aims.authentication.errors import AuthenticationError
from aims.authentication.liveness import StopLine
from aims.authentication.replay import MemoryWindow, ProofClaim
from aims.node import agent_feed
from aims.node.errors import NodeError
from aims.node.messages import Settings
from aims.node.window_share import Shares
from aims.node.workload_errors import WorkloadApiError
from aims.proto import node_pb2 as pb
from aims.proto import node_service as service
from aims.proto.framing import frame
from aims.sdk.errors import SdkError
from aims.sdk.node_client import NodeClient, fresh
from aims.sdk.node_state import Everything, Line
from aims.sdk.node_window import NodeWindow

URL = "https://localhost:8450/mcp"


@contextlib.asynccontextmanager
async def client(seat: Seat) -> AsyncIterator[NodeClient]:
    made = NodeClient(seat.folder / "agent.sock")
    try:
        yield made
    finally:
        made.close()


def id_of(node: World, number: int, *, seconds: float = 100) -> bytes:
    return ProofClaim("wpt", str(AGENT), f"id-{number}", int(node.clock.now() + seconds)).key


async def test_settings_say_who_asks_and_where_everything_is() -> None:
    async with world({URL: resource(URL, max_stale=4)}) as node, client(await node.seat(TOOL)) as door:
        who, found = await door.settings(5)
        assert (who, found.server, found.trust_domain) == (TOOL, SERVER, TD)
        (row,) = found.of_peer(TOOL)
        assert (row.url, row.id, row.profile, row.audiences, row.max_stale) == (
            URL,
            "tool",
            "wimse",
            frozenset({"urn:tool"}),
            4.0,
        )
        assert found.of_peer(OTHER) == ()


async def test_who_has_no_identity_may_not_ask_and_who_loses_it_is_cut_off() -> None:
    async with world() as node:
        seat = await node.seat(AGENT)
        async with client(seat) as door, contextlib.aclosing(door.watch()) as lines:
            assert isinstance(await anext(lines), Everything)
            claiming = asyncio.create_task(_claim_until_refused(door))
            await until(lambda: claiming.done() or claiming.get_name() == "open")
            seat.withdraw(WorkloadApiError("not_entitled"))
            with pytest.raises(SdkError, match=r"sdk\.denied"):
                await asyncio.wait_for(_last(lines), 5)
            with pytest.raises(SdkError):
                await asyncio.wait_for(claiming, 5)
            with pytest.raises(SdkError, match=r"sdk\.denied"):
                await door.settings(5)
            seat.renew()
            assert (await door.settings(5))[0] == AGENT


async def _claim_until_refused(door: NodeClient) -> None:
    async with door.claims() as stream:
        await stream.send([])
        await stream.answer()
        task = asyncio.current_task()
        assert task is not None
        task.set_name("open")
        await stream.answer()


async def _last(lines: AsyncIterator[Everything | Line]) -> None:
    async for _ in lines:
        pass


async def test_a_watcher_hears_everything_first_and_then_each_line_with_the_number_before_it() -> None:
    async with world() as node:
        node.stop("agent", OTHER)
        node.beat()
        seat = await node.seat(AGENT)
        async with client(seat) as door, contextlib.aclosing(door.watch()) as lines:
            first = await anext(lines)
            assert isinstance(first, Everything)
            assert (first.seq, first.stops) == (EPOCH + 1, (StopLine("agent", str(OTHER), EPOCH + 1, True),))
            beat = await anext(lines)
            assert isinstance(beat, Line)
            assert (beat.after, beat.seq, beat.heartbeat) == (EPOCH + 1, EPOCH + 1, True)
            node.seq += 5  # changes that are nobody's stop
            node.beat()
            node.stop("grant", "g-1")
            node.stop("agent", OTHER, blocked=False)
            node.beat()
            heard = [await anext(lines) for _ in range(4)]
            assert [(line.after - EPOCH, line.seq - EPOCH) for line in heard if isinstance(line, Line)] == [
                (1, 6),
                (6, 7),
                (7, 8),
                (8, 8),
            ]
            assert [line.stop.id for line in heard if isinstance(line, Line) and line.stop] == ["g-1", str(OTHER)]
            node.full()
            assert isinstance(await anext(lines), Everything)


async def test_an_old_heartbeat_comes_with_its_age_and_one_before_a_stop_not_at_all() -> None:
    async with world() as node:
        seat = await node.seat(AGENT)
        node.clock.offset += 4
        async with client(seat) as door:
            async with contextlib.aclosing(door.watch()) as lines:
                await anext(lines)
                beat = await anext(lines)
                assert isinstance(beat, Line)
                assert 3.9 < beat.age < 6
            node.stop("agent", OTHER)
            async with contextlib.aclosing(door.watch()) as lines:
                await anext(lines)
                node.beat()
                beat = await anext(lines)
                assert isinstance(beat, Line)
                assert (beat.seq, beat.age < 1) == (EPOCH + 1, True)


async def test_a_large_table_of_stops_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_feed, "STOPS_IN_MESSAGE", 10)
    async with world() as node:
        for number in range(35):
            node.stop("grant", f"g-{number}")
        async with client(await node.seat(AGENT)) as door, contextlib.aclosing(door.watch()) as lines:
            first = await anext(lines)
            assert isinstance(first, Everything)
            assert sorted(stop.id for stop in first.stops) == sorted(f"g-{number}" for number in range(35))


async def test_a_watcher_that_is_too_slow_gets_everything_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_feed, "MOST_WAITING", 5)
    async with world() as node:
        lines = node.feed.watch()
        assert (await anext(lines)).WhichOneof("line") == "state"
        assert (await anext(lines)).WhichOneof("line") == "heartbeat"
        for number in range(5):
            node.stop("grant", f"g-{number}")
        assert (await anext(lines)).WhichOneof("line") == "stop"
        for number in range(20):
            node.stop("grant", f"h-{number}")
        again = await anext(lines)
        assert again.WhichOneof("line") == "state"
        assert (again.seq, len(again.state.stops)) == (EPOCH + 25, 25)
        await lines.aclose()


def test_settings_that_agents_could_not_read_are_refused() -> None:
    with pytest.raises(NodeError) as refused:
        agent_feed.settings_message(Settings({"trust_domain": "a.test", "resources": {URL: {"id": 7}}}, 10.0, 2.0))
    assert refused.value.code == "node.server_answer"


async def test_an_id_is_spent_once_for_its_identity_over_all_connections() -> None:
    async with world() as node:
        tool, other = await node.seat(TOOL), await node.seat(OTHER)
        ids = [id_of(node, number) for number in range(20)]
        async with (
            client(tool) as one,
            client(tool) as two,
            client(other) as third,
            one.claims() as a,
            two.claims() as b,
            third.claims() as c,
        ):
            answers = []
            for stream, asked in ((a, ids[:15]), (b, ids[10:]), (a, [ids[19], ids[19]]), (c, ids)):
                await stream.send(asked)
                answers.append(fresh(await stream.answer(), len(asked)))
            assert answers == [[True] * 15, [False] * 5 + [True] * 5, [False, False], [True] * 20]
            assert a.complete_since is not None
            await a.send([id_of(node, 99, seconds=-1), id_of(node, 98)])
            assert fresh(await a.answer(), 2) == [False, True]


async def test_a_race_of_claims_over_two_connections_has_one_winner_each() -> None:
    async with world() as node:
        tool = await node.seat(TOOL)
        async with client(tool) as one, client(tool) as two:
            windows = [NodeWindow(one), NodeWindow(two)]
            keeping = [asyncio.create_task(window.keep()) for window in windows]
            await until(lambda: all(window.ready for window in windows))
            for number in range(50):
                one_id = id_of(node, number)
                found = await asyncio.gather(*(windows[n % 2].claim([one_id]) for n in range(16)))
                assert sorted(found) == [[False]] * 15 + [[True]]
            for task in keeping:
                task.cancel()
            await asyncio.wait(keeping)
            with pytest.raises(AuthenticationError, match="window_unavailable"):
                await windows[0].claim([id_of(node, 1000)])


async def _claimed(door: NodeClient, octets: bytes) -> pb.ClaimResponse:
    async with door.claims() as stream:
        await stream.send([octets])
        return await stream.answer()


@pytest.mark.parametrize("octets", [b"x" * 15, b"x" * 17])
async def test_a_claim_that_is_no_list_of_ids_is_refused(octets: bytes) -> None:
    async with world() as node:
        tool = await node.seat(TOOL)
        async with client(tool) as door, RawClient.connect(tool.folder / "agent.sock") as raw:
            answer = await raw.answer(raw.call(service.CLAIM, pb.ClaimRequest(ids=octets)))
            assert (answer.status, answer.code) == (3, "node.call_malformed")
            assert fresh(await _claimed(door, id_of(node, 1)), 1) == [True]
            with pytest.raises(SdkError):
                await _claimed(door, b"x" * 16 * 1025)
            assert fresh(await _claimed(door, b"".join(id_of(node, n) for n in range(2, 1026))), 1024) == [True] * 1024


async def test_a_window_that_is_full_refuses_and_so_does_a_share() -> None:
    async with world() as node:
        node.window = MemoryWindow(node.clock, capacity=3)
        tool = await node.seat(TOOL)
        async with client(tool) as door, door.claims() as stream:
            await stream.send([id_of(node, number) for number in range(3)])
            assert fresh(await stream.answer(), 3) == [True] * 3
            await stream.send([id_of(node, 9)])
            assert fresh(await stream.answer(), 1) is None
    shares = Shares(node.clock, 3)
    shares.require("a", 3)
    shares.note("a", [id_of(node, number, seconds=10) for number in range(3)])
    with pytest.raises(AuthenticationError, match="window_unavailable"):
        shares.require("a", 1)
    shares.require("b", 3)
    node.clock.offset += 11
    shares.require("a", 3)


def said(raw: RawClient, octets: bytes) -> int:
    """Open a stream of claims, send octets on it, and leave it open."""
    number = raw.open(service.CLAIM.path)
    raw.send(number, octets)
    return number


def whole(raw: RawClient, octets: bytes) -> int:
    """The same, with an end."""
    number = raw.open(service.CLAIM.path)
    raw.send(number, octets, end=True)
    return number


async def test_the_guard_of_the_workload_api_guards_this_door_too() -> None:
    async with world() as node:
        tool = await node.seat(TOOL)
        async with RawClient.connect(tool.folder / "agent.sock") as raw:
            for number, status, code in (
                (raw.call(service.SETTINGS, security=()), 3, "node.security_header"),
                (raw.open("/SpiffeWorkloadAPI/FetchX509SVID", end=True), 12, "node.unknown_method"),
                (raw.open("/aims.node.v1.Node/Stop", end=True), 12, "node.unknown_method"),
                (said(raw, b"\x00\x7f\xff\xff\xff"), 8, "node.call_too_large"),
                (said(raw, b"\x01\x00\x00\x00\x00"), 12, "node.call_compressed"),
                (said(raw, frame(b"\xff\xff\xff")), 3, "node.call_malformed"),
                (whole(raw, b"\x00\x00\x00\x00\x09half"), 3, "node.call_malformed"),
            ):
                answer = await raw.answer(number)
                assert (answer.status, answer.code) == (status, code)
            ended = await raw.answer(whole(raw, frame(b"")))
            assert (ended.status, len(ended.messages(service.CLAIM))) == (0, 1)
