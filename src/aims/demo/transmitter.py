"""Another party: a transmitter that signs security events and pushes them (RFC 8935)."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
import msgspec

from aims.clock import SystemClock, SystemIds
from aims.jose import jwk, jwks
from aims.jose.signing import sign
from aims.keys.purpose import Purpose
from aims.keys.signing import LocalKey, generate

ISSUER: Final = "https://signals.example/security"
SECONDS: Final = 15.0


@dataclass(slots=True)
class Transmitter:
    """A key, and where to push. ``audience`` is the receiver's issuer of signals."""

    public_url: str
    public_ca: Path
    issuer: str = ISSUER
    key: LocalKey = field(default_factory=lambda: generate(Purpose.SET))

    @property
    def key_set(self) -> str:
        """The JWK Set that an administrator of the receiver is given."""
        entry = {**jwk.public_jwk(self.key.public_key()), "kid": self.key.kid, "alg": self.key.algorithm.value}
        return jwks.build_jwks([entry]).decode("ascii")

    async def push(self, event: str, subject: dict[str, Any], **payload: Any) -> tuple[int, str, float]:
        """Send one event; return the status, the receiver's error code or "", and when it was sent (monotonic)."""
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "jti": SystemIds(SystemClock()).new(),
            "iat": now,
            "aud": f"{self.public_url}/signals",
            "sub_id": subject,
            "events": {event: {"event_timestamp": now, **payload}},
        }
        token = await sign({"typ": "secevent+jwt"}, claims, self.key)
        context = ssl.create_default_context(cafile=str(self.public_ca))
        async with httpx2.AsyncClient(verify=context, trust_env=False, timeout=SECONDS) as http:
            sent = time.monotonic()
            answer = await http.post(
                f"{self.public_url}/signals/events",
                content=token,
                headers={"content-type": "application/secevent+jwt", "accept": "application/json"},
            )
        told = msgspec.json.decode(answer.content) if answer.content else {}
        return answer.status_code, str(told.get("err", "")), sent
