"""No record, no token: an audit that cannot be written, and a stop in the middle of many answers."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import psycopg
import pytest
from tests.flows.provisioning_world import World
from tests.flows.token_world import MTLS, NOTES, TOKEN, Agent, TokenWorld, open_token_world

from aims.authorization.model import dead, stored
from aims.authorization.revocation import Cause
from aims.clock import IdSource, SystemClock
from aims.storage.database import Database
from aims.storage.errors import StorageError
from aims.storage.write import Change, Name, Stop, Write

READ = {"resource": NOTES, "scope": "notes:read"}


def _audit(url: str, *, closed: bool) -> None:
    if url.startswith("sqlite:///"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        connection.execute(
            "CREATE TRIGGER closed BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'the audit is closed'); END"
            if closed
            else "DROP TRIGGER closed"
        )
        connection.close()
        return
    with psycopg.connect(url, autocommit=True) as server:
        if closed:
            server.execute(
                "CREATE FUNCTION closed() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION 'the audit is closed'; END $$"
            )
            server.execute("CREATE TRIGGER closed BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION closed()")
        else:
            server.execute("DROP TRIGGER closed ON outbox")


async def test_what_cannot_be_recorded_is_not_issued_exchanged_or_revoked(
    database: Database, database_url: str, clock: SystemClock, ids: IdSource
) -> None:
    world = await open_token_world(database, clock, ids)
    alpha, beta = await world.agent("alpha"), await world.agent("beta")
    own = await world.own(alpha)
    handed_on = await world.delegate(alpha, beta, subject=own)
    seq = world.seq
    _audit(database_url, closed=True)
    answers = [
        await world.mtls_token(alpha, **READ),
        await world.exchange(beta, handed_on, **READ),
        await world.exchange(alpha, own, audience=beta.id, scope="notes:read"),
        await world.revoke(alpha, own),
        # a refusal without its record is no answer either
        await world.mtls_token(alpha, resource=NOTES, scope="nothing"),
    ]
    for answer in answers:
        assert (answer.status, answer.json["error"]) == (503, "temporarily_unavailable")
        assert answer.json["aims_error"].startswith("storage.")
        assert answer.headers["retry-after"] == "1"
        assert "access_token" not in answer.json
    cause = Cause(reason="test", decision={"effect": "permit"})
    with pytest.raises(StorageError):
        await world.revocation.revoke((await world.read(handed_on)).grant_id, cause)
    _audit(database_url, closed=False)
    world.follow()
    assert world.seq == seq
    # nothing was revoked, and everything works again
    assert (await world.exchange(beta, handed_on, **READ)).status == 200


async def test_every_token_has_its_record_and_every_record_its_token(
    database: Database, clock: SystemClock, ids: IdSource
) -> None:
    world = await open_token_world(database, clock, ids)
    agents = [await world.agent(f"agent-{number}") for number in range(4)]
    before = len(world.world.records())

    async def caller(number: int) -> list[str]:
        agent = agents[number % 4]
        return [(await world.mtls_token(agent, **READ)).token for _ in range(40)]

    texts = [text for part in await asyncio.gather(*map(caller, range(16))) for text in part]
    answered = sorted([(await world.read(text)).token_id for text in texts])
    recorded = sorted(record["token"]["jti"] for record in world.world.records()[before:])
    assert len(answered) == 640
    assert recorded == answered


async def test_of_equal_requests_at_two_workers_one_counts(
    database: Database, database_url: str, clock: SystemClock, ids: IdSource, tmp_path: Path
) -> None:
    first = await open_token_world(database, clock, ids)
    alpha = await first.agent("alpha")
    other = Database.open(database_url, clock=clock, ids=ids, folder=tmp_path)
    try:
        world = first.world
        second = TokenWorld(World(other, clock, ids, world.registry, world.keeper, world.policy))
        for _ in range(5):
            proof = first.proof(alpha.key, MTLS + TOKEN)
            asked = [(first, second)[number % 2].mtls_token(alpha, proof=proof, **READ) for number in range(16)]
            answers = await asyncio.gather(*asked)
            assert sorted(answer.status for answer in answers) == [200] + [400] * 15
    finally:
        other.close()


async def _ask(world: TokenWorld, agents: list[Agent], until: asyncio.Event, given: list[str]) -> None:
    while not until.is_set():
        for agent in agents:
            answer = await world.mtls_token(agent, **READ)
            if answer.status == 200:
                given.append(answer.token)


@pytest.mark.parametrize("kind", ["agent", "node"])
async def test_nothing_that_is_issued_beside_a_stop_works_after_it_answered(
    database: Database, clock: SystemClock, ids: IdSource, kind: str
) -> None:
    world = await open_token_world(database, clock, ids)
    agents = [await world.agent(f"agent-{number}") for number in range(2)]
    given: list[str] = []
    until = asyncio.Event()
    tasks = [asyncio.create_task(_ask(world, agents, until, given)) for _ in range(16)]
    async with asyncio.timeout(30):
        while len(given) < 50:  # noqa: ASYNC110  a count of many tasks
            await asyncio.sleep(0)
    name = Name("agent", agents[0].id) if kind == "agent" else Name("node", "laptop")
    line = Change("stop", name.id, b"null", Stop(name, blocked=True))
    # this process reads the feed only at the end: nothing but the fence is in the way
    await world.database.commit(Write(record=lambda _: b"{}", changes=(line,)))
    answered = len(given)
    until.set()
    await asyncio.gather(*tasks)
    world.follow()
    tokens = [await world.read(text) for text in given]
    hit = [token for token in tokens if name in stored(token.names)]
    assert hit
    assert answered >= 50
    assert [token for token in hit if dead(stored(token.names), token.epoch, world.stops) is None] == []
    refused = await world.mtls_token(agents[0], **READ)
    assert refused.refusal == (401, "invalid_client", "authorization.client_stopped")
    alive = await world.mtls_token(agents[1], **READ)
    assert alive.status == (200 if kind == "agent" else 401)
