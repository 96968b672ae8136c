"""What the authorization server says about itself is what it does."""

from __future__ import annotations

import json
from typing import Any

from tests.flows.provisioning_world import policy
from tests.flows.token_world import ISSUER, MTLS, TokenWorld, open_token_world

from aims.authorization.metadata import server_metadata
from aims.authorization.routes import JWKS, REVOCATION, TOKEN, document
from aims.clock import IdSource, SystemClock
from aims.jose.jwks import parse_jwks
from aims.keys.errors import KeyStoreError
from aims.storage.database import Database


async def test_metadata_lists_what_is_served_and_nothing_else(
    database: Database, clock: SystemClock, ids: IdSource
) -> None:
    world = await open_token_world(database, clock, ids)
    alpha = await world.agent("alpha")
    said: dict[str, Any] = json.loads(server_metadata(ISSUER, MTLS, world.policy.tables))
    assert said["issuer"] == ISSUER
    assert said["token_endpoint"] == ISSUER + TOKEN
    assert said["mtls_endpoint_aliases"] == {
        "token_endpoint": MTLS + TOKEN,
        "revocation_endpoint": MTLS + REVOCATION,
    }
    assert said["jwks_uri"] == ISSUER + JWKS
    assert said["token_endpoint_auth_methods_supported"] == ["spiffe_x509", "spiffe_jwt"]
    assert "none" not in repr(said["dpop_signing_alg_values_supported"])
    assert said["tls_client_certificate_bound_access_tokens"] is True
    assert "inner:read" not in said["scopes_supported"]
    assert said["authorization_details_types_supported"] == ["notes:share"]
    for missing in ("introspection_endpoint", "registration_endpoint"):
        assert missing not in said
    assert all(value not in ([], None) for name, value in said.items() if name != "response_types_supported")
    # every grant type that is listed is known, every other is not
    for grant_type in said["grant_types_supported"]:
        answer = await world.mtls_token(alpha, grant_type=grant_type)
        assert answer.json["aims_error"] != "authorization.grant_type"
    assert (await world.mtls_token(alpha, grant_type="refresh_token")).json["error"] == "unsupported_grant_type"
    for resource in said["protected_resources"]:
        assert (await world.mtls_token(alpha, resource=resource, scope="x")).json["error"] == "invalid_scope"
    # a grant that begins at an authorization endpoint is listed with it
    assert "authorization_endpoint" not in said
    assert "authorization_code" not in said["grant_types_supported"]
    code = json.loads(
        server_metadata(ISSUER, MTLS, world.policy.tables, authorization_endpoint=f"{ISSUER}/oauth/authorize")
    )
    assert code["response_types_supported"] == ["code"]
    assert code["code_challenge_methods_supported"] == ["S256"]
    assert code["authorization_response_iss_parameter_supported"] is True


def test_a_method_that_policy_does_not_open_is_not_listed() -> None:
    said = json.loads(server_metadata(ISSUER, MTLS, policy().tables))
    assert said["token_endpoint_auth_methods_supported"] == ["spiffe_x509"]
    assert "token_endpoint_auth_signing_alg_values_supported" not in said


async def test_the_key_set_holds_access_token_keys_alone(database: Database, clock: SystemClock, ids: IdSource) -> None:
    world: TokenWorld = await open_token_world(database, clock, ids)
    held = await world.keys.current()
    keys = parse_jwks(held.jwks).keys("sig")
    assert [key.kid for key in keys] == [held.signer.kid]
    assert b'"d"' not in held.jwks
    others = {key.kid for key in world.authority.state.keys} - {held.signer.kid}
    assert len(others) >= 4
    assert not others & {key.kid for key in keys}


async def test_a_document_is_public_or_an_error() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def good() -> bytes:
        return b"{}"

    async def bad() -> bytes:
        raise KeyStoreError("missing", "a path that nobody may see")

    await document(good)({}, receive, send)
    await document(bad)({}, receive, send)
    assert [message["status"] for message in sent[::2]] == [200, 503]
    assert (b"access-control-allow-origin", b"*") in sent[0]["headers"]
    assert (b"cache-control", b"no-store") in sent[2]["headers"]
    assert b"nobody may see" not in sent[3]["body"]
