"""``aims svid``: what the Workload API gives to this process, without its secrets."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from datetime import timedelta
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter

from aims.cli.output import REFUSED, Output, say

app = App(name="svid", help="What the Workload API gives to this process (keys and tokens are never printed).")

Socket = Annotated[
    str | None, Parameter(name="--socket", help="Workload API address [default: $SPIFFE_ENDPOINT_SOCKET]")
]
DEFAULT_AUDIENCE = "aims-svid-fetch"


@app.command
def fetch(
    *,
    audience: Annotated[list[str] | None, Parameter(name="--audience", help="of the JWT-SVID, may be repeated")] = None,
    socket: Socket = None,
    output: Output = "text",
) -> None:
    """Fetch an X509-SVID, a WIT and a JWT-SVID once, and print what they say."""

    async def run() -> list[dict[str, Any]]:
        from aims.sdk.workload_client import WorkloadClient

        async with WorkloadClient(socket) as client:
            x509 = await client.fetch_x509()
            wit = await client.fetch_wit()
            jwt = await client.fetch_jwt(audience or [DEFAULT_AUDIENCE])
        found = [_x509(one.chain, one.hint) for one in x509.svids]
        found += [_token("wit", one.token, one.hint) for one in wit.wits]
        return found + [_token("jwt-svid", one.token, one.hint) for one in jwt]

    for line in asyncio.run(run()):
        _print(line, output)


@app.command
def watch(
    *,
    count: Annotated[int, Parameter(name="--count", help="end after so many states, 0 for never")] = 0,
    socket: Socket = None,
    output: Output = "text",
) -> int:
    """Follow the X509-SVIDs of this process over one open stream; each rotation is a line."""
    return asyncio.run(_watch(count, socket, output))


async def _watch(count: int, socket: str | None, output: Output) -> int:
    from aims.sdk.workload_client import WorkloadClient
    from aims.sdk.workload_state import X509State

    seen = 0
    async with WorkloadClient(socket) as client, aclosing(client.watch_x509()) as states:
        async for state in states:
            if not isinstance(state, X509State):
                _print({"kind": type(state).__name__.lower(), "code": state.error.code}, output)
                continue
            for one in state.svids:
                _print(_x509(one.chain, one.hint), output)
            seen += 1
            if seen == count:
                return 0
    return REFUSED


def _x509(chain: bytes, hint: str) -> dict[str, Any]:
    from aims.credentials.x509_svid import read

    svid = read(chain)
    facts = {
        "kind": "x509-svid",
        "spiffe_id": str(svid.spiffe_id),
        "serial": f"{svid.serial:x}",
        "expires": int(svid.not_after),
        "instance": svid.fence.instance if svid.fence else None,
        "epoch": svid.fence.epoch if svid.fence else None,
    }
    return facts | ({"hint": hint} if hint else {})


def _token(kind: str, text: str, hint: str) -> dict[str, Any]:
    from aims.jose.door import decode

    header, claims = decode(text, 16 * 1024)
    facts = {"kind": kind, "spiffe_id": claims.get("sub"), "expires": claims.get("exp"), "kid": header.get("kid")}
    facts |= {name: claims[name] for name in ("aud", "instance", "epoch") if name in claims}
    confirmation = claims.get("cnf", {})
    if "jkt" in confirmation:
        facts["bound_to"] = confirmation["jkt"]
    return facts | ({"hint": hint} if hint else {})


def _print(facts: dict[str, Any], output: Output) -> None:
    if output == "json":
        say(msgspec.json.encode(facts).decode())
        return
    words = [str(facts.get("kind"))]
    if "spiffe_id" in facts:
        words.append(str(facts["spiffe_id"]))
    if "expires" in facts:
        words.append(f"ends in {timedelta(seconds=max(0, int(facts['expires'] - time.time())))}")
    words += [f"{name} {facts[name]}" for name in ("serial", "aud", "bound_to", "instance", "code") if name in facts]
    say("  ".join(words))
