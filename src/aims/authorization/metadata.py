"""What the authorization server says about itself (RFC 8414).

Only what is served stands here; an empty list is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from aims.authentication.dpop import DPOP
from aims.authorization.routes import JWKS, REVOCATION, TOKEN
from aims.authorization.service import GRANT_TYPES
from aims.jose.algorithms import SPIFFE_ALGORITHMS
from aims.policy.tables import Tables

WELL_KNOWN: Final = "/.well-known/oauth-authorization-server"


def server_metadata(issuer: str, mtls_url: str, tables: Tables, *, authorization_endpoint: str = "") -> bytes:
    """Return the metadata of the authorization server ``issuer``, whose mTLS listener is at ``mtls_url``.

    Without an authorization endpoint there is no grant by code, and no response type.
    """
    by_code = bool(authorization_endpoint)
    methods = ["spiffe_x509"] + (["spiffe_jwt"] if tables.rows.clients else [])
    algorithms = sorted(SPIFFE_ALGORITHMS) if tables.rows.clients else []
    takers = [row for row in tables.rows.resources if not row.profile.startswith("wimse")]
    members: dict[str, Any] = {
        "issuer": issuer,
        "token_endpoint": issuer + TOKEN,
        "revocation_endpoint": issuer + REVOCATION,
        "jwks_uri": issuer + JWKS,
        "authorization_endpoint": authorization_endpoint or None,
        "response_types_supported": ["code"] if by_code else [],
        "response_modes_supported": ["query"] if by_code else [],
        "code_challenge_methods_supported": ["S256"] if by_code else [],
        "authorization_response_iss_parameter_supported": by_code or None,
        "grant_types_supported": [each for each in GRANT_TYPES if by_code or each != "authorization_code"],
        "scopes_supported": sorted({scope for row in takers for scope in row.scopes}),
        "token_endpoint_auth_methods_supported": methods,
        "token_endpoint_auth_signing_alg_values_supported": algorithms,
        "revocation_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_signing_alg_values_supported": algorithms,
        "dpop_signing_alg_values_supported": sorted(DPOP.algorithms),
        "tls_client_certificate_bound_access_tokens": True,
        "mtls_endpoint_aliases": {
            "token_endpoint": mtls_url + TOKEN,
            "revocation_endpoint": mtls_url + REVOCATION,
        },
        "authorization_details_types_supported": sorted({row.purpose for row in tables.rows.purposes}),
        "protected_resources": sorted({row.url for row in takers}),
    }
    # RFC 8414 2 wants response_types_supported even where nothing answers to one
    return _encode(members, keep=frozenset({"response_types_supported"}))


def _encode(members: Mapping[str, Any], keep: frozenset[str] = frozenset()) -> bytes:
    shown = {name: value for name, value in members.items() if name in keep or value not in (None, [], {})}
    return msgspec.json.encode(shown)
