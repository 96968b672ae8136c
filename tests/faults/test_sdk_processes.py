"""The SDK's samples as launched processes: a tool with two workers, an agent, an attacker, and a server that dies."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from tests.faults.nodes import PATIENCE, Talking, World, free_port

from aims.demo.processes import Process, aims

SHIPPED = Path(__file__).parents[2] / "src/aims/policy/shipped"
ROW = """
[[resources]]
name = "{name}"
url = "https://localhost:{port}/{path}"
peer = "/services/tool"
profile = "{profile}"
audiences = ["urn:{name}"]
scopes = {scopes}
max_stale = 3
"""
CEILING = """
[[ceilings]]
name = "agents-at-oauth"
agent = "/agents/*"
resource = "oauth"
scopes = ["refund"]

[[ceilings]]
name = "shared-at-oauth"
posture = "shared-uid"
resource = "oauth"
scopes = ["refund"]

[[ceilings]]
name = "unmeasured-at-oauth"
posture = "unmeasured"
resource = "oauth"
scopes = ["refund"]
"""


class Domain(World):
    """A world whose policy knows the sample tool."""

    def __init__(self, folder: Path, database: str = "") -> None:
        super().__init__(folder)
        self.database = database
        self.port = free_port()
        self.policy = folder / "policy"
        self.policy.mkdir()
        for file in SHIPPED.iterdir():
            (self.policy / file.name).write_bytes(file.read_bytes())
        with (self.policy / "tables.toml").open("a") as tables:
            for name, path, profile, scopes in (
                ("tool", "mcp", "wimse", "[]"),
                ("bound", "mcp-bound", "wimse-method-bound", "[]"),
                ("oauth", "mcp-oauth", "oauth-bound", '["refund", "audit"]'),
            ):
                tables.write(ROW.format(name=name, port=self.port, path=path, profile=profile, scopes=scopes))
            tables.write(CEILING)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/mcp"

    async def start_server(self) -> Process:
        options = {
            "state-dir": str(self.folder / "server"),
            "run-dir": str(self.folder / "s"),
            "port": str(self.ports[0]),
            "mtls-port": str(self.ports[1]),
            "policy": str(self.policy),
        }
        if self.database:
            options["database"] = self.database
        argv = aims("up", *(part for name, value in options.items() for part in (f"--{name}", value)))
        self.server = await Process.start("aims up", argv, log=self.log)
        await self.server.until("ready")
        return self.server

    async def enlist(self, name: str, kind: str = "agent") -> None:
        where = {"launch_uids": [os.getuid()], "nodes": [self.name], "profile": None}
        await self.call("/admin/v1/agents", {"name": name, "kind": kind, "owner": "team", **where})

    async def sample(self, name: str, module: str, *options: str) -> Talking:
        started = await self.run(name, sys.executable, "-m", f"aims.samples.{module}", *options)
        ready = await started.said()
        assert ready["ready"].endswith(f"/{name}")
        return started


async def do(process: Talking, command: str, **arguments: Any) -> Any:
    assert process.process.stdin is not None
    process.process.stdin.write(json.dumps({"do": command, **arguments}).encode() + b"\n")
    return await process.until(lambda line: line.get("do") == command)


@pytest_asyncio.fixture
async def domain() -> AsyncIterator[Domain]:
    with tempfile.TemporaryDirectory(prefix="aims-t-") as folder:
        made = Domain(Path(folder))
        try:
            await made.begin()
            await made.new_node()
            await made.enlist("tool", "service")
            await made.enlist("researcher")
            await made.enlist("mallory")
            yield made
        finally:
            await made.close()


async def ready(domain: Domain, process: Talking) -> None:
    """Wait until the tool's window takes proofs: those of the node's first seconds it does not."""
    async with asyncio.timeout(PATIENCE):
        while (found := await do(process, "fair", url=domain.url))["answer"]["status"] == 503:
            assert found["answer"]["code"] in {"authentication.window_starting", "authentication.state_unknown"}


async def test_a_tool_with_two_workers_serves_its_agent_and_refuses_an_attacker(domain: Domain) -> None:
    workers = [await domain.sample("tool", "tool", "--port", str(domain.port), "--shared-port") for _ in range(2)]
    agent, mallory = await domain.sample("researcher", "agent"), await domain.sample("mallory", "attacker")
    await ready(domain, mallory)
    seen = await do(agent, "call", url=domain.url)
    assert seen["answer"]["agent"] == "spiffe://local.test/agents/researcher", seen
    paid = await do(agent, "call", url=domain.url, tool="refund", arguments={"amount": 7})
    assert paid["answer"] == {"refunded": 7, "by": seen["answer"]["agent"], "for": seen["answer"]["agent"]}
    bound, oauth = domain.url.replace("/mcp", "/mcp-bound"), domain.url.replace("/mcp", "/mcp-oauth")
    assert (await do(agent, "call", url=bound))["answer"]["profile"] == "wimse-method-bound"
    paid = await do(agent, "call", url=oauth, tool="whoami", scope="refund")
    assert (paid["answer"]["profile"], paid["answer"]["scopes"]) == ("oauth-bound", ["refund"]), paid
    wide = await do(agent, "call", url=oauth, tool="whoami", scope="refund audit")
    assert (wide["status"], wide["refused"]) == (400, "authorization.scope_ceiling")
    bare = await do(agent, "call", url=oauth)
    assert (bare["status"], bare["refused"]) == (401, "authorization.token_scheme")
    # what mallory holds honestly is the twin of each move
    assert (await do(mallory, "fair", url=domain.url))["answer"]["status"] == 200
    stolen = (await do(mallory, "leak", url=domain.url))["answer"]
    for move, arguments, code in (
        ("wrong_audience", {}, "wpt_aud"),
        ("expired", {}, "wpt_expired"),
        ("no_proof", {}, "authorization_count"),
        ("bearer", {}, "authorization_scheme"),
        ("other_method", {"url": bound}, "wpt_htm"),
        ("other_url", {}, "wpt_aud"),
        ("stolen_wit", {"wit": stolen["workload-identity-token"]}, "wpt_signature"),
    ):
        answer = (await do(mallory, move, **{"url": domain.url, **arguments}))["answer"]
        assert (answer["status"], answer["code"]) == (401, f"authentication.{code}"), move
        assert answer["challenge"] == "WPT"
    replays = (await do(mallory, "replay", url=domain.url, times=500))["answer"]
    assert (replays["first"], replays["accepted_again"], replays["code"]) == (200, 0, "authentication.wpt_replay")
    assert (await do(mallory, "send", url=domain.url, headers=stolen))["answer"]["status"] == 200, "it was never used"
    assert [worker.process.returncode for worker in workers] == [None, None]


async def test_a_tool_that_hears_nothing_of_stops_lets_nobody_in_until_it_hears_again(domain: Domain) -> None:
    await domain.sample("tool", "tool", "--port", str(domain.port))
    mallory = await domain.sample("mallory", "attacker")
    await ready(domain, mallory)
    assert domain.server is not None
    await domain.server.kill()
    killed = asyncio.get_running_loop().time()
    async with asyncio.timeout(PATIENCE):
        while (answer := (await do(mallory, "fair", url=domain.url))["answer"])["status"] == 200:
            pass
    assert (answer["status"], answer["code"]) == (503, "authentication.state_unknown")
    assert asyncio.get_running_loop().time() - killed < 3.0 + 1.0, "max_stale of the policy's row"
    await domain.start_server()
    async with asyncio.timeout(PATIENCE):
        while (await do(mallory, "fair", url=domain.url))["answer"]["status"] != 200:
            pass
