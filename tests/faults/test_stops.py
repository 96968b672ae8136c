"""A stop while 200 tokens are on their way at two workers: nothing from before it counts once it has answered."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from tests.faults.token_server import CLOCK, Agent, Node, TokenServer, token_id
from tests.faults.wire import Heard, Wire, close_wires, post, shared_wires
from tests.flows.provisioning_world import DOMAIN
from tests.flows.token_world import NOTES

from aims.authentication.liveness import Liveness, StopLine, StopView
from aims.authorization.access_token import AccessTokenVerifier, Presentation
from aims.authorization.routes import JWKS
from aims.jose import KeySet
from aims.jose.jwks import parse_jwks
from aims.node.server_client import ServerRefusedError

RUNS = 25
"""With each back end."""
IN_FLIGHT = 200
CONNECTIONS = IN_FLIGHT + 8
RUN_SECONDS = 60.0
ENDED = {(401, "authorization.client_stopped"), (401, "authorization.client_unknown")}
"""What a stopped client is told: that it was stopped, or that no active agent has this name."""


@dataclass(slots=True)
class Run:
    """Connections that ask without pause; after ``answers`` tokens the stop is sent on a connection of its own."""

    agent: Agent
    admin: Wire
    answers: int
    tokens: list[str] = field(default_factory=list)
    flying: int = 0
    in_flight: int = 0
    answered: Heard | None = None
    sending: asyncio.Task[None] | None = None

    async def go(self, wires: list[Wire]) -> None:
        await asyncio.gather(*map(self._ask, wires))
        assert self.sending is not None
        await self.sending

    async def _ask(self, wire: Wire) -> None:
        """Ask until a request was refused that was sent after the stop had answered."""
        last = False
        while not last:
            octets = self.agent.asking()
            last = self.answered is not None
            self.flying += 1
            heard = await wire.ask(octets)
            self.flying -= 1
            if heard.status != 200:
                # before the stop: a worker that has not heard yet that the agent was resumed
                assert (heard.status, heard.code) in ENDED
                continue
            assert not last, "a token for a request that was sent after the stop had answered"
            self.tokens.append(str(heard.json["access_token"]))
            if len(self.tokens) == self.answers:
                self.in_flight = self.flying
                self.sending = asyncio.create_task(self._stop())
        assert len(self.tokens) >= self.answers

    async def _stop(self) -> None:
        self.answered = await self.admin.ask(_administering("suspend"))


def _administering(verb: str) -> bytes:
    return post(f"/admin/v1/agents/{verb}", "aims", json.dumps({"name": "alpha"}).encode())


class Order:
    """Copies every record inside its transaction, in an order that the database gives.

    A stop has the database for itself while it commits, so what stands behind it was committed after it.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._run(
            "CREATE TABLE witness (n {}, body {} NOT NULL)",
            ("INTEGER PRIMARY KEY AUTOINCREMENT", "BLOB"),
            ("BIGSERIAL PRIMARY KEY", "BYTEA"),
        )
        if self._lite:
            copying = "BEGIN INSERT INTO witness (body) VALUES (NEW.body); END"
            self._run(f"CREATE TRIGGER copied AFTER INSERT ON outbox {copying}")
        else:
            copying = "BEGIN INSERT INTO witness (body) VALUES (NEW.body); RETURN NULL; END"
            self._run(f"CREATE FUNCTION copy() RETURNS trigger LANGUAGE plpgsql AS $$ {copying} $$")
            self._run("CREATE TRIGGER copied AFTER INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION copy()")

    @property
    def _lite(self) -> bool:
        return self._url.startswith("sqlite:///")

    def _run(self, statement: str, lite: tuple[str, ...] = (), big: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
        text = statement.format(*(lite if self._lite else big)) if lite else statement
        if self._lite:
            connection = sqlite3.connect(self._url.removeprefix("sqlite:///"), timeout=10.0)
            try:
                with connection:
                    return connection.execute(text).fetchall()
            finally:
                connection.close()
        with psycopg.connect(self._url, autocommit=True) as server:
            cursor = server.execute(text.encode())
            return cursor.fetchall() if cursor.description else []

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(bytes(row[0])) for row in self._run("SELECT body FROM witness ORDER BY n")]


class Resource:
    """A resource at which the tokens are shown, with the verifier and the view of stops that real ones have."""

    def __init__(self, issuer: str, keys: KeySet, seq: int) -> None:
        self._verifier = AccessTokenVerifier(issuer, keys)
        self._view = StopView(CLOCK, DOMAIN)
        self._view.full(seq, ())
        self._view.heartbeat(seq)

    def hear(self, seq: int, agent: str, *, blocked: bool) -> None:
        """Take a line of the feed about the agent."""
        number = self._view.number
        assert number is not None
        self._view.advance(number, seq, StopLine("agent", agent, seq, blocked))
        self._view.heartbeat(seq)

    def judge(self, texts: list[str], agent: Agent) -> set[Liveness]:
        """Accept every token from whoever holds its key, as far as stops allow."""
        shown = Presentation(scheme="DPoP", jkt=agent.key.jkt)
        tokens = [self._verifier.accept(text, shown, audience=NOTES, now=CLOCK.now()) for text in texts]
        return {self._view.check(token.names, token.epoch) for token in tokens}


