"""Tokens per second at 64 keep-alive TLS connections, beside the bare signatures that each request is made of.

The server is a child process: one event loop with the listeners' own protocol and TLS contexts, one writer thread,
SQLite with synchronous commits. The parent prepares proofs, then only sends, reads and counts. The share is the rate
against the same signature operations run bare, one after another, immediately before and after: the median of some
rounds, because other programs on the machine slow both down. While the server answers, the parent keeps another
processor busy, and where two processors are threads of one core each slows the other; so the bare operations run
beside a busy process too. The last columns are the share of processor time, handshakes left out, and the share
against bare operations on a machine that does nothing else.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from rich.table import Table
from tests.flows.provisioning_world import DOMAIN, proof_jwk, request
from tests.flows.token_world import ISSUER, MTLS, NOTES, ProofKey, TokenWorld, encoded, open_token_world

from aims.authorization.access_token import TOKEN_TYPE
from aims.authorization.client_authentication import ASSERTION_TYPE
from aims.authorization.grants.token_exchange import GRANT_TYPE as EXCHANGE
from aims.authorization.routes import TOKEN, TokenEndpoint
from aims.clock import SystemClock, SystemIds
from aims.credentials.bundle import BundleSet
from aims.credentials.mtls import spiffe_server_context
from aims.provisioning.authority.local import localhost, own_svid
from aims.provisioning.bundles import domain_bundle
from aims.server.database import migrate
from aims.server.http import Listener
from aims.server.node_stream import peer_svid
from aims.server.protocol import BoundedProtocol
from aims.storage.database import Database
from aims.tls import public_server_context

CONNECTIONS = 64
PER_ROUND = 2_560
ROUNDS = 5
SCHEME = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of request: where it goes, whether a proof comes along, and the signatures that the server computes."""

    what: str
    mtls: bool
    proof: bool
    verifications: int
    parameters: dict[str, str]
    floor: float | None


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder, _server(Path(folder)) as facts:
        rows = uvloop.run(_measure(facts))
    grid = Table("request", "per second", "bare: verify + sign", "share", "floor", "of processor time", "bare alone")
    for case, each in rows:
        floor = "" if case.floor is None else f"{case.floor:.2f}"
        bare_text = f"{case.verifications} + 1: {each.bare:,.0f}"
        shares = f"{each.share:.2f}", floor, f"{each.of_processor:.2f}", f"{each.rate / each.alone:.2f}"
        grid.add_row(case.what, f"{each.rate:,.0f}", bare_text, *shares)
    Console(width=130).print(grid)


def _cases(facts: dict[str, Any]) -> list[Case]:
    own = {"grant_type": "client_credentials", "resource": NOTES, "scope": "notes:read"}
    assertion = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": facts["assertion"]}
    certified = {"client_id": facts["agent"]}
    exchange = {
        "grant_type": EXCHANGE,
        "subject_token": facts["handed_on"],
        "subject_token_type": TOKEN_TYPE,
        "resource": NOTES,
        "scope": "notes:read",
    }
    return [
        Case("client credentials, JWT-SVID and DPoP", False, True, 2, own | assertion, 0.30),
        Case("client credentials, X509-SVID and DPoP", True, True, 1, own | certified, 0.30),
        Case("client credentials, X509-SVID alone", True, False, 0, own | certified, None),
        Case("token exchange, X509-SVID and DPoP", True, True, 2, exchange | certified, 0.25),
        Case("token exchange, JWT-SVID and DPoP", False, True, 3, exchange | assertion, 0.25),
    ]


@dataclass(frozen=True, slots=True)
class Round:
    """What one round came to: ``rate``, ``bare`` and ``alone`` per second, the others as shares."""

    share: float
    rate: float
    bare: float
    alone: float
    of_processor: float


