"""A flood of what was used already, at two workers of the server and at two of a tool: nothing counts twice."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from tests.faults.test_sdk_processes import Domain, do, ready
from tests.faults.token_server import Agent, Node, Person, TokenServer, token_id
from tests.faults.wire import Heard, Wire, close_wires, post, shared_wires

from aims.samples.attacker import OPENING, PLAIN

WIRES = 32
RACE = 16
PROOFS, PER_PROOF = 40, 200
CODES, PER_CODE = 6, 300
JOINS, PER_JOIN = 5, 40
AT_SERVER = 10_000
"""With each back end: what the three kinds come to."""
AT_TOOL = 10_000
PER_WPT = 500
SECONDS = 150.0
BUSY = (503, "provisioning.busy")
STOPPED = (400, "authorization.stopped")
"""What a worker says of a used code whose grant another worker has ended a moment ago."""

Told = Counter[tuple[int, str]]


@pytest_asyncio.fixture
async def folder() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="aims-t-") as name:
        yield Path(name)


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_nothing_that_was_used_counts_again_at_either_worker(
    folder: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    server = TokenServer(folder, _database(backend, request))
    try:
        async with asyncio.timeout(SECONDS):
            await server.start()
            await server.ask("/admin/v1/owners", {"name": "team"})
            node = await Node.join(server, "played")
            agent = await node.issue(await node.register("alpha"))
            await node.close()
            person = await Person.login(server, "alpha")
            wires = await shared_wires(WIRES, server.mtls_port, agent.context, server.pids())
            public = await shared_wires(RACE, server.public_port, server.public_context(), server.pids())
            began = time.monotonic()
            given, *told = await _flood(agent, person, wires, public)
            sys.stdout.write(f"{AT_SERVER} in {time.monotonic() - began:.1f} s\n")  # pytest -rP
            await close_wires([*wires, *public])
    finally:
        await server.close()
    proofs, codes, joins = told
    assert sum(kind.total() for kind in told) == AT_SERVER
    assert proofs == {(400, "authentication.dpop_replay"): PROOFS * PER_PROOF}
    assert codes[400, "authorization.code_used"] + codes[STOPPED] == codes.total() == CODES * PER_CODE
    assert joins == {(401, "provisioning.join_refused"): JOINS * PER_JOIN}
    records = await server.records()
    issued = [record["token"]["jti"] for record in records if record["type"] == "token.issue"]
    assert sorted(issued) == sorted(given)
    joined = Counter(record["node"] for record in records if record["type"] == "node.join")
    assert joined == Counter(["played", *(f"n{number}" for number in range(JOINS))])
    refusing = {record["writer"] for record in records if record["type"] == "token.refuse"}
    assert len(refusing) == 2, "both workers refused"


async def _flood(
    agent: Agent, person: Person, wires: list[Wire], public: list[Wire]
) -> tuple[list[str], Told, Told, Told]:
    """Use everything up in races, then show it again; return the tokens and what the replays were told."""
    given: list[str] = []
    joins = [agent.server.joining(await agent.server.join_token(f"n{number}")) for number in range(JOINS)]
    joining = asyncio.create_task(_join_again(public, joins))
    proofs, codes = Told(), Told()
    for _ in range(PROOFS // RACE + 1):
        used = [agent.asking() for _ in range(min(RACE, PROOFS - len(given)))]
        given += [await _race(wires, octets) for octets in used]
        proofs += await _send(wires, used, PER_PROOF)
    for _ in range(CODES):
        octets = await person.approve(agent)
        given.append(await _race(wires, octets))
        codes += await _send(wires, [octets], PER_CODE)
    return given, proofs, codes, await joining


async def _race(wires: Sequence[Wire], octets: bytes) -> str:
    """Send one request over many connections at once: of all one succeeds."""
    heard = await asyncio.gather(*(wire.ask(octets) for wire in wires[:RACE]))
    (first,) = (one for one in heard if one.status == 200)
    assert {one.status for one in heard if one is not first} == {400}
    return token_id(first.json["access_token"])


async def _send(wires: Sequence[Wire], used: Sequence[bytes], times: int) -> Told:
    """Send every request so many times, spread over all connections."""
    waiting = [octets for _ in range(times) for octets in used]

    async def empty(wire: Wire) -> Told:
        told = Told()
        while waiting:
            told[_said(await wire.ask(waiting.pop()))] += 1
        return told

    return sum(await asyncio.gather(*map(empty, wires)), Told())


async def _join_again(wires: list[Wire], joins: list[bytes]) -> Told:
    """Use every token in a race, then show it again; a worker looks at ten joins a second and counts the others."""
    told = Told()
    for octets in joins:
        seen = Told()
        while seen[200, ""] != 1:
            seen += Told(map(_said, await asyncio.gather(*(wire.ask(octets) for wire in wires))))
            assert seen.keys() <= {(200, ""), (401, "provisioning.join_refused"), BUSY}
            # with every place of this second taken by others nobody has used it yet
            assert seen[200, ""] == 1 or seen.keys() == {BUSY}
    for octets in joins * PER_JOIN:
        while (said := _said(await wires[told.total() % len(wires)].ask(octets))) == BUSY:
            pass
        told[said] += 1
    return told


def _said(heard: Heard) -> tuple[int, str]:
    return heard.status, heard.code


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_no_proof_counts_again_at_either_worker_of_a_tool(
    folder: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    domain = Domain(folder, _database(backend, request))
    try:
        async with asyncio.timeout(SECONDS):
            await domain.begin()
            await domain.new_node()
            await domain.enlist("tool", "service")
            await domain.enlist("mallory")
            for _ in range(2):
                await domain.sample("tool", "tool", "--port", str(domain.port), "--shared-port")
            mallory = await domain.sample("mallory", "attacker")
            await ready(domain, mallory)
            tools = _tools(domain.port)
            assert len(tools) == 2
            wires = await shared_wires(WIRES, domain.port, _anybody(), tools)
            told = Told()
            began = time.monotonic()
            for _ in range(AT_TOOL // PER_WPT):
                headers = (await do(mallory, "leak", url=domain.url))["answer"]
                assert (await do(mallory, "send", url=domain.url, headers=headers))["answer"]["status"] == 200
                lines = [f"{name}: {value}" for name, value in {**PLAIN, **headers}.items()]
                octets = post("/mcp", f"localhost:{domain.port}", json.dumps(OPENING).encode(), *lines)
                told += await _send(wires, [octets], PER_WPT)
            sys.stdout.write(f"{AT_TOOL} in {time.monotonic() - began:.1f} s\n")  # pytest -rP
            await close_wires(wires)
    finally:
        await domain.close()
    assert told == {(401, "authentication.wpt_replay"): AT_TOOL}


def _database(backend: str, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("postgresql_url")) if backend == "postgresql" else ""


def _anybody() -> ssl.SSLContext:
    # whom we call is not what is tested
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _tools(port: int) -> list[int]:
    """The processes that run the sample tool on this port."""
    end = f"aims.samples.tool\0--port\0{port}\0--shared-port\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = path.read_bytes()
        except OSError:
            continue
        if argv.endswith(end) and b"\0run\0" not in argv:
            found.append(int(path.parent.name))
    return found
