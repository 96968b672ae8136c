"""``kill -9`` of the whole server under load, again and again: what was answered stands, what was used stays used."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from tests.faults.token_server import Agent, Node, Person, TokenServer, token_id
from tests.faults.wire import LOST, Heard, Wire, close_wires, open_wires

from aims.demo.processes import aims, output_of

KILLS = 25
"""Of each back end, in one data folder."""
CONNECTIONS = 48
LEAST_IN_FLIGHT = 16
ROUND_SECONDS = 60.0
PAUSE = 0.001  # seconds between the answers of two commits
USED_JOIN = (401, "provisioning.join_refused")
USED_PROOF = (400, "authentication.dpop_replay")
USED_CODE = (400, "authorization.code_used")


@dataclass(slots=True)
class Ledger:
    """What this client saw, over all kills. ``tokens`` are the ids of those that were answered.

    ``joins`` are the nodes that a token was made for, ``codes`` how many a person gave. ``unheard`` counts what turned
    out to be committed although nobody got the answer. The rest counts kills, or the requests that one interrupted.
    """

    tokens: list[str] = field(default_factory=list)
    joins: list[str] = field(default_factory=list)
    codes: int = 0
    unheard: int = 0
    kills_with_unheard: int = 0
    kills_with_unanswered: int = 0
    least_in_flight: int = 10**9

    def note(self, heard: Heard) -> None:
        assert heard.status == 200, heard.body
        self.tokens.append(token_id(heard.json["access_token"]))


@dataclass(slots=True)
class Load:
    """Requests on many connections, each of which sends the next one when it has its answer, until the kill."""

    agent: Agent
    ledger: Ledger
    kill: Callable[[], None]
    answers: int
    """After so many the kill comes, with the first answer of a commit: the others of it are on their way."""
    by_clock: float
    """Seconds after half of ``answers`` at which it comes instead, or 0."""
    latest: float = 0.0
    flying: dict[int, bytes] = field(default_factory=dict)
    shown: list[bytes] = field(default_factory=list)
    in_flight: int = 0
    close_by: asyncio.Event = field(default_factory=asyncio.Event)
    killed: bool = False

    async def run(self, wires: Iterable[Wire]) -> None:
        await asyncio.gather(*(self._send(number, wire) for number, wire in enumerate(wires)))
        assert self.killed

    async def _send(self, number: int, wire: Wire) -> None:
        while True:
            self.flying[number] = octets = self.agent.asking()
            try:
                heard = await wire.ask(octets)
            except LOST:
                return
            del self.flying[number]
            self.shown.append(octets)
            if not self.killed:
                self._count()
            self.ledger.note(heard)

    def _count(self) -> None:
        seen, now = len(self.shown), time.monotonic()
        first, self.latest = now - self.latest > PAUSE, now
        if seen == self.answers // 2:
            self.close_by.set()
            if self.by_clock:
                asyncio.get_running_loop().call_later(self.by_clock, self._strike)
        elif not self.by_clock and (seen >= self.answers if first else seen >= 2 * self.answers):
            self._strike()

    def _strike(self) -> None:
        self.killed = True
        self.in_flight = len(self.flying)
        self.kill()


class World:
    """A server, an agent's credentials, and a person, over all kills of one back end."""

    def __init__(self, server: TokenServer, seed: str) -> None:
        self.server = server
        self.random = random.Random(seed)  # noqa: S311  moments, not secrets
        self.ledger = Ledger()
        self.agent: Agent
        self.person: Person
        self.remembered = b""

    async def begin(self) -> None:
        await self.server.start()
        await self.server.ask("/admin/v1/owners", {"name": "team"})
        node = await Node.join(self.server, "played")
        try:
            self.agent = await node.issue(await node.register("alpha"))
        finally:
            await node.close()
        self.person = await Person.login(self.server, "alpha")

    async def round(self, number: int) -> None:
        """Use things, load, kill, start again, and try everything once more."""
        server, ledger = self.server, self.ledger
        assert server.process is not None
        process, pids = server.process, server.pids()
        joins = [server.joining(await server.join_token(f"n{number}-{which}")) for which in ("early", "late")]
        codes = [await self.person.approve(self.agent) for _ in range(2)]
        ledger.joins += [f"n{number}-early", f"n{number}-late"]
        ledger.codes += 2
        public = await Wire.open(server.public_port, server.public_context())
        wires = await open_wires(CONNECTIONS + 1, server.mtls_port, self.agent.context)
        assert (await public.ask(joins[0])).status == 200
        ledger.note(await wires[0].ask(codes[0]))
        # most kills come when answers arrive, the others at a moment of their own
        load = Load(
            self.agent,
            ledger,
            kill=lambda: os.killpg(process.pid, signal.SIGKILL),
            answers=self.random.randrange(60, 160),
            by_clock=self.random.uniform(0.005, 0.1) if number % 4 == 3 else 0.0,
        )
        late_join, late_code, _ = await asyncio.gather(
            _late(load, public, joins[1]), _late(load, wires[0], codes[1]), load.run(wires[1:])
        )
        if late_code is not None:
            ledger.note(late_code)
        await close_wires([public, *wires])
        await server.gone(process, pids)
        self.remembered = (server.state / "server" / "log" / "checkpoint").read_bytes()
        await server.start()
        before = ledger.unheard
        await self._again(load, joins, codes, late_join, late_code)
        ledger.kills_with_unheard += ledger.unheard > before
        ledger.kills_with_unanswered += bool(load.flying)
        ledger.least_in_flight = min(ledger.least_in_flight, load.in_flight)

    async def _again(
        self, load: Load, joins: list[bytes], codes: list[bytes], late_join: Heard | None, late_code: Heard | None
    ) -> None:
        public = await Wire.open(self.server.public_port, self.server.public_context())
        wires = await open_wires(8, self.server.mtls_port, self.agent.context)
        # whatever was unanswered has happened once or not at all; from here on it has happened
        for octets in load.flying.values():
            self._settle(await wires[0].ask(octets), USED_PROOF)
        if late_code is None:
            self._settle(await wires[0].ask(codes[1]), USED_CODE)
        if late_join is None:
            heard = await public.ask(joins[1])
            assert heard.status == 200 or _told(heard) == USED_JOIN
        spent = [*load.flying.values(), *load.shown[-CONNECTIONS:]]
        shares = [spent[number :: len(wires)] for number in range(len(wires))]
        told = await asyncio.gather(*(_replay(wire, share) for wire, share in zip(wires, shares, strict=True)))
        assert Counter(answer for part in told for answer in part) == {USED_PROOF: len(spent)}
        for octets in codes:
            assert _told(await wires[0].ask(octets)) == USED_CODE
        for octets in joins:
            assert _told(await public.ask(octets)) == USED_JOIN
        await close_wires([public, *wires])

    def _settle(self, heard: Heard, used: tuple[int, str]) -> None:
        if heard.status == 200:
            self.ledger.note(heard)
        else:
            assert _told(heard) == used
            self.ledger.unheard += 1


