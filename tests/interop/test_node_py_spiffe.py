"""The PyPI client `spiffe`, unchanged, in a program that a real node launched beside a real server."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.faults.nodes import PYTHON, World

AUDIENCE = "spiffe://local.test/services/tool"

PROGRAM = f"""
import sys
sys.path[:0] = {[entry for entry in sys.path if entry]!r}
import json, threading
from spiffe import JwtSource, TrustDomain, WorkloadApiClient, X509Source

def say(**facts):
    sys.stdout.write(json.dumps(facts) + "\\n")
    sys.stdout.flush()

with WorkloadApiClient(default_timeout=20) as client:
    context = client.fetch_x509_context()
    domain = TrustDomain("local.test")
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(domain)
    jwt_bundle = client.fetch_jwt_bundles().get_bundle_for_trust_domain(domain)
    token = client.fetch_jwt_svid({{"{AUDIENCE}"}})
    say(
        event="fetched",
        x509=str(context.default_svid.spiffe_id),
        authorities=len(bundle.x509_authorities),
        keys=len(jwt_bundle.jwt_authorities),
        jwt=str(token.spiffe_id),
        audience=sorted(token.audience),
        validated=str(client.validate_jwt_svid(token.token, "{AUDIENCE}").spiffe_id),
    )

with X509Source(timeout_in_seconds=20) as source, JwtSource(timeout_in_seconds=20) as jwt_source:
    rotated = threading.Event()
    before = source.get_x509_context().default_svid.leaf
    source.subscribe_for_updates(rotated.set)
    while source.get_x509_context().default_svid.leaf.serial_number == before.serial_number:
        if not rotated.wait(20):
            raise SystemExit("no rotation seen")
        rotated.clear()
    after = source.get_x509_context().default_svid.leaf
    fresh = after.public_key().public_numbers() != before.public_key().public_numbers()
    say(event="rotated", fresh=fresh, bundles=len(jwt_source.bundles))
"""


@pytest.fixture(autouse=True)
def _needs_py_spiffe() -> None:
    if importlib.util.find_spec("spiffe") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the PyPI package spiffe is not installed")


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory(prefix="aims-p-") as name:
        world = World(Path(name))
        try:
            world.program.write_text(PROGRAM)
            await world.begin()
            await world.new_node()
            yield world
        finally:
            await world.close()


async def test_the_unchanged_client_gets_svids_and_bundles_and_sees_a_rotation(world: World) -> None:
    await world.register("researcher", x509_ttl=10)
    agent = await world.run("researcher", PYTHON, str(world.program))
    researcher = "spiffe://local.test/agents/researcher"
    assert await agent.said() == {
        "event": "fetched",
        "x509": researcher,
        "authorities": 1,
        "keys": 1,
        "jwt": researcher,
        "audience": [AUDIENCE],
        "validated": researcher,
    }
    assert await agent.said() == {"event": "rotated", "fresh": True, "bundles": 1}