async def _measure(facts: dict[str, Any]) -> list[tuple[Case, Round]]:
    key = ProofKey()
    key.private = serialization.load_pem_private_key(facts["key"].encode(), None)  # type: ignore[assignment]  # P-256
    world = _Prover(key)
    rows = []
    with _company() as company:
        for case in _cases(facts):
            rounds = []
            alone, _ = _bare(case.verifications)
            before, before_cost = company(case.verifications)
            for _ in range(ROUNDS):
                rate, cost = await _round(case, facts, world)
                after, after_cost = company(case.verifications)
                bare = (before + after) / 2
                rounds.append(Round(rate / bare, rate, bare, alone, (before_cost + after_cost) / 2 / cost))
                before, before_cost = after, after_cost
            rows.append((case, sorted(rounds, key=lambda each: each.share)[ROUNDS // 2]))
    return rows


@contextmanager
def _company() -> Iterator[Callable[[int], tuple[float, float]]]:
    """A process that computes while bare operations are measured, and sleeps at all other times."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])

    def measure(verifications: int) -> tuple[float, float]:
        other.send_signal(signal.SIGCONT)
        try:
            return _bare(verifications)
        finally:
            other.send_signal(signal.SIGSTOP)

    try:
        other.send_signal(signal.SIGSTOP)
        yield measure
    finally:
        other.kill()
        other.wait(20)


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _bare(verifications: int) -> tuple[float, float]:
    """Return how often in a second, and the processor seconds of one time."""
    key = ec.generate_private_key(ec.SECP256R1())
    data = b"x" * 600
    signature, public = key.sign(data, SCHEME), key.public_key()
    started, busy = time.perf_counter(), time.process_time()
    for _ in range(1_000):
        for _ in range(verifications):
            public.verify(signature, data, SCHEME)
        key.sign(data, SCHEME)
    return 1_000 / (time.perf_counter() - started), (time.process_time() - busy) / 1_000


class _Prover:
    """Makes proofs, with the fields of a test world that it needs."""

    def __init__(self, key: ProofKey) -> None:
        self.clock = SystemClock()
        self.ids = SystemIds(self.clock)
        self.key = key

    def proof(self, url: str) -> bytes:
        return TokenWorld.proof(self, self.key, url).encode()  # type: ignore[arg-type]  # clock and ids are all it uses


async def _round(case: Case, facts: dict[str, Any], prover: _Prover) -> tuple[float, float]:
    """Return answers per second, and the server's processor seconds for one."""
    port = facts["mtls_port" if case.mtls else "public_port"]
    url = (MTLS if case.mtls else ISSUER) + TOKEN
    body = encoded(case.parameters)
    head = (
        b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-www-form-urlencoded\r\n"
        b"content-length: %d\r\n" % (TOKEN.encode(), len(body))
    )

    def one() -> bytes:
        proof = b"dpop: %b\r\n" % prover.proof(url) if case.proof else b""
        return head + proof + b"\r\n" + body

    context = _client_context(facts, mtls=case.mtls)
    shares = [[one() for _ in range(PER_ROUND // CONNECTIONS)] for _ in range(CONNECTIONS)]
    streams = [
        await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost") for _ in shares
    ]
    started, spent = time.perf_counter(), _processor_seconds(facts["pid"])
    await asyncio.gather(*(_send(*stream, share) for stream, share in zip(streams, shares, strict=True)))
    rate = PER_ROUND / (time.perf_counter() - started)
    cost = (_processor_seconds(facts["pid"]) - spent) / PER_ROUND
    for _, writer in streams:
        writer.close()
    return rate, cost


async def _send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, requests: list[bytes]) -> None:
    for octets in requests:
        writer.write(octets)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(body.decode())


def _client_context(facts: dict[str, Any], *, mtls: bool) -> ssl.SSLContext:
    # whom we call is not what is measured
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if mtls:
        context.load_cert_chain(facts["certificate"], facts["tls_key"])
    return context


@contextmanager
def _server(folder: Path) -> Iterator[dict[str, Any]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.token_endpoint", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        facts: dict[str, Any] = json.loads(child.stdout.readline())
        yield facts
    finally:
        child.terminate()
        child.wait(20)


# --- the child


async def _serve(folder: Path) -> None:
    url = f"sqlite:///{folder}/aims.db"
    migrate(url)
    clock = SystemClock()
    ids = SystemIds(clock)
    database = Database.open(url, clock=clock, ids=ids, folder=folder)
    world = await open_token_world(database, clock, ids)
    facts = await _facts(world, folder)
    authority = world.authority
    offered = localhost(authority, clock=clock, ids=ids)
    shown = offered.answer(await database.commit(offered.write))
    public = public_server_context(shown.identity)
    plan = own_svid(authority, epoch=world.seq, clock=clock, ids=ids)
    svid = plan.answer(await database.commit(plan.write))
    mtls = spiffe_server_context(svid.identity, BundleSet([domain_bundle(authority)]), clock, own=DOMAIN)
    servers = []
    for name, listener_url, context, peer in (("public", ISSUER, public, None), ("mtls", MTLS, mtls, peer_svid)):
        endpoint = TokenEndpoint(world.service, world, database, url=listener_url + TOKEN, listener=name, peer=peer)
        servers.append(_uvicorn(Listener(frozenset({"localhost"}), {("POST", TOKEN): endpoint}), context))
    tasks = [asyncio.create_task(server.serve()) for server in servers]
    while not all(server.started for server in servers):  # noqa: ASYNC110  uvicorn offers no event
        await asyncio.sleep(0.01)
    for name, server in zip(("public_port", "mtls_port"), servers, strict=True):
        facts[name] = server.servers[0].sockets[0].getsockname()[1]
    gc.collect()
    gc.freeze()  # as a worker does
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
    await asyncio.gather(*tasks)


def _uvicorn(app: Any, context: ssl.SSLContext) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ssl_context_factory=lambda *_: context,
        )
    )


async def _facts(world: TokenWorld, folder: Path) -> dict[str, Any]:
    giver, agent = await world.agent("giver"), await world.agent("portable")
    # a certificate for a key that the parent can use
    tls_key = ec.generate_private_key(ec.SECP256R1())
    application = world.world.application(agent.registered, instance=agent.instance)
    issued = await world.world.issue(application, csr=request(tls_key), proof_key=proof_jwk(agent.key.private))
    certificate, key = folder / "client.pem", folder / "client.key"
    certificate.write_bytes(b"".join(each.public_bytes(serialization.Encoding.PEM) for each in issued.svid.chain))
    key.write_bytes(_pem(tls_key))
    return {
        "pid": os.getpid(),
        "agent": agent.id,
        "assertion": await world.jwt_svid(agent),
        "handed_on": await world.delegate(giver, agent),
        "key": _pem(agent.key.private).decode(),
        "certificate": str(certificate),
        "tls_key": str(key),
    }


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        uvloop.run(_serve(Path(sys.argv[1])))
    else:
        main()
