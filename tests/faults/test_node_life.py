"""A node beside its server, as real processes: what launched programs get, and what takes it away again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.faults.nodes import PATIENCE, PYTHON, World

from aims.demo.processes import aims, output_of
from aims.server.admin_client import AdminClient

AGENTS = "spiffe://local.test/agents/"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "postgresql"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    database = ""
    if request.param == "postgresql":
        cluster = request.getfixturevalue("cluster")
        database = cluster.url(cluster.fresh(request.getfixturevalue("postgresql_template")))
    with tempfile.TemporaryDirectory(prefix="aims-n-") as name:
        world = World(Path(name), database)
        try:
            await world.begin()
            yield world
        finally:
            await world.close()


@pytest_asyncio.fixture(loop_scope="module")
async def world(server: World) -> AsyncIterator[World]:
    """A server that all tests share, and a node of this test's own."""
    await server.new_node()
    yield server
    await server.close_node()


async def test_from_launch_to_rotation_to_removal(world: World) -> None:
    await world.register("rotating", x509_ttl=10, jwt_ttl=10)
    agent = await world.run("rotating")
    first = await agent.said()
    assert (first["event"], first["ids"]) == ("x509", [AGENTS + "rotating"])

    # every kind of credential and bundle, to this process
    jwt = await agent.ask("jwt")
    assert jwt["who"] == AGENTS + "rotating"
    assert jwt["claims"]["instance"] == first["instances"][0]
    assert jwt["claims"]["cnf"].keys() == {"jkt"}
    assert (await agent.ask("jwt"))["token"] == jwt["token"], "not kept until its half-life"
    wit = await agent.ask("wit")
    assert (wit["who"], wit["key"]) == (AGENTS + "rotating", "EC")
    assert wit["jwt_bundles"] == wit["x509_bundles"] == list(wit["keys"]) == ["local.test"]

    # the same program, not launched: nothing, by whatever question
    twin = await world.unlaunched()
    assert (await twin.said())["event"] == "withdrawn"
    assert (await twin.ask("jwt"))["code"] == "sdk.denied"

    # fresh keys at half-life on the open stream, and the same instance
    second = await agent.until(lambda found: found["event"] == "x509" and found["serials"] != first["serials"])
    assert second["instances"] == first["instances"]
    assert second["expires"] > first["expires"]

    # another entry appears on the stream, and disappears from it
    (row,) = [row for row in await _entries(world) if row["spiffe_id"] == AGENTS + "rotating"]
    second_entry = {"name": "rotating", "selectors": row["selectors"], "nodes": row["nodes"], "hint": "second"}
    began = time.monotonic()
    made = await world.call("/admin/v1/entries", second_entry)
    both = await agent.until(lambda found: found["event"] == "x509" and len(found["ids"]) == 2)
    print(f"entry created -> SVID: {time.monotonic() - began:.3f} s")  # noqa: T201  a measurement
    assert both["hints"] == ["", "second"]
    await world.call("/admin/v1/entries/delete", {"id": made["id"]})
    await agent.until(lambda found: found["event"] == "x509" and len(found["ids"]) == 1)

    # without any entry the stream ends
    await world.call("/admin/v1/entries/delete", {"id": row["id"]})
    await agent.until(lambda found: found["event"] == "withdrawn")
    assert (await agent.ask("jwt"))["code"] == "sdk.denied"


# Asks as itself, lets a child ask, becomes itself again, and then becomes another file of the same content.
CHANGING = f"""
import sys
sys.path[:0] = {[entry for entry in sys.path if entry]!r}
import asyncio, json, os, shutil, subprocess
from aims.errors import AimsError
from aims.sdk.workload_client import WorkloadClient

async def ask(who):
    async with WorkloadClient() as client:
        try:
            said = str((await client.fetch_x509()).svids[0].spiffe_id)
        except AimsError as error:
            said = error.detail.partition(":")[0]
        print(json.dumps({{"who": who, "said": said}}), flush=True)

who = sys.argv[1] if len(sys.argv) > 1 else "itself"
asyncio.run(ask(who))
if who == "itself":
    subprocess.run([sys.executable, __file__, "child"])
    os.execv(sys.executable, [sys.executable, __file__, "again"])
if who == "again":
    copy = os.path.join(os.path.dirname(__file__), "copy")
    shutil.copy(sys.executable, copy)
    os.execve(copy, [copy, __file__, "copy"], {{**os.environ, "PYTHONHOME": sys.base_prefix}})
"""


