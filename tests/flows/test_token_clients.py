"""Who may ask the token endpoint: registered agents, by one method, with their own key."""

from __future__ import annotations

from typing import Any

import pytest
from tests.flows.token_world import (
    ISSUER,
    MTLS,
    NOTES,
    TOKEN,
    Agent,
    ProofKey,
    TokenWorld,
    open_token_world,
)

from aims.authorization.client_authentication import ASSERTION_TYPE
from aims.clock import IdSource, SystemClock
from aims.provisioning.registry.model import Kind, State
from aims.provisioning.registry.service import state_change
from aims.storage.database import Database
from aims.storage.write import Write

READ = {"resource": NOTES, "scope": "notes:read"}


@pytest.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> TokenWorld:
    return await open_token_world(database, clock, ids)


@pytest.fixture
async def alpha(world: TokenWorld) -> Agent:
    return await world.agent("alpha")


async def test_exactly_one_registered_method(world: TokenWorld) -> None:
    portable = await world.agent("portable")
    assertion = await world.jwt_svid(portable)
    asserted = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion}
    wanted = {"grant_type": "client_credentials", **READ}
    proof = [(b"dpop", world.proof(portable.key, ISSUER + TOKEN).encode())]

    async def refusal(parameters: dict[str, str], **more: Any) -> tuple[int, str, str]:
        app = world.mtls if "peer" in more else world.public
        return (await world.post(app, {**wanted, **parameters}, **more)).refusal

    client_id = {"client_id": portable.id}
    several = (400, "invalid_request", "authorization.client_several")
    assert await refusal(asserted | client_id, peer=portable.svid, headers=proof) == several
    assert await refusal(asserted | {"client_secret": "x"}, headers=proof) == several
    assert await refusal(asserted, headers=[*proof, (b"authorization", b"Basic eDp5")]) == several
    # no proof of who it is never makes a public client
    assert await refusal(client_id) == (401, "invalid_client", "authorization.client_none")
    assert await refusal({}) == (401, "invalid_client", "authorization.client_none")
    method = (401, "invalid_client", "authorization.client_method")
    assert await refusal(client_id | {"client_secret": "x"}) == method
    assert await refusal(client_id, headers=[(b"authorization", b"Basic eDp5")]) == method
    assert await refusal(client_id, headers=[(b"oauth-client-attestation", b"x")]) == method
    assert (await world.jwt_token(portable, assertion=assertion, **READ)).status == 200


async def test_a_certificate_needs_its_own_client_id(world: TokenWorld, alpha: Agent) -> None:
    beta = await world.agent("beta")
    for client_id in (beta.id, "", alpha.id.upper(), alpha.id + "/"):
        answer = await world.mtls_token(alpha, **READ, client_id=client_id)
        assert answer.refusal == (401, "invalid_client", "authorization.client_id")
    record = world.record()
    # what nobody checked is only claimed
    assert record["agent"] is None
    assert record["claimed"] == {"client_id": alpha.id + "/"}
    assert "client_id" not in record
    assert (await world.mtls_token(alpha, **READ)).status == 200


async def test_a_certificate_that_expired_on_an_open_connection_is_no_proof(world: TokenWorld, alpha: Agent) -> None:
    world.clock.offset = 3601
    answer = await world.mtls_token(alpha, **READ)
    assert answer.refusal == (401, "invalid_client", "authorization.certificate_expired")


async def test_only_agents_of_the_registry_are_clients(world: TokenWorld, alpha: Agent) -> None:
    service = await world.agent("store", kind=Kind.SERVICE)
    answer = await world.mtls_token(service, **READ)
    assert answer.refusal == (400, "unauthorized_client", "authorization.client_kind")
    effects, changes = state_change(world.registry, alpha.registered.workload, State.RETIRED)
    await world.database.commit(Write(record=lambda _: b"{}", effects=effects, changes=tuple(changes)))
    world.follow()
    answer = await world.mtls_token(alpha, **READ)
    assert answer.refusal == (401, "invalid_client", "authorization.client_unknown")


async def test_an_instance_that_was_never_issued_anything_gets_nothing(world: TokenWorld, alpha: Agent) -> None:
    stranger = await world.agent("beta")
    stranger.svid = alpha.svid
    object.__setattr__(world.instances, "_known", world.instances._known.__class__())

    async def nobody(_: str) -> None:
        return None

    world.instances.find = nobody  # type: ignore[method-assign, assignment]  # the row is gone
    answer = await world.mtls_token(alpha, **READ)
    assert answer.refusal == (401, "invalid_client", "authorization.client_posture")