async def _late(load: Load, wire: Wire, octets: bytes) -> Heard | None:
    """Send something that can be used once shortly before the kill; None if no answer came."""
    await load.close_by.wait()
    try:
        heard = await wire.ask(octets)
    except LOST:
        return None
    assert heard.status == 200, heard.body
    return heard


async def _replay(wire: Wire, requests: list[bytes]) -> list[tuple[int, str]]:
    return [_told(await wire.ask(octets)) for octets in requests]


def _told(heard: Heard) -> tuple[int, str]:
    return heard.status, heard.code


@pytest_asyncio.fixture
async def folder() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="aims-t-") as name:
        yield Path(name)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_what_was_answered_stands_and_what_was_used_stays_used_over_kill_minus_nine(
    folder: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    server = TokenServer(folder, request.getfixturevalue("postgresql_url") if backend == "postgresql" else "")
    world = World(server, backend)
    began = time.monotonic()
    try:
        await world.begin()
        for number in range(KILLS):
            async with asyncio.timeout(ROUND_SECONDS):
                await world.round(number)
    finally:
        await server.close()
    ledger = world.ledger
    told = (
        f"{KILLS} kills in {time.monotonic() - began:.0f} s: {ledger.kills_with_unanswered} with unanswered requests, "
        f"{ledger.kills_with_unheard} with {ledger.unheard} unheard commits; {len(ledger.tokens)} tokens"
    )
    sys.stdout.write(f"{told}\n")  # pytest -rP
    assert ledger.least_in_flight >= LEAST_IN_FLIGHT, told
    assert ledger.kills_with_unanswered >= KILLS // 2, told
    assert ledger.kills_with_unheard >= KILLS // 4, told
    await _compare(server, ledger)
    remembered = folder / "remembered"
    remembered.write_bytes(world.remembered)
    state = ("--state-dir", str(server.state))
    status, text = await output_of(aims("audit", "verify", *state, "--from", str(remembered)))
    assert (status, text.partition(" remembered")[0]) == (0, "consistent since the")


async def _compare(server: TokenServer, ledger: Ledger) -> None:
    """Hold the client's ledger against the log, both ways."""
    records = await server.records()
    issued = Counter(record["token"]["jti"] for record in records if record["type"] == "token.issue")
    assert set(issued.values()) == {1}, "a token has two records"
    assert len(set(ledger.tokens)) == len(ledger.tokens)
    assert set(ledger.tokens) <= set(issued), "an answer without its record"
    assert len(issued) - len(ledger.tokens) == ledger.unheard, "a record without an answer that was not in flight"
    assert sum(1 for record in records if record["type"] == "token.issue" and record.get("chain")) == ledger.codes
    joined = Counter(record["node"] for record in records if record["type"] == "node.join")
    assert joined == Counter(["played", *ledger.joins]), "one join for each token"
