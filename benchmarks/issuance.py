"""Credentials per second through the whole pipeline, beside the bare arithmetic of the same run.

Each request goes through the stages, the policy and the authority, and is answered after its Write was committed to
SQLite with full sync; so many callers wait at a time. ``issue`` is an X509-SVID and a WIT: one verification (of the
request) and two signatures; a JWT-SVID is one signature.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from rich.table import Table
from tests.flows.provisioning_world import World, open_world, proof_jwk, request

from aims.clock import SystemClock, SystemIds
from aims.credentials.model import Fence
from aims.provisioning.authority.service import new_serial
from aims.provisioning.registry.service import Registered
from aims.server.database import migrate
from aims.storage.database import Database
from aims.x509 import parse_csr

CALLERS = 128
PER_CALLER = 8
ROUNDS = 8
PER_ROUND = 500
SCHEME = ec.ECDSA(hashes.SHA256())


def main() -> None:
    signs, verifies = _raw()
    lines = [("raw P-256 signatures", signs, signs), ("raw P-256 verifications", verifies, verifies)]
    # Not in a temporary folder: where that is memory, a synchronous commit costs nothing and proves nothing.
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        lines += asyncio.run(_measure(Path(folder), signs, verifies))
    grid = Table("operation", "per second", "of its own arithmetic", "of raw signatures")
    for what, rate, limit in lines:
        grid.add_row(what, f"{rate:,.0f}", f"{rate / limit:.2f}", f"{rate / signs:.2f}")
    Console(width=100).print(grid)


def _raw() -> tuple[float, float]:
    key = ec.generate_private_key(ec.SECP256R1())
    data = b"x" * 600
    signature = key.sign(data, SCHEME)
    public = key.public_key()
    return _rate(lambda: key.sign(data, SCHEME)), _rate(lambda: public.verify(signature, data, SCHEME))


def _rate(action: Callable[[], object]) -> float:
    """The best of several rounds: other programs on the machine only ever slow one down."""
    rates = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(PER_ROUND):
            action()
        rates.append(PER_ROUND / (time.perf_counter() - started))
    return max(rates)


async def _measure(folder: Path, signs: float, verifies: float) -> list[tuple[str, float, float]]:
    url = f"sqlite:///{folder}/aims.db"
    migrate(url)
    clock = SystemClock()
    ids = SystemIds(clock)
    database = Database.open(url, clock=clock, ids=ids, folder=folder)
    try:
        world = await open_world(database, clock, ids)
        await world.owner()
        await world.node()
        agent = await world.agent()
        both = 1 / (2 / signs + 1 / verifies)
        return [
            ("X509-SVID alone, from a public key", _certificates(world, agent), signs),
            ("issue: X509-SVID and WIT, committed", await _loaded(_issuer(world, agent)), both),
            ("JWT-SVID, committed", await _loaded(_tokens(world, agent)), signs),
        ]
    finally:
        database.close()


def _certificates(world: World, agent: Registered) -> float:
    authority, now = world.keeper.authority, int(world.clock.now())
    key, fence = parse_csr(request()), Fence(world.instance(), 1)
    return _rate(
        lambda: authority.sign_x509(
            agent.workload.spiffe_id, public_key=key, serial=new_serial(world.ids), now=now, lifetime=60, fence=fence
        )
    )


def _issuer(world: World, agent: Registered) -> Callable[[], Awaitable[object]]:
    service, csr, jwk, evidence = world.issuance, request(), proof_jwk(), world.evidence()

    async def issue() -> object:
        application = world.application(agent, evidence=evidence)
        plan = await service.issue(application, csr=csr, proof_key=jwk, request_id=world.ids.new())
        return plan.answer(await world.database.commit(plan.write))

    return issue


def _tokens(world: World, agent: Registered) -> Callable[[], Awaitable[object]]:
    service, evidence = world.issuance, world.evidence()

    async def issue() -> object:
        application = world.application(agent, ("jwt-svid",), evidence=evidence)
        audiences = ("https://tool.example",)
        plan = await service.jwt_svid(application, audiences=audiences, jkt=None, request_id=world.ids.new())
        return plan.answer(await world.database.commit(plan.write))

    return issue


async def _loaded(action: Callable[[], Awaitable[object]]) -> float:
    async def caller() -> None:
        for _ in range(PER_CALLER):
            await action()

    rates = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        rates.append(CALLERS * PER_CALLER / (time.perf_counter() - started))
    return max(rates)


if __name__ == "__main__":
    main()
