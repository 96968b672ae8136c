"""What it costs to authenticate a request with WIT and WPT, beside the bare signature checks that it is made of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from aims.authentication import wpt
from aims.authentication.caller import CallRules, CallVerifier
from aims.authentication.liveness import StopView
from aims.authentication.replay import MemoryWindow, ProofClaim, ReplayWindow
from aims.authentication.request import HttpRequest
from aims.authentication.verified_wit import WitVerifier
from aims.clock import SystemClock, SystemIds
from aims.credentials import wit
from aims.credentials.model import Fence
from aims.identifiers import SpiffeId, TrustDomain
from aims.jose import KeySet, VerificationKey, sign_now
from aims.jose.algorithms import sign_raw
from aims.node.window import FileWindow

ROUNDS = 9
CALLS = 300
URL = "https://tool.bench.test/mcp"


class _Key:
    """A P-256 key in this process."""

    algorithm = "ES256"

    def __init__(self, kid: str) -> None:
        self.kid = kid
        self.private = ec.generate_private_key(ec.SECP256R1())

    def sign_now(self, data: bytes) -> bytes:
        return sign_raw(self.algorithm, self.private, data)

    async def sign(self, data: bytes) -> bytes:
        return self.sign_now(data)


class _Bench:
    """Requests of one workload, and verifiers that remember its WIT (warm) or do not (cold)."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.ids = SystemIds(self.clock)
        self.domain = TrustDomain("bench.test")
        issuer, self.key = _Key("wit-1"), _Key("proof")
        now = int(self.clock.now())
        claims = wit.build_claims(
            SpiffeId.agent(self.domain, "researcher"),
            self.key.private.public_key(),
            "ES256",
            issued_at=now,
            expires=now + 3600,
            fence=Fence("node-1:" + "a" * 26, 7),
        )
        self.wit = sign_now(wit.HEADER, claims, issuer)
        self.anchors = {self.domain.uri: KeySet([VerificationKey("wit-1", "ES256", issuer.private.public_key())])}
        self.stops = StopView(self.clock, self.domain)
        self.stops.full(7, ())

    def request(self) -> HttpRequest:
        claims = wpt.build_claims(
            self.wit, URL, token_id=self.ids.token(), now=self.clock.now(), method="POST", target_uri=URL
        )
        headers: list[tuple[str | bytes, str | bytes]] = [
            (b"host", b"tool.bench.test"),
            (b"content-type", b"application/json"),
            (b"accept", b"application/json, text/event-stream"),
            (b"user-agent", b"bench"),
            (b"content-length", b"120"),
            (b"workload-identity-token", self.wit.encode()),
            (b"authorization", b"WPT " + wpt.issue_now(claims, self.key).encode()),
        ]
        return HttpRequest.of("POST", URL, headers)

    def verifier(self, window: ReplayWindow, *, remembered: int) -> CallVerifier:
        rules = CallRules(profile="wimse-method-bound", url=URL, audiences=frozenset({URL}))
        wits = WitVerifier(self.anchors, own=self.domain, capacity=remembered)
        return CallVerifier(rules, wits, self.stops, window, self.clock)


def _timed(call: Callable[[], object]) -> float:
    start = time.process_time()
    for _ in range(CALLS):
        call()
    return (time.process_time() - start) / CALLS * 1e6


def _authenticate(bench: _Bench, verifier: CallVerifier) -> float:
    requests = [bench.request() for _ in range(CALLS)]
    bench.stops.heartbeat(7)

    async def run() -> float:
        start = time.process_time()
        for request in requests:
            await verifier.authenticate(HttpRequest.of(request.method, request.target_uri, request.fields))
        return (time.process_time() - start) / CALLS * 1e6

    return asyncio.run(run())


def _claim(bench: _Bench, window: FileWindow) -> float:
    expires = int(bench.clock.now()) + 150
    ids = [ProofClaim("wpt", "spiffe://bench.test/agents/a", bench.ids.token(), expires).key for _ in range(CALLS)]

    async def run() -> float:
        start = time.process_time()
        for id_ in ids:
            assert await window.claim([id_]) == [True]
        return (time.process_time() - start) / CALLS * 1e6

    return asyncio.run(run())


def measure() -> dict[str, float]:
    """Return microseconds of processor time by name, each the best of some interleaved rounds."""
    bench = _Bench()
    private, scheme, data = ec.generate_private_key(ec.SECP256R1()), ec.ECDSA(hashes.SHA256()), b"x" * 600
    public, signature = private.public_key(), private.sign(data, scheme)
    with TemporaryDirectory() as folder:
        bench.clock.offset = -1000.0  # windows that have outlived their first minutes
        memory = MemoryWindow(bench.clock)
        file = FileWindow(Path(folder) / "window", bench.clock)
        bench.clock.offset = 0.0
        warm, cold = bench.verifier(memory, remembered=64), bench.verifier(memory, remembered=0)
        works: dict[str, Callable[[], float]] = {
            "raw ES256 verify": lambda: _timed(lambda: public.verify(signature, data, scheme)),
            "WIT known, memory window": lambda: _authenticate(bench, warm),
            "WIT new, memory window": lambda: _authenticate(bench, cold),
            "claim at the node's window": lambda: _claim(bench, file),
            "WPT made": lambda: _timed(bench.request),
        }
        best = {name: min(work() for _ in range(2)) for name, work in works.items()}
        for _ in range(ROUNDS - 2):
            for name, work in works.items():
                best[name] = min(best[name], work())
        file.close()
    return best


def main() -> None:
    """Print the table; the last column is a multiple of the signature checks in the operation."""
    best = measure()
    raw = best["raw ES256 verify"]
    for name, microseconds in best.items():
        checks = 2 if "new" in name else 1
        multiple = f"  x {microseconds / raw / checks:.2f} of {checks}" if name.startswith("WIT") else ""
        print(f"{name:26} {microseconds:8.1f} us{multiple}")


run = main

if __name__ == "__main__":
    main()