async def test_jwt_svids_are_off_unless_policy_lists_the_agent(world: TokenWorld, alpha: Agent) -> None:
    assert (await world.jwt_token(alpha, **READ)).refusal == (401, "invalid_client", "authorization.client_method")
    assert (await world.jwt_token(await world.agent("portable"), **READ)).status == 200


async def test_a_stolen_jwt_svid_with_another_key_is_refused(world: TokenWorld) -> None:
    portable = await world.agent("portable")
    assertion = await world.jwt_svid(portable)
    thief = world.proof(ProofKey(), ISSUER + TOKEN)
    answer = await world.jwt_token(portable, assertion=assertion, proof=thief, **READ)
    assert answer.refusal == (401, "invalid_client", "authorization.assertion_key")
    assert world.record()["agent"] is None
    missing = await world.jwt_token(portable, assertion=assertion, proof="", **READ)
    assert missing.refusal == (400, "invalid_dpop_proof", "authorization.proof_missing")
    unbound = await world.jwt_token(portable, assertion=await world.jwt_svid(portable, bound=False), **READ)
    assert unbound.refusal == (401, "invalid_client", "authorization.assertion_unbound")
    assert (await world.jwt_token(portable, assertion=assertion, **READ)).status == 200


@pytest.mark.parametrize(
    ("audiences", "reason"),
    [
        ((ISSUER + TOKEN,), "assertion_audience"),
        ((ISSUER + "/",), "assertion_audience"),
        ((ISSUER, "https://other.test"), "assertion_audience"),
        ((MTLS,), "assertion_audience"),
        (("https://localhost",), "assertion_audience"),
        ((ISSUER,), ""),
    ],
)
async def test_the_audience_of_an_assertion_is_the_issuer_alone(
    world: TokenWorld, audiences: tuple[str, ...], reason: str
) -> None:
    portable = await world.agent("portable")
    answer = await world.jwt_token(portable, assertion=await world.jwt_svid(portable, *audiences), **READ)
    assert answer.json.get("aims_error", "").removeprefix("authorization.") == reason


async def test_an_assertion_ends(world: TokenWorld) -> None:
    portable = await world.agent("portable")
    assertion = await world.jwt_svid(portable)
    world.clock.offset = 310
    answer = await world.jwt_token(portable, assertion=assertion, **READ)
    assert answer.refusal == (401, "invalid_client", "authorization.assertion_expired")


async def test_tokens_of_other_kinds_are_no_assertion(world: TokenWorld) -> None:
    portable = await world.agent("portable")
    own = await world.own(portable)
    proof = world.proof(portable.key, ISSUER + TOKEN)
    for text, reason in ((own, "assertion_typ"), (proof, "assertion_typ"), ("a.b.c", "assertion_malformed")):
        answer = await world.jwt_token(portable, assertion=text, **READ)
        assert answer.refusal == (401, "invalid_client", f"authorization.{reason}")
    wrong = await world.post(
        world.public,
        {
            "grant_type": "client_credentials",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": await world.jwt_svid(portable),
            **READ,
        },
        headers=[(b"dpop", proof.encode())],
    )
    assert wrong.refusal == (401, "invalid_client", "authorization.assertion_type")


async def test_a_foreign_agent_is_nobody_here(world: TokenWorld) -> None:
    # a JWT-SVID of another trust domain has no anchor here, whatever it calls itself
    from tests.properties.hostile import LocalKey

    from aims.jose import sign_now

    foreign = LocalKey.new(kid="foreign")
    now = int(world.clock.now())
    for subject in ("spiffe://other.test/agents/portable", "spiffe://local.test/agents/portable"):
        claims = {"sub": subject, "aud": [ISSUER], "exp": now + 60, "iat": now}
        key = ProofKey()
        answer = await world.post(
            world.public,
            {
                "grant_type": "client_credentials",
                "client_assertion_type": ASSERTION_TYPE,
                "client_assertion": sign_now({"typ": "JWT"}, claims, foreign),
                **READ,
            },
            headers=[(b"dpop", world.proof(key, ISSUER + TOKEN).encode())],
        )
        assert answer.refusal == (401, "invalid_client", "authorization.assertion_signature")
