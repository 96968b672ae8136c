"""What an attacker tries with what it holds: its own identity, and what it stole from others.

Each move sends one request that a tool must refuse, and says what came back; ``fair`` and ``send`` are the twins that
show what is accepted. Commands on standard input, one line each, for example::

    {"do": "fair", "url": "https://localhost:8450/mcp"}
    {"do": "leak", "url": ...}                  headers of a good request, for another process to steal
    {"do": "send", "url": ..., "headers": {}}   stolen headers, as they are
    {"do": "stolen_wit", "url": ..., "wit": ...}   somebody's WIT with a key of the attacker's
    {"do": "replay" | "wrong_audience" | "no_proof" | "bearer" | "expired" | "other_method" | "other_url", "url": ...}
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
from cryptography.hazmat.primitives.asymmetric import ec

import aims
from aims.authentication import wpt
from aims.jose.algorithms import sign_raw
from aims.samples.lines import obey, say
from aims.sdk.httpx2 import KnowingTransport

OPENING = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "attacker", "version": "1"},
    },
}
PLAIN = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
FIELDS = ("workload-identity-token", "authorization")


class _OwnKey:
    """A key that no WIT names."""

    algorithm = "ES256"
    kid = "own"

    def __init__(self) -> None:
        self._private = ec.generate_private_key(ec.SECP256R1())

    async def sign(self, data: bytes) -> bytes:
        return self.sign_now(data)

    def sign_now(self, data: bytes) -> bytes:
        return sign_raw(self.algorithm, self._private, data)


class Attacker:
    """The moves of one process."""

    def __init__(self, me: aims.Identity, http: httpx2.AsyncClient) -> None:
        self._me = me
        self._http = http

    async def leak(self, url: str, method: str = "POST", audience: str | None = None) -> dict[str, str]:
        request = next(self._me.auth(audience=audience).auth_flow(httpx2.Request(method, url)))
        return {name: request.headers[name] for name in FIELDS}

    async def send(self, url: str, headers: dict[str, str], method: str = "POST") -> dict[str, Any]:
        body = json.dumps(OPENING).encode() if method == "POST" else None
        answer = await self._http.request(method, url, headers={**PLAIN, **headers}, content=body)
        told = answer.json() if answer.status_code >= 400 and answer.content.startswith(b"{") else {}
        return {
            "status": answer.status_code,
            "code": told.get("error") if isinstance(told.get("error"), str) else None,
            "challenge": answer.headers.get("www-authenticate"),
            "hint": told.get("hint"),
            "stop": told.get("stop"),
        }

    async def fair(self, url: str) -> dict[str, Any]:
        return await self.send(url, await self.leak(url))

    async def replay(self, url: str, times: int = 1) -> dict[str, Any]:
        headers = await self.leak(url)
        first = await self.send(url, headers)
        again = [await self.send(url, headers) for _ in range(times)]
        accepted = sum(answer["status"] < 400 for answer in again)
        return {"first": first["status"], "accepted_again": accepted, **again[-1]}

    async def stolen_wit(self, url: str, wit: str) -> dict[str, Any]:
        return await self._made(url, wit, key=_OwnKey())

    async def wrong_audience(self, url: str) -> dict[str, Any]:
        return await self.send(url, await self.leak(url, audience="https://bank.example/transfer"))

    async def expired(self, url: str) -> dict[str, Any]:
        return await self._made(url, self._me.live.require_proof().wit, age=600)

    async def no_proof(self, url: str) -> dict[str, Any]:
        return await self.send(url, {FIELDS[0]: (await self.leak(url))[FIELDS[0]]})

    async def bearer(self, url: str, token: str = "") -> dict[str, Any]:
        held = await self.leak(url)
        return await self.send(url, {**held, "authorization": f"Bearer {token or held[FIELDS[0]]}"})

    async def other_method(self, url: str) -> dict[str, Any]:
        return await self.send(url, await self.leak(url, method="GET"))

    async def other_url(self, url: str, audience: str | None = None) -> dict[str, Any]:
        return await self.send(url, await self.leak(f"{url}/elsewhere", audience=audience))

    async def _made(self, url: str, wit: str, *, key: _OwnKey | None = None, age: int = 0) -> dict[str, Any]:
        claims = wpt.build_claims(wit, url, token_id=self._me.ids.token(), now=self._me.clock.now() - age)
        proof = wpt.issue_now(claims, key or self._me.live.require_proof())
        return await self.send(url, dict(zip(FIELDS, (wit, f"WPT {proof}"), strict=True)))


async def main() -> None:
    """Do as told until standard input ends."""
    async with aims.Identity() as me:
        transport = KnowingTransport(lambda url: me.ssl_context(url=url))
        async with httpx2.AsyncClient(transport=transport, trust_env=False, timeout=15.0) as http:
            attacker = Attacker(me, http)
            names = (
                *("fair", "leak", "send", "replay", "stolen_wit", "wrong_audience", "expired", "no_proof", "bearer"),
                *("other_method", "other_url"),
            )
            say({"ready": str(me.spiffe_id)})
            await obey({name: getattr(attacker, name) for name in names})


if __name__ == "__main__":
    asyncio.run(main())