async def test_children_and_what_a_program_turns_into_get_nothing(world: World) -> None:
    program = world.folder / "changing.py"
    program.write_text(CHANGING)
    await world.register("changing", program=program)
    agent = await world.run("changing", PYTHON, str(program))
    said = [await agent.said() for _ in range(4)]
    assert {line["who"]: line["said"] for line in said} == {
        "itself": AGENTS + "changing",
        "child": "node.not_entitled",
        "again": AGENTS + "changing",
        "copy": "node.exe_changed",
    }
    # other arguments than the approved ones, and other code, are not started at all
    agent = await world.run("changing", PYTHON, str(program), "child")
    assert await asyncio.wait_for(agent.process.wait(), PATIENCE) == 125
    program.write_text(CHANGING + "# changed")
    agent = await world.run("changing", PYTHON, str(program))
    assert await asyncio.wait_for(agent.process.wait(), PATIENCE) == 125
    assert world.log.read_bytes().count(b"node.launch_mismatch") >= 2


async def test_a_banned_node_gives_nothing_any_more(world: World) -> None:
    await world.register("banned")
    agent = await world.run("banned")
    assert (await agent.said())["ids"] == [AGENTS + "banned"]
    await world.call("/admin/v1/nodes/ban", {"node": world.name})
    assert (await agent.until(lambda found: found["event"] != "x509"))["event"] == "withdrawn"
    assert (await agent.ask("jwt"))["code"] == "sdk.denied"
    assert world.node is not None
    await world.node.end()
    status, text = await output_of(world.node_argv())
    assert status == 1
    assert "provisioning.node_banned" in text


async def test_credentials_go_on_after_a_server_was_killed_and_came_back(world: World) -> None:
    await world.register("recovering", x509_ttl=10)
    agent = await world.run("recovering")
    first = await agent.said()
    assert world.server is not None
    await world.server.kill()
    # what was issued stays good while the server is away: another client of the same process gets it
    assert (await agent.ask("wit"))["who"] == AGENTS + "recovering"
    await world.start_server()
    found = await agent.until(lambda found: found.get("serials", first["serials"]) != first["serials"])
    assert (found["ids"], found["instances"]) == ([AGENTS + "recovering"], first["instances"])


async def test_a_killed_node_ends_its_agents_and_aims_run_says_125(world: World) -> None:
    await world.register("orphan")
    agent = await world.run("orphan")
    await agent.said()
    assert world.node is not None
    os.kill(world.node.pid, signal.SIGKILL)
    assert await asyncio.wait_for(agent.process.wait(), PATIENCE) == 125
    assert b"node.node_gone" in world.log.read_bytes()


async def test_a_launch_that_the_node_refused_is_in_the_audit(world: World) -> None:
    await world.register("refused")
    status, text = await output_of(
        aims("run", "--as", "refused", "--run-dir", str(world.run_dir), "--quiet", "--", "/bin/true")
    )
    assert (status, "node.launch_mismatch" in text) == (125, True), text
    record = (await _audited(world, AGENTS + "refused", "launch.refuse"))[0]
    assert (record["agent"], record["outcome"], record["node"]) == (None, "refused", world.name)
    assert record["cause"] == {"reason": "node.launch_mismatch"}


async def test_an_orderly_end_ends_agents_and_is_in_the_audit(world: World) -> None:
    await world.register("orderly")
    agent = await world.run("orderly")
    instance = (await agent.said())["instances"][0]
    assert world.node is not None
    assert await world.node.end() == 0
    assert await asyncio.wait_for(agent.process.wait(), PATIENCE) == -signal.SIGTERM
    assert not (world.run_dir / "workload.sock").exists()
    await _audited(world, instance, "launch.start", "launch.end")


async def _audited(world: World, what: str, *types: str) -> list[dict[str, Any]]:
    """Wait for these records about launches that say ``what``."""
    arguments = ("audit", "tail", "--count", "1000", "--state-dir", str(world.folder / "server"), "--output", "json")
    async with asyncio.timeout(PATIENCE):
        while True:
            status, text = await output_of(aims(*arguments))
            assert status == 0, text
            records = [json.loads(line) for line in text.splitlines() if what in line]
            found = [record for record in records if record["type"].startswith("launch.")]
            if [record["type"] for record in found] == list(types):
                return found


async def _entries(world: World) -> list[dict[str, Any]]:
    def ask() -> list[dict[str, Any]]:
        with AdminClient(world.folder / "s" / "admin.sock") as client:
            rows: list[dict[str, Any]] = client.call("GET", "/admin/v1/entries")
            return rows

    return await asyncio.to_thread(ask)
