"""What an instance, or a whole node, handed on ends with it on both back ends, whenever it was handed on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio
from tests.flows.monitoring_world import operator, planned
from tests.flows.provisioning_world import cause, proof_jwk, request
from tests.flows.test_signals_routes import Server
from tests.flows.token_world import NOTES, Agent, ProofKey, TokenWorld, open_token_world

from aims.authorization import store as grants
from aims.authorization.model import dead, stored
from aims.clock import IdSource, SystemClock
from aims.monitoring import handed_on
from aims.monitoring.handed_on import HandedOn
from aims.monitoring.model import Applied, Remedied, Remedy
from aims.policy.bundle import Bundle
from aims.provisioning.registry.service import Registered
from aims.server.core import Core
from aims.server.monitoring_routes import monitoring_of
from aims.server.policy_activation import activate
from aims.server.settings import Settings, make_private
from aims.storage.database import Database
from aims.storage.errors import StorageError
from aims.storage.write import Name, Outcome, Write

READ = {"resource": NOTES, "scope": "notes:read"}


async def told(tokens: TokenWorld, subject: Name, remedy: Remedy) -> Remedied:
    """Plan it and commit it, without a second look; read the feed with its stops."""
    plan = await planned(tokens.world, subject, remedy, operator(tokens.world))
    outcome = await tokens.database.commit(plan.write)
    tokens.follow()
    return plan.answer(outcome)


async def works(tokens: TokenWorld, text: str) -> bool:
    token = await tokens.read(text)
    return dead(stored(token.names), token.epoch, tokens.stops) is None


async def taken(tokens: TokenWorld, giver: Agent, taker: Agent) -> str:
    """A right that one instance handed on and another took up."""
    return (await tokens.exchange(taker, await tokens.delegate(giver, taker), **READ)).token


async def run_on(tokens: TokenWorld, registered: Registered, node: str) -> Agent:
    """One more instance of an agent, on a node that its entry names."""
    key, world = ProofKey(), tokens.world
    application = world.application(registered, node_id=node, instance=world.instance(node))
    issued = await world.issue(application, csr=request(), proof_key=proof_jwk(key.private))
    return Agent(registered, issued.svid, application.instance, "node-uid", key)


@dataclass
class Place:
    """An authorization server and the administrator's door over one database, and three nodes with similar names."""

    tokens: TokenWorld
    server: Server
    alpha: Registered
    beta: Agent

    async def on(self, node: str) -> Agent:
        return await run_on(self.tokens, self.alpha, node)

    async def admin(self, path: str, **body: str) -> tuple[int, dict[str, Any]]:
        status, answer = await self.server.admin(path, body)
        self.tokens.follow()
        return status, answer

    async def quarantine(self, agent: Agent) -> tuple[int, dict[str, Any]]:
        return await self.admin("agents/quarantine", instance=agent.instance)

    async def ban(self, node: str) -> tuple[int, dict[str, Any]]:
        return await self.admin("nodes/ban", node=node)

    async def works(self, text: str) -> bool:
        return await works(self.tokens, text)

    def revocations(self) -> list[dict[str, Any]]:
        """The records of second looks that found something."""
        return [record for record in self.tokens.world.records() if record.get("type") == "grant.revoke"]


@pytest_asyncio.fixture
async def place(database: Database, tmp_path: Path, clock: SystemClock, ids: IdSource) -> AsyncIterator[Place]:
    tokens = await open_token_world(database, clock, ids)
    plan = activate(
        Bundle.shipped(),
        before=None,
        now=clock.now(),
        record_id=ids.new(),
        operator={"role": "operator"},
        cause={"admin": "test"},
    )
    plan.answer(await database.commit(plan.write))
    nodes = ("desk_1", "desk-1", "desk")
    for node in nodes:
        await tokens.world.node(node)
    alpha = await tokens.world.agent("alpha", nodes=frozenset({"laptop", *nodes}))
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path)
    make_private(settings.server_dir / "keys")
    core = Core(settings, clock=clock, ids=ids, database=database)
    core.follow()
    database.feed.start(asyncio.get_running_loop())
    async with asyncio.timeout(10):
        await core.loaded.wait()
    yield Place(tokens, Server(core), alpha, await tokens.agent("beta"))