@pytest_asyncio.fixture
async def folder() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="aims-t-") as name:
        yield Path(name)


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_nothing_that_is_issued_around_a_stop_counts_once_the_stop_has_answered(
    folder: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    url = str(request.getfixturevalue("postgresql_url")) if backend == "postgresql" else ""
    server = TokenServer(folder, url)
    moments = random.Random(backend)  # noqa: S311  not secrets
    issued: set[str] = set()
    began = time.monotonic()
    try:
        await server.start()
        order = Order(url or f"sqlite:///{server.state / 'server' / 'aims.db'}")
        await server.ask("/admin/v1/owners", {"name": "team"})
        node = await Node.join(server, "played")
        entry = await node.register("alpha")
        agent = await node.issue(entry)
        assert agent.svid.fence is not None
        resource = Resource(server.issuer, await _keys(server), agent.svid.fence.epoch)
        admin = await Wire.unix(server.run / "admin.sock")
        for _ in range(RUNS):
            async with asyncio.timeout(RUN_SECONDS):
                wires = await shared_wires(CONNECTIONS, server.mtls_port, agent.context, server.pids())
                run = Run(agent, admin, moments.randrange(20, 2 * IN_FLIGHT))
                await run.go(wires)
                assert run.in_flight >= IN_FLIGHT
                assert run.answered is not None
                assert run.answered.status == 200, run.answered.body
                # the same tokens, before and after the resource has heard of the stop
                assert resource.judge(run.tokens, agent) == {Liveness.OK}
                resource.hear(run.answered.json["seq"], agent.id, blocked=True)
                assert resource.judge(run.tokens, agent) == {Liveness.STOPPED}
                issued.update(map(token_id, run.tokens))
                resumed = (await admin.ask(_administering("resume"))).json["seq"]
                resource.hear(resumed, agent.id, blocked=False)
                assert resource.judge(run.tokens, agent) == {Liveness.STOPPED}, "resuming revives nothing"
                await close_wires(wires[1:])
                agent = await _issued_anew(node, entry)
                issued.update(await _alive_everywhere(server, agent))
                # the certificate of before, over a connection that was open all the time
                heard = await wires[0].ask(run.agent.asking())
                assert (heard.status, heard.code) == (401, "authorization.client_stopped")
                await wires[0].close()
        await admin.close()
        await node.close()
        records = await asyncio.to_thread(order.records)
    finally:
        await server.close()
    sys.stdout.write(f"{len(issued)} tokens in {time.monotonic() - began:.1f} s\n")  # pytest -rP
    assert _after_stops(records) == issued


async def _keys(server: TokenServer) -> KeySet:
    public = await Wire.open(server.public_port, server.public_context())
    request = f"GET {JWKS} HTTP/1.1\r\nhost: localhost:{server.public_port}\r\n\r\n"
    heard = await public.ask(request.encode())
    await public.close()
    return parse_jwks(heard.body).keys("sig", None)


async def _issued_anew(node: Node, entry: str) -> Agent:
    """Have a credential issued as soon as a worker has heard that the agent was resumed."""
    while True:
        try:
            return await node.issue(entry)
        except ServerRefusedError as error:
            if error.server_code not in {"provisioning.identity_suspended", "provisioning.stopped"}:
                raise


async def _alive_everywhere(server: TokenServer, agent: Agent) -> list[str]:
    """Wait until every worker has heard that the agent was resumed; return the tokens that say so."""
    tokens = []
    wires = await shared_wires(4, server.mtls_port, agent.context, server.pids())
    for wire in wires:
        while (heard := await wire.ask(agent.asking())).status != 200:
            assert (heard.status, heard.code) in ENDED
        tokens.append(token_id(heard.json["access_token"]))
    await close_wires(wires)
    return tokens


def _after_stops(records: list[dict[str, Any]]) -> set[str]:
    """Walk through what was committed, in order: nothing behind a stop was decided before it. Return every token."""
    floor = stops = 0
    tokens = set()
    for record in records:
        if record["type"] == "identity.suspend":
            floor, stops = record["change"], stops + 1
        elif record["type"] == "token.issue":
            assert record["token"]["epoch"] >= floor, "committed after a stop, decided before it"
            tokens.add(record["token"]["jti"])
    assert stops == RUNS
    return tokens
