"""What the middleware costs a request, beside the signature checks that it cannot do without: one where the WIT was
seen before (warm), two where it was not (cold)."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from aims.authentication import wpt
from aims.authentication.liveness import StopView
from aims.authentication.replay import MemoryWindow
from aims.authentication.verified_wit import WitVerifier
from aims.clock import SystemClock, SystemIds
from aims.credentials import wit
from aims.credentials.model import Fence
from aims.identifiers import SpiffeId, TrustDomain
from aims.jose import KeySet, VerificationKey, sign_now
from aims.jose.algorithms import sign_raw
from aims.sdk.asgi import Middleware, Service
from aims.sdk.live import Enforcement
from aims.sdk.node_state import Resource, Settings

ROUNDS = 9
CALLS = 400
URL = "https://localhost:8450/mcp"
DOMAIN = TrustDomain("bench.test")
TOOL = SpiffeId.service(DOMAIN, "tool")
MOST = 2.5  # raw checks: reading, proof, replay and what the application gets, all in Python


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


class _Identity:
    """A service whose node has said everything, as far as the middleware asks."""

    def __init__(self, *, remembered: int) -> None:
        self.clock = SystemClock()
        self.ids = SystemIds(self.clock)
        self.spiffe_id = TOOL
        issuer, self.key = _Key("wit-1"), _Key("proof")
        now = int(self.clock.now())
        claims = wit.build_claims(
            SpiffeId.agent(DOMAIN, "researcher"),
            self.key.private.public_key(),
            "ES256",
            issued_at=now,
            expires=now + 3600,
            fence=Fence("node-1:" + "a" * 26, 7),
        )
        self.wit = sign_now(wit.HEADER, claims, issuer)
        stops = StopView(self.clock, DOMAIN)
        stops.full(7, ())
        stops.heartbeat(7)
        keys = KeySet([VerificationKey("wit-1", "ES256", issuer.private.public_key())])
        wits = WitVerifier({DOMAIN.uri: keys}, own=DOMAIN, capacity=remembered)
        resource = Resource(
            url=URL, id="tool", peer=TOOL, profile="wimse", audiences=frozenset({"urn:tool"}), max_stale=10
        )
        self.settings = Settings(
            trust_domain=DOMAIN,
            issuer="https://localhost:8440",
            public_url="https://localhost:8440",
            mtls_url="https://localhost:8441",
            server=SpiffeId.service(DOMAIN, "aims"),
            tls_ca="",
            resources=(resource,),
            max_stale=10,
            heartbeat=2,
        )
        self.enforcement = Enforcement(self.settings, stops, wits)
        past = SystemClock(-10_000)
        self.window = MemoryWindow(past, capacity=2 * ROUNDS * CALLS)
        past.offset = 0

    @property
    def live(self) -> _Identity:
        return self

    def on_change(self, _: object) -> None:
        pass

    def issuer_keys(self) -> None:
        pass

    def scope(self) -> dict[str, Any]:
        claims = wpt.build_claims(self.wit, URL, token_id=self.ids.token(), now=self.clock.now())
        proof = wpt.issue_now(claims, self.key)
        return {
            "type": "http",
            "method": "POST",
            "path": "/mcp",
            "raw_path": b"/mcp",
            "query_string": b"",
            "headers": [
                (b"host", b"localhost:8450"),
                (b"accept", b"application/json, text/event-stream"),
                (b"accept-encoding", b"gzip, deflate"),
                (b"connection", b"keep-alive"),
                (b"user-agent", b"python-httpx2/2.16.2"),
                (b"content-type", b"application/json"),
                (b"content-length", b"120"),
                (b"workload-identity-token", self.wit.encode()),
                (b"authorization", f"WPT {proof}".encode()),
            ],
        }


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"{}", "more_body": False}


async def _app(_: object, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def _calls(app: Any, scopes: list[dict[str, Any]]) -> float:
    statuses: set[int] = set()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.add(message["status"])

    began = time.process_time()
    for scope in scopes:
        await app(scope, _receive, send)
    spent = time.process_time() - began
    assert statuses == {200}
    return spent / len(scopes)


def _raw(key: _Key) -> float:
    data, algorithm = b"x" * 400, ec.ECDSA(hashes.SHA256())
    signature, public = key.private.sign(data, algorithm), key.private.public_key()
    began = time.process_time()
    for _ in range(CALLS):
        public.verify(signature, data, algorithm)
    return (time.process_time() - began) / CALLS


async def _measure(remembered: int) -> tuple[float, float]:
    """Return the seconds that the middleware adds to a request, and those of one bare check."""
    identity = _Identity(remembered=remembered)
    app = Middleware(_app, cast("Service", identity))
    guarded, bare, raw = [], [], []
    for _ in range(ROUNDS):
        guarded.append(await _calls(app, [identity.scope() for _ in range(CALLS)]))
        bare.append(await _calls(_app, [identity.scope() for _ in range(CALLS)]))
        raw.append(_raw(identity.key))
    return min(guarded) - min(bare), min(raw)


def main() -> None:
    """Print the cost of a request and fail when it is over `MOST`."""
    for what, remembered, checks in (("warm", 1024, 1), ("cold", 0, 2)):
        own, raw = asyncio.run(_measure(remembered))
        print(f"{what}: raw ES256 check {raw * 1e6:5.1f} us   middleware {own * 1e6:6.1f} us")
        print(f"      = {own / raw / checks:.2f} times its {checks} raw check(s) (most: {MOST})")
        assert own <= MOST * raw * checks