class Between:
    """Does something exactly between the look of a stop and its commit."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Awaitable[None]]) -> None:
        self._commit = database.commit
        self._act = act
        self.done = False
        monkeypatch.setattr(database, "commit", self)

    async def __call__(self, write: Write) -> Outcome:
        kinds = {line.stop.name.kind for line in write.changes if line.stop is not None}
        if not self.done and kinds & {"instance", "node"}:
            await self._act()
            self.done = True
        return await self._commit(write)


async def test_what_a_quarantined_instance_handed_on_ends_with_it(
    database: Database, clock: SystemClock, ids: IdSource
) -> None:
    tokens = await open_token_world(database, clock, ids)
    alpha, beta, gamma = [await tokens.agent(name) for name in ("alpha", "beta", "gamma")]
    twin = await tokens.run(alpha.registered)
    first = await tokens.delegate(alpha, beta)
    taken_up = (await tokens.exchange(beta, first, **READ)).token
    further = (await tokens.exchange(gamma, await tokens.delegate(beta, gamma, subject=first), **READ)).token
    others = [await tokens.own(beta), await taken(tokens, twin, beta)]
    bad = Name("instance", alpha.instance)
    assert alpha.instance not in {name.id for name in (await tokens.read(taken_up)).names}
    records = len(tokens.world.records())
    stopped = await told(tokens, bad, Remedy.QUARANTINE)
    assert (stopped.applied, stopped.seq) == (Applied.DONE, tokens.seq)
    for text in (first, taken_up, further):
        assert not await works(tokens, text)
    for text in others:
        assert await works(tokens, text)
    for agent, text in ((beta, first), (beta, taken_up), (gamma, further)):
        assert (await tokens.exchange(agent, text, **READ)).refusal[2] == "authorization.subject_stopped"
    root = (await tokens.read(taken_up)).grant_id
    ended = tokens.world.records()[records]
    assert (ended["type"], ended["details"]["grants"]) == ("identity.quarantine", root)
    with database.reading() as connection:
        assert [bool(row.revoked) for row in grants.tree(connection, root)] == [True, True]
    # nothing is left: doing it again ends nothing, and a release brings nothing back
    head = tokens.seq
    assert (await told(tokens, bad, Remedy.QUARANTINE)).applied is Applied.ALREADY
    assert tokens.seq == head
    await told(tokens, bad, Remedy.RELEASE)
    for text in (first, taken_up, further):
        assert not await works(tokens, text)


async def test_what_instances_of_a_banned_node_handed_on_ends_in_the_write_of_the_ban(place: Place) -> None:
    tokens, beta = place.tokens, place.beta
    gamma = await tokens.agent("gamma")
    one, two = await place.on("desk_1"), await place.on("desk_1")
    first = await tokens.delegate(one, beta)
    further = (await tokens.exchange(gamma, await tokens.delegate(beta, gamma, subject=first), **READ)).token
    fallen = [(await tokens.exchange(beta, first, **READ)).token, further, await taken(tokens, two, beta)]
    # names that a pattern would take for the node's, the same agent elsewhere, and the taker's own right
    standing = [await taken(tokens, await place.on(node), beta) for node in ("desk-1", "desk", "laptop")]
    standing.append(await tokens.own(beta))
    for text in fallen:
        assert "desk_1" not in {name.id for name in (await tokens.read(text)).names}
    assert (await place.ban("desk_1"))[0] == 200
    assert [await place.works(text) for text in fallen] == [False] * 3
    assert [await place.works(text) for text in standing] == [True] * 4
    for agent, text in ((beta, fallen[0]), (gamma, fallen[1]), (beta, fallen[2])):
        assert (await tokens.exchange(agent, text, **READ)).refusal[2] == "authorization.subject_stopped"
    (record,) = (each for each in tokens.world.records() if each.get("type") == "node.ban")
    roots = {(await tokens.read(text)).grant_id for text in fallen}
    assert (record["type"], record["details"]["grants_ended"]) == ("node.ban", 2)
    assert set(record["details"]["grants"].split()) == roots
    assert record["change"] == tokens.seq, "one Write"
    assert place.revocations() == []


@pytest.mark.parametrize("stop", ["quarantine", "ban"])
async def test_what_is_handed_on_between_look_and_commit_ends_before_the_answer(
    place: Place, stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, beta, bad = place.tokens, place.beta, await place.on("desk")
    untaken: list[str] = []
    late: list[str] = []

    async def hand_on() -> None:
        untaken.append(await tokens.delegate(bad, beta))
        late.append(await taken(tokens, bad, beta))

    early = await taken(tokens, bad, beta)
    between = Between(tokens.database, monkeypatch, hand_on)
    status, _ = await (place.quarantine(bad) if stop == "quarantine" else place.ban("desk"))
    assert (status, between.done) == (200, True)
    for text in (early, *late, *untaken):
        assert not await place.works(text)
    assert (await tokens.exchange(beta, untaken[0], **READ)).refusal[2] == "authorization.subject_stopped"
    (record,) = place.revocations()
    assert record["details"]["grants_ended"] == 2
    assert (record["resource"], record["operator"]["role"]) == (
        bad.instance if stop == "quarantine" else "desk",
        "operator",
    )


async def test_more_than_one_write_holds_ends_in_several(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, bad = place.tokens, await place.on("desk")
    texts = [await taken(tokens, bad, place.beta) for _ in range(5)]
    monkeypatch.setattr(handed_on, "MOST_AT_ONCE", 2)
    assert (await place.ban("desk"))[0] == 200
    assert [await place.works(text) for text in texts] == [False] * 5
    assert [record["details"]["grants_ended"] for record in place.revocations()] == [2, 1]


@pytest.mark.parametrize("stop", ["quarantine", "ban"])
async def test_a_stop_that_cannot_look_again_says_so_and_is_finished_by_its_repetition(
    place: Place, stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, bad = place.tokens, await place.on("desk")
    late: list[str] = []

    async def hand_on() -> None:
        late.append(await taken(tokens, bad, place.beta))

    between = Between(tokens.database, monkeypatch, hand_on)

    monkeypatch.setattr(place.server.core.database, "read", _second_fails(tokens.database.read, between))
    status, answer = await (place.quarantine(bad) if stop == "quarantine" else place.ban("desk"))
    assert (status, answer["error"]) == (503, "monitoring.unfinished")
    stopped = Name("instance", bad.instance) if stop == "quarantine" else Name("node", "desk")
    assert tokens.stops[stopped].blocked
    assert await place.works(late[0])
    monkeypatch.undo()
    status, answer = await (place.quarantine(bad) if stop == "quarantine" else place.ban("desk"))
    assert (status, answer.get("error")) == ((200, None) if stop == "quarantine" else (400, "provisioning.node_banned"))
    assert not await place.works(late[0])


def _second_fails(read: Any, between: Between) -> Any:
    async def reading(question: Any) -> Any:
        if between.done:
            raise StorageError("unreachable")
        return await read(question)

    return reading


@pytest.mark.parametrize("kind", ["instance", "node"])
async def test_a_stop_whose_process_ended_is_finished_by_the_next(
    place: Place, kind: Literal["instance", "node"]
) -> None:
    tokens, world, bad = place.tokens, place.tokens.world, await place.on("desk")
    others = [await taken(tokens, await place.on(node), place.beta) for node in ("desk_1", "desk-1", "laptop")]
    if kind == "instance":
        others.append(await taken(tokens, await place.on("desk"), place.beta))
        write = (await planned(world, Name("instance", bad.instance), Remedy.QUARANTINE, operator(world))).write
    else:
        write = world.admin.ban_node(node_id="desk", cause=cause()).write
    late = await taken(tokens, bad, place.beta)
    await tokens.database.commit(write)
    tokens.follow()
    assert await place.works(late)
    keeping = asyncio.create_task(monitoring_of(place.server.core).keep())
    async with asyncio.timeout(10):
        while not place.revocations():  # noqa: ASYNC110  it tells nobody that it has started
            await asyncio.sleep(0.01)
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
    tokens.follow()
    assert not await place.works(late)
    assert [await place.works(text) for text in others] == [True] * len(others)
    (record,) = place.revocations()
    assert record["cause"] == {"reason": "the stop was not finished by whoever made it"}
    assert await HandedOn(tokens.database, tokens.clock, tokens.ids).catch_up() == 0


async def test_what_is_handed_on_after_a_release_is_not_taken_for_what_was_before(place: Place) -> None:
    tokens, bad = place.tokens, await place.on("desk")
    subject = Name("instance", bad.instance)
    await told(tokens, subject, Remedy.QUARANTINE)
    await told(tokens, subject, Remedy.RELEASE)
    fresh = Agent(bad.registered, (await run_again(tokens, bad)), bad.instance, bad.posture, bad.key)
    text = await taken(tokens, fresh, place.beta)
    finish = HandedOn(tokens.database, tokens.clock, tokens.ids).finish
    assert await finish(subject, operator(tokens.world)) == 0
    assert await HandedOn(tokens.database, tokens.clock, tokens.ids).catch_up() == 0
    assert await place.works(text)
    await told(tokens, subject, Remedy.QUARANTINE)
    assert not await place.works(text)


async def run_again(tokens: TokenWorld, agent: Agent) -> Any:
    """New credentials of an instance that was let go."""
    application = tokens.world.application(agent.registered, node_id="desk", instance=agent.instance)
    return (await tokens.world.issue(application, csr=request(), proof_key=proof_jwk(agent.key.private))).svid
