"""Public documents: the SPIFFE bundle, and the OpenID Connect face of JWT-SVIDs.

Each issuer identifier has a key set of its own, so that a relying party that knows one never believes a token of
another kind. What is here is not secret and may be cached for a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from aims.provisioning.bundles import domain_bundle, jwt_svid_jwks
from aims.server.core import Core
from aims.server.http import Answer, App, Scope, answering

CACHED: Final = ((b"cache-control", b"public, max-age=60"),)


def document_routes(core: Core) -> Mapping[tuple[str, str], App]:
    """The documents of the public listener."""
    issuer = f"{core.public_url}/spiffe"

    def discovery() -> bytes:
        return msgspec.json.encode(
            {
                "issuer": issuer,
                "jwks_uri": f"{issuer}/jwks",
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            }
        )

    return {
        ("GET", "/spiffe/bundle"): _document(lambda: domain_bundle(core.authority).build()),
        ("GET", "/spiffe/jwks"): _document(lambda: jwt_svid_jwks(core.authority)),
        ("GET", "/spiffe/.well-known/openid-configuration"): _document(discovery),
    }


def _document(make: Callable[[], bytes]) -> App:
    async def handle(_: Scope, __: bytes) -> Answer:
        return Answer(200, make(), headers=CACHED)

    return answering(handle, 0)
