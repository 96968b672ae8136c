"""A receiver of security events (RFC 8935): another party that wants to hear when an agent of ours is stopped.

    python -m aims.samples.receiver --port 8453

Its first line says the certificate that it is to be believed by; then it prints what each event says. It verifies the
signature with the keys that the transmitter publishes, which it is given as ``--keys URL`` with ``--keys-ca FILE``.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import time
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from cryptography.hazmat.primitives.serialization import Encoding

from aims.clock import SystemClock, SystemIds
from aims.jose.jwks import parse_jwks
from aims.keys.purpose import Purpose
from aims.keys.signing import generate
from aims.monitoring.set import parse_set, verify_set
from aims.provisioning.authority.service import new_serial
from aims.samples.lines import say
from aims.sdk.serving import listening
from aims.tls import TlsIdentity, public_server_context
from aims.x509.issue import build_localhost, build_tls_ca
from aims.x509.public_key import leaf_key

DAY = 24 * 3600


def own_certificate() -> tuple[TlsIdentity, str]:
    """Make an authority and a certificate for ``localhost``; return the identity and the authority's PEM."""
    ids, now = SystemIds(SystemClock()), int(time.time())
    authority, own = generate(Purpose.TLS_PUBLIC), generate(Purpose.TLS_PUBLIC)
    ca = build_tls_ca(authority, serial=new_serial(ids), now=now, lifetime=DAY)
    leaf = build_localhost(
        ca, authority, public_key=leaf_key(own.public_key()), serial=new_serial(ids), now=now, lifetime=DAY
    )
    return TlsIdentity((leaf,), own.certificate_key()), ca.public_bytes(Encoding.PEM).decode("ascii")


class Receiver:
    """The ASGI application."""

    def __init__(self, audience: str, keys: str, keys_ca: Path) -> None:
        self._audience = audience
        self._keys = keys
        self._context = ssl.create_default_context(cafile=str(keys_ca))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] != "POST":
            raise ValueError("events are pushed")
        octets = b""
        while True:
            message = await receive()
            octets += message.get("body", b"")
            if not message.get("more_body"):
                break
        parsed = parse_set(octets)
        async with httpx2.AsyncClient(verify=self._context, trust_env=False) as http:
            keys = parse_jwks((await http.get(self._keys)).content).keys(None, "sig")
        event = verify_set(parsed, keys, audience=self._audience, now=time.time())
        say({"event": event.event, "subject": str(parsed.parsed.unverified["sub_id"]), "issuer": event.issuer})
        await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


async def main(port: int, audience: str, keys: str, keys_ca: Path) -> None:
    """Listen until the process is told to end."""
    identity, ca = own_certificate()
    app = Receiver(audience, keys, keys_ca)
    config = uvicorn.Config(
        app, log_level="error", lifespan="off", ssl_context_factory=lambda *_: public_server_context(identity)
    )
    say({"ready": f"https://localhost:{port}", "ca": ca})
    with listening(port) as opened:
        await uvicorn.Server(config).serve(sockets=[opened])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8453)
    parser.add_argument("--audience", required=True)
    parser.add_argument("--keys", required=True)
    parser.add_argument("--keys-ca", type=Path, required=True)
    given = parser.parse_args()
    asyncio.run(main(given.port, given.audience, given.keys, given.keys_ca))
