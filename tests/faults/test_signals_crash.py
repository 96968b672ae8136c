"""Processes that are killed between a stop and its telling, and while an event is taken: one effect, nothing lost."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from tests.faults.test_provisioning_audit import _close_the_audit
from tests.flows.monitoring_world import ISSUER, Signals, open_signals, operator, transmitters
from tests.flows.provisioning_world import URL, open_world, policy
from tests.flows.tls_peer import Authority, Peer, listening

from aims.clock import IdSource, SystemClock, SystemIds
from aims.errors import AimsError
from aims.fetch import Fetcher
from aims.monitoring import store
from aims.monitoring.delivery import Courier
from aims.monitoring.events import ACCOUNT_DISABLED, SESSION_REVOKED
from aims.monitoring.keys import SetKeys
from aims.monitoring.model import Receiver, Remedy
from aims.monitoring.peers import Peers
from aims.monitoring.receiver import SignalReceiver
from aims.monitoring.remediation import Remediation, look
from aims.monitoring.set import parse_set
from aims.monitoring.transmitter import Transmitter
from aims.provisioning.registry.model import State
from aims.provisioning.registry.store import workload
from aims.storage.database import Database
from aims.storage.write import Name

SPAWN = multiprocessing.get_context("spawn")
AGENT = Name("agent", "spiffe://local.test/agents/researcher")
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def child(target: Callable[..., None], *arguments: Any) -> Iterator[tuple[SpawnProcess, Connection]]:
    """A process with a pipe; it is killed at the end, if it still lives."""
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join(10)
        ours.close()


async def _hear(pipe: Connection) -> object:
    assert await asyncio.to_thread(pipe.poll, 30)
    return pipe.recv()


async def _process(url: str, folder: str, keys: str) -> tuple[Signals, Courier]:
    """Another process on the same database: its own memory, its own writer, the same keys."""
    clock = SystemClock()
    ids = SystemIds(clock)
    database = Database.open(url, clock=clock, ids=ids, folder=Path(folder))
    world = await open_world(database, clock, ids, keys)
    world.policy = policy(transmitters)
    peers = Peers(database)
    peers.load()
    transmitter = Transmitter(issuer=ISSUER, as_issuer=URL, receiver=lambda: peers.receiver, clock=clock, ids=ids)
    remediation = Remediation(clock=clock, ids=ids, outgoing=transmitter.outgoing)
    receiver = SignalReceiver(
        database=database,
        peers=peers,
        registry=lambda: world.registry,
        policy=lambda: world.policy,
        remediation=remediation,
        audience=ISSUER,
        as_issuer=URL,
        clock=clock,
        ids=ids,
    )
    set_keys = SetKeys(lambda: world.keeper.authority, world.keeper._service._keys)
    courier = Courier(
        database=database,
        peers=peers,
        keys=set_keys,
        fetcher=Fetcher(),
        clock=clock,
        ids=ids,
        folder=Path(folder),
    )
    return Signals(world, peers, receiver, remediation, None, {}), courier  # type: ignore[arg-type]  # not needed here


def stop_and_stay(pipe: Connection, url: str, folder: str, keys: str) -> None:
    """Commit a stop, say so, and live on without sending anything."""

    async def run() -> None:
        signals, _ = await _process(url, folder, keys)
        world = signals.world
        view = await world.database.read(lambda connection: look(connection, world.registry, AGENT))
        plan = signals.remediation.plan(view, Remedy.SUSPEND, operator(world))
        pipe.send(plan.answer(await world.database.commit(plan.write)).txn)
        await asyncio.Event().wait()

    asyncio.run(run())


def deliver(pipe: Connection, url: str, folder: str, keys: str) -> None:
    """Send what waits."""

    async def run() -> None:
        _, courier = await _process(url, folder, keys)
        await courier.turn()
        pipe.send("delivered")

    asyncio.run(run())


def take(pipe: Connection, url: str, folder: str, keys: str) -> None:
    """Take the events that come through the pipe, and acknowledge each."""

    async def run() -> None:
        signals, _ = await _process(url, folder, keys)
        pipe.send("ready")
        while True:
            await signals.receiver.receive(pipe.recv(), "application/secevent+jwt", "")
            pipe.send("accepted")

    asyncio.run(run())


@pytest_asyncio.fixture
async def signals(
    database: Database, clock: SystemClock, ids: IdSource, tmp_path: Path
) -> AsyncIterator[tuple[Signals, str]]:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    keys = f"file:{folder}"
    world = await open_world(database, clock, ids, keys)
    await world.owner()
    await world.node("laptop")
    await world.agent()
    yield await open_signals(world), keys


def _state(database: Database) -> str:
    with database.reading() as connection:
        return str(connection.execute(sa.select(workload.c.state).where(workload.c.spiffe_id == AGENT.id)).scalar_one())


def _jtis(peer: Peer) -> list[str]:
    return [parse_set(request.partition(b"\r\n\r\n")[2]).parsed.unverified["jti"] for request in peer.requests]


async def test_a_stop_whose_process_dies_before_sending_is_told_after_the_restart(
    signals: tuple[Signals, str], database_url: str, tmp_path: Path
) -> None:
    ours, keys = signals
    killed: list[SpawnProcess] = []

    async def answer(_request: bytes, writer: asyncio.StreamWriter) -> None:
        if killed:
            writer.write(ACCEPTED)
            return
        killed.append(courier_process)
        courier_process.kill()  # it got through, and nobody noted it

    async with listening(answer, Authority()) as peer:
        await ours.configured(
            Receiver(
                url=peer.url(),
                audience="https://rp.example",
                events=frozenset({SESSION_REVOKED}),
                private=True,
                ca=peer.ca,
            )
        )
        # 1. killed after the commit, before anything was sent
        with child(stop_and_stay, database_url, str(tmp_path), keys) as (process, pipe):
            txn = await _hear(pipe)
            process.kill()
            await asyncio.to_thread(process.join, 10)
        assert peer.requests == []
        assert _state(ours.world.database) == State.SUSPENDED
        (row,) = ours.waiting()
        assert (row["txn"], row["state"]) == (txn, "waiting")
        # 2. killed after it was sent, before that was noted
        with child(deliver, database_url, str(tmp_path), keys) as (courier_process, _):
            await asyncio.to_thread(courier_process.join, 30)
        assert killed == [courier_process]
        assert [row["state"] for row in ours.waiting()] == ["waiting"]
        # 3. the third process sends the same event again: a receiver knows it by its jti
        with child(deliver, database_url, str(tmp_path), keys) as (last, pipe):
            assert await _hear(pipe) == "delivered"
            await asyncio.to_thread(last.join, 10)
        assert [row["state"] for row in ours.waiting()] == ["sent"]
        assert _jtis(peer) == [row["jti"]] * 2
    records = ours.world.records()
    assert [record["type"] for record in records].count("identity.suspend") == 1


async def test_a_process_that_is_killed_while_it_takes_an_event_leaves_all_of_it_or_nothing(
    signals: tuple[Signals, str], database_url: str, tmp_path: Path
) -> None:
    ours, keys = signals
    chance = random.Random(7)  # noqa: S311  a repeatable choice of moments, no secret
    names = [f"a{number}" for number in range(4)]
    for name in names:
        await ours.world.agent(name)
    for name in names:
        token = ours.token(f"spiffe://local.test/agents/{name}", ACCOUNT_DISABLED)
        with child(take, database_url, str(tmp_path), keys) as (process, pipe):
            assert await _hear(pipe) == "ready"
            pipe.send(token)
            await asyncio.to_thread(pipe.poll, chance.uniform(0, 0.02))
            process.kill()
            await asyncio.to_thread(process.join, 10)
        # the transmitter heard nothing, so it sends the event again
        assert await ours.push(token) == ""
        ours.world.follow()
        assert ours.world.registry.workload(name).state is State.SUSPENDED
    assert [applied for _, _, applied in ours.stored()] == ["done"] * 4
    records = [record for record in ours.world.records() if record["type"] == "identity.suspend"]
    assert sorted(record["resource"].rpartition("/")[2] for record in records) == names


async def test_what_cannot_be_recorded_stops_nobody_and_is_not_acknowledged(
    signals: tuple[Signals, str], database_url: str
) -> None:
    ours, _ = signals
    token = ours.token(AGENT.id, ACCOUNT_DISABLED)
    world = ours.world
    view = await world.database.read(lambda connection: look(connection, world.registry, AGENT))
    plan = ours.remediation.plan(view, Remedy.SUSPEND, operator(world))
    _close_the_audit(database_url)
    seq = world.registry.seq
    with pytest.raises(AimsError) as closed:
        await ours.receiver.receive(token, "application/secevent+jwt", "")
    assert closed.value.layer == "storage"
    with pytest.raises(AimsError):
        await world.database.commit(plan.write)
    world.follow()
    assert world.registry.seq == seq
    assert _state(world.database) == State.ACTIVE
    with world.database.reading() as connection:
        assert not store.is_received(connection, "https://idp.example", parse_set(token).parsed.unverified["jti"])
