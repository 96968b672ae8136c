"""The token endpoint on both back ends: client credentials, and every refusal beside what is accepted."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from tests.flows.token_world import (
    FILES,
    INNER,
    ISSUER,
    MTLS,
    NOTES,
    PLAIN,
    TOKEN,
    Agent,
    TokenWorld,
    encoded,
    open_token_world,
    token_policy,
)

from aims.authorization.errors import STATUS, AuthorizationError
from aims.authorization.form import MAX_OCTETS
from aims.authorization.transactions.errors import TransactionError
from aims.clock import IdSource, SystemClock
from aims.keys import Purpose
from aims.provisioning.authority.model import Step
from aims.provisioning.authority.service import SCHEDULE
from aims.storage.database import Database
from aims.storage.write import Name

READ = {"resource": NOTES, "scope": "notes:read"}


@pytest.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> TokenWorld:
    return await open_token_world(database, clock, ids)


@pytest.fixture
async def alpha(world: TokenWorld) -> Agent:
    return await world.agent("alpha")


# --- what is given


async def test_a_certificate_gives_a_token_that_is_bound_to_it(world: TokenWorld, alpha: Agent) -> None:
    answer = await world.mtls_token(alpha, **READ)
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["token_type"] == "Bearer"
    assert answer.json["scope"] == "notes:read"
    assert answer.json["expires_in"] == 600
    assert set(answer.json) == {"access_token", "token_type", "expires_in", "scope"}
    token = await world.read(answer.token)
    assert token.issuer == ISSUER
    assert token.audience == NOTES
    assert token.subject == token.client_id == alpha.id
    assert token.grant_id == "agent:alpha"
    assert token.actors == ()
    assert token.agent
    assert (token.fence.instance, token.fence.epoch) == (alpha.instance, world.seq)
    assert token.confirmation is not None
    assert (token.confirmation.method, token.confirmation.thumbprint) == ("x5t#S256", alpha.svid.thumbprint)
    record = world.record()
    assert record["type"] == "token.issue"
    assert record["agent"] == {
        "id": alpha.id,
        "instance": alpha.instance,
        "key_thumbprint": alpha.svid.thumbprint,
    }
    assert record["token"]["jti"] == record["id"] == record["request_id"] == token.token_id
    assert record["token"]["exp"] == token.expires
    assert record["token"]["scope_given"] == "notes:read"
    assert record["decision"]["rules"] == ["token_bound"]
    assert record["posture"] == {"level": "node-uid"}
    assert abs(record["time"] / 1000 - world.clock.now()) < 30
    assert answer.token not in repr(record)


async def test_a_proof_binds_the_token_to_its_key(world: TokenWorld, alpha: Agent) -> None:
    answer = await world.mtls_token(alpha, proof=True, **READ)
    token = await world.read(answer.token)
    assert answer.json["token_type"] == "DPoP"
    assert token.confirmation is not None
    assert (token.confirmation.method, token.confirmation.thumbprint) == ("jkt", alpha.key.jkt)


async def test_two_tokens_of_one_right_differ_in_id_and_have_a_record_each(world: TokenWorld, alpha: Agent) -> None:
    before = len(world.world.records())
    tokens = [await world.read((await world.mtls_token(alpha, **READ)).token) for _ in range(3)]
    records = world.world.records()[before:]
    assert len({token.token_id for token in tokens}) == 3
    assert [record["token"]["jti"] for record in records] == [token.token_id for token in tokens]


async def test_a_bound_jwt_svid_with_its_key_gives_a_token_bound_to_that_key(world: TokenWorld) -> None:
    portable = await world.agent("portable")
    assertion = await world.jwt_svid(portable)
    # the same assertion arrives many times: it is bound by exp and by its key, and only proofs are spent
    for more in ({}, {"client_id": portable.id}):
        answer = await world.jwt_token(portable, assertion=assertion, **READ, **more)
        token = await world.read(answer.token)
        assert token.confirmation is not None
        assert token.confirmation.thumbprint == portable.key.jkt
        assert token.client_id == portable.id
    assert world.record()["details"] == {"method": "spiffe_jwt"}


async def test_the_target_is_named_by_url_or_audience(world: TokenWorld, alpha: Agent) -> None:
    for value, audience in ((NOTES, NOTES), ("urn:example:notes", "urn:example:notes"), (FILES, "urn:example:files")):
        for name in ("resource", "audience"):
            answer = await world.mtls_token(alpha, scope="notes:read", **{name: value})
            assert (await world.read(answer.token)).audience == audience
    twice = await world.mtls_token(alpha, scope="notes:read", resource=[NOTES, NOTES], audience=NOTES)
    assert twice.status == 200


async def test_details_of_a_purpose_are_granted_and_repeated(world: TokenWorld, alpha: Agent) -> None:
    details = '[{"type":"notes:share","note":"n1","copies":2}]'
    answer = await world.mtls_token(
        alpha, resource=NOTES, scope="notes:read notes:write", authorization_details=details
    )
    assert answer.json["authorization_details"] == [{"type": "notes:share", "note": "n1", "copies": 2}]
    token = await world.read(answer.token)
    assert token.details == ({"type": "notes:share", "note": "n1", "copies": 2},)
    assert world.record()["type"] == "token.issue"


# --- how long


async def test_the_lowest_limit_is_the_life(world: TokenWorld) -> None:
    apart, shared = await world.agent("apart"), await world.agent("shared", posture="shared-uid")
    assert (await world.mtls_token(apart, **READ)).json["expires_in"] == 600
    assert (await world.mtls_token(shared, **READ)).json["expires_in"] == 300
    # never beyond the SVID that it is bound to
    for proof in (False, True):
        world.clock.offset = 3400
        answer = await world.mtls_token(apart, proof=proof, **READ)
        assert (await world.read(answer.token)).expires == apart.svid.not_after
        assert answer.json["expires_in"] <= 201  # a second of the certificate's life had begun
        world.clock.offset = 0


async def test_an_unmeasured_program_has_the_limits_of_that_posture_too(
    database: Database, clock: SystemClock, ids: IdSource
) -> None:
    world = await open_token_world(database, clock, ids)
    row = '[[lifetimes]]\nname = "access-token-unmeasured"\ncredential = "access-token"\nposture = "unmeasured"\n'
    world.world.policy = token_policy(
        (
            '[[lifetimes]]\nname = "access-token-shared-uid"',
            f'{row}seconds = 120\n\n[[lifetimes]]\nname = "access-token-shared-uid"',
        )
    )
    free = await world.agent("free", measured=False)
    standing = await world.instances.find(free.instance)
    assert standing is not None
    assert not standing.measured
    assert (await world.mtls_token(free, **READ)).json["expires_in"] == 120


async def test_a_scope_marked_high_is_not_for_a_shared_uid(world: TokenWorld) -> None:
    apart = await world.agent("apart")
    shared = await world.agent("shared", posture="shared-uid")
    free = await world.agent("free", measured=False)
    wanted = {"resource": NOTES, "scope": "notes:purge"}
    for capped in (shared, free):
        answer = await world.mtls_token(capped, **wanted)
        assert answer.refusal == (400, "invalid_scope", "authorization.scope_ceiling")
    assert (await world.mtls_token(apart, **wanted)).status == 200


# --- the table of errors


def _without(*names: str, **more: Any) -> dict[str, Any]:
    wanted: dict[str, Any] = {"grant_type": "client_credentials", **READ, **more}
    return {name: value for name, value in wanted.items() if name not in names}


@pytest.mark.parametrize(
    ("parameters", "refusal"),
    [
        (_without("grant_type"), (400, "invalid_request", "authorization.parameter_missing")),
        (_without(grant_type=["client_credentials"] * 2), (400, "invalid_request", "authorization.parameter_twice")),
        (_without(scope=["", "notes:read"]), (400, "invalid_request", "authorization.parameter_twice")),
        (_without(grant_type="password"), (400, "unsupported_grant_type", "authorization.grant_type")),
        (_without(grant_type="implicit"), (400, "unsupported_grant_type", "authorization.grant_type")),
        (_without("resource"), (400, "invalid_target", "authorization.target_missing")),
        (_without(resource=""), (400, "invalid_target", "authorization.target_missing")),
        (_without(resource=[NOTES, FILES]), (400, "invalid_target", "authorization.target_several")),
        (_without(resource=NOTES + "/"), (400, "invalid_target", "authorization.target_unknown")),
        (_without(resource=NOTES + "#x"), (400, "invalid_target", "authorization.target_unknown")),
        (_without(resource="https://evil.test/mcp"), (400, "invalid_target", "authorization.target_unknown")),
        (
            _without("resource", audience="spiffe://local.test/agents/beta"),
            (400, "invalid_target", "authorization.target_unknown"),
        ),
        (_without(resource=INNER, scope="inner:read"), (400, "invalid_target", "authorization.target_profile")),
        (_without("scope"), (400, "invalid_scope", "authorization.scope_missing")),
        (_without(scope=""), (400, "invalid_scope", "authorization.scope_missing")),
        (_without(scope="notes:read  notes:write"), (400, "invalid_scope", "authorization.scope_malformed")),
        (_without(scope="notes:read notes:read"), (400, "invalid_scope", "authorization.scope_malformed")),
        (_without(scope='notes:"read"'), (400, "invalid_scope", "authorization.scope_malformed")),
        (_without(scope="notes:read notes:delete"), (400, "invalid_scope", "authorization.scope_ceiling")),
        (_without(scope="*"), (400, "invalid_scope", "authorization.scope_ceiling")),
        (
            _without(authorization_details="{}"),
            (400, "invalid_authorization_details", "authorization.details_malformed"),
        ),
        (
            _without(authorization_details="[]"),
            (400, "invalid_authorization_details", "authorization.details_malformed"),
        ),
        (
            _without(authorization_details='[{"type":"notes:share","note":"n","copies":1}]'),
            (400, "invalid_authorization_details", "authorization.details_unknown"),
        ),
        (
            _without(
                scope="notes:read notes:write",
                authorization_details='[{"type":"notes:share","note":"n","copies":1,"to":"all"}]',
            ),
            (400, "invalid_authorization_details", "authorization.details_unknown"),
        ),
    ],
)
async def test_the_first_failed_step_is_named(
    world: TokenWorld, alpha: Agent, parameters: dict[str, Any], refusal: tuple[int, str, str]
) -> None:
    answer = (
        await world.mtls_token(alpha, **parameters)
        if "grant_type" in parameters
        else await world.post(world.mtls, {**parameters, "client_id": alpha.id}, peer=alpha.svid)
    )
    assert answer.refusal == refusal
    assert answer.headers["cache-control"] == "no-store"
    record = world.record()
    assert record["type"] == "token.refuse"
    unread = "twice" in refusal[2]  # refused before anybody is asked who it is
    assert record["agent"] is None if unread else record["agent"]["id"] == alpha.id
    assert record["decision"] == {"effect": "deny", "reason": refusal[2]}
    assert (await world.mtls_token(alpha, **READ)).status == 200


async def test_a_request_is_one_bounded_form(world: TokenWorld, alpha: Agent) -> None:
    good = encoded({"grant_type": "client_credentials", "client_id": alpha.id, **READ})

    async def refused(body: bytes = good, **more: Any) -> str:
        answer = await world.post(world.mtls, body, peer=alpha.svid, **more)
        assert (answer.status, answer.json["error"]) == (400, "invalid_request")
        return str(answer.json["aims_error"]).removeprefix("authorization.")

    assert await refused(content_type=b"application/json") == "request_malformed"
    assert await refused(headers=[(b"content-type", b"application/x-www-form-urlencoded")]) == "request_malformed"
    assert await refused(good + b"&x=%zz") == "request_malformed"
    assert await refused(good + b"&x=%ff") == "request_malformed"
    assert await refused(good + b"&x=%00") == "request_malformed"
    assert await refused(good + b"&x") == "request_malformed"
    assert await refused(good + b"&") == "request_malformed"
    assert await refused(good + b"".join(b"&x%d=1" % n for n in range(40))) == "request_malformed"
    assert await refused(good + b"&x=" + b"a" * MAX_OCTETS) == "request_too_large"
    assert await refused(query=b"access_token=x") == "query"
    proof = world.proof(alpha.key, MTLS + TOKEN).encode()
    assert await refused(headers=[(b"dpop", proof), (b"dpop", proof)]) == "proof_several"
    accepted = await world.post(
        world.mtls,
        good + b"&unknown=1&empty=",
        peer=alpha.svid,
        headers=[(b"dpop", proof)],
        content_type=b"application/x-www-form-urlencoded; charset=UTF-8",
    )
    assert accepted.status == 200


# --- proofs


async def test_a_proof_is_for_this_endpoint_and_counts_once(world: TokenWorld, alpha: Agent) -> None:
    proof = world.proof(alpha.key, MTLS + TOKEN)
    assert (await world.mtls_token(alpha, proof=proof, **READ)).status == 200
    again = await world.mtls_token(alpha, proof=proof, **READ)
    assert again.refusal == (400, "invalid_dpop_proof", "authentication.dpop_replay")
    elsewhere = await world.mtls_token(alpha, proof=world.proof(alpha.key, ISSUER + TOKEN), **READ)
    assert elsewhere.refusal == (400, "invalid_dpop_proof", "authentication.dpop_htu")
    old = await world.mtls_token(alpha, proof=world.proof(alpha.key, MTLS + TOKEN, now=world.clock.now() - 90), **READ)
    assert old.refusal == (400, "invalid_dpop_proof", "authentication.dpop_iat")
    # a proof is spent by being presented, even where the request is refused
    proof = world.proof(alpha.key, MTLS + TOKEN)
    assert (await world.mtls_token(alpha, proof=proof, resource=NOTES, scope="nothing")).status == 400
    spent = await world.mtls_token(alpha, proof=proof, **READ)
    assert spent.refusal == (400, "invalid_dpop_proof", "authentication.dpop_replay")


async def test_of_sixteen_equal_requests_one_succeeds(world: TokenWorld, alpha: Agent) -> None:
    for _ in range(5):
        proof = world.proof(alpha.key, MTLS + TOKEN)
        answers = await asyncio.gather(*(world.mtls_token(alpha, proof=proof, **READ) for _ in range(16)))
        assert sorted(answer.status for answer in answers) == [200] + [400] * 15
        assert {answer.json.get("aims_error") for answer in answers if answer.status != 200} == {
            "authentication.dpop_replay"
        }


# --- bearer, and what policy says


async def test_a_plain_bearer_token_needs_a_rule_of_its_own(
    database: Database, clock: SystemClock, ids: IdSource
) -> None:
    world = await open_token_world(database, clock, ids)
    alpha = await world.agent("alpha")
    wanted = {"resource": PLAIN, "scope": "plain:read"}
    refused = await world.mtls_token(alpha, **wanted)
    assert refused.refusal == (400, "access_denied", "authorization.policy")
    world.world.policy = token_policy(
        (
            "principal has owner && context.bound &&",
            'principal has owner && (context.bound || resource == AIMS::Resource::"plain") &&',
        )
    )
    answer = await world.mtls_token(alpha, **wanted)
    assert (await world.read(answer.token)).confirmation is None
    assert answer.json["token_type"] == "Bearer"
    assert (await world.mtls_token(alpha, **READ)).status == 200


async def test_each_agent_ends_at_its_own_ceiling(world: TokenWorld) -> None:
    reader, writer = await world.agent("reader"), await world.agent("writer")
    wanted = {"resource": NOTES, "scope": "notes:write"}
    assert (await world.mtls_token(reader, **wanted)).refusal == (400, "invalid_scope", "authorization.scope_ceiling")
    assert (await world.mtls_token(reader, **READ)).status == 200
    assert (await world.mtls_token(writer, **wanted)).status == 200


async def test_an_agent_without_a_row_holds_nothing(database: Database, clock: SystemClock, ids: IdSource) -> None:
    world = await open_token_world(database, clock, ids)
    alpha = await world.agent("alpha")
    world.world.policy = token_policy(
        ('name = "everyone-at-notes"\nagent = "/agents/*"', 'name = "everyone-at-notes"\nagent = "/agents/other"')
    )
    refused = await world.mtls_token(alpha, **READ)
    assert refused.refusal == (400, "invalid_scope", "authorization.scope_ceiling")


# --- stops


@pytest.mark.parametrize("kind", ["agent", "instance", "node", "grant"])
async def test_a_stop_that_this_process_has_not_read_wins(world: TokenWorld, alpha: Agent, kind: Any) -> None:
    id_ = {"agent": alpha.id, "instance": alpha.instance, "node": "laptop", "grant": "agent:alpha"}[kind]
    assert (await world.mtls_token(alpha, **READ)).status == 200
    await world.stop(Name(kind, id_), told=False)
    answer = await world.mtls_token(alpha, **READ)
    assert answer.json.get("aims_error") == f"authorization.{'stopped' if kind == 'grant' else 'client_stopped'}"
    record = world.record()
    assert record["type"] == "token.refuse"
    assert record["decision"]["reason"] == "storage.stopped"
    assert "jti" not in record["token"]
    world.follow()
    assert (await world.mtls_token(alpha, **READ)).status in {400, 401}


async def test_an_old_svid_stays_dead_after_the_agent_was_resumed(world: TokenWorld, alpha: Agent) -> None:
    await world.stop(Name("agent", alpha.id))
    await world.stop(Name("agent", alpha.id), blocked=False)
    answer = await world.mtls_token(alpha, **READ)
    assert answer.refusal == (401, "invalid_client", "authorization.client_stopped")
    again = await world.run(alpha.registered)
    assert (await world.mtls_token(again, **READ)).status == 200


# --- keys, floods, words


async def test_a_next_key_is_published_before_it_signs_and_old_tokens_verify_on(
    world: TokenWorld, alpha: Agent
) -> None:
    keeper = world.world.keeper
    before = await world.own(alpha)
    first = (await world.keys.current()).signer.kid
    await keeper.step(Purpose.ACCESS_TOKEN, Step.PREPARE, SCHEDULE)
    held = await world.keys.current()
    assert held.signer.kid == first
    assert len(held.verifier.keys) == 2
    world.clock.offset = 601
    await keeper.step(Purpose.ACCESS_TOKEN, Step.ACTIVATE, SCHEDULE)
    held = await world.keys.current()
    assert held.signer.kid != first
    world.clock.offset = 0
    assert (await world.read(before)).subject == alpha.id
    after = await world.own(alpha)
    assert (await world.read(after)).subject == alpha.id
    assert held.signer.kid.encode() in held.jwks
    assert first.encode() in held.jwks


async def test_many_strangers_leave_few_records(world: TokenWorld, alpha: Agent) -> None:
    start = int(world.clock.monotonic())
    world.clock.offset += start + 1 - world.clock.monotonic()  # the beginning of a second
    before = len(world.world.records())
    answers = [await world.post(world.public, {"grant_type": "client_credentials"}) for _ in range(40)]
    assert {answer.refusal for answer in answers} == {(401, "invalid_client", "authorization.client_none")}
    seconds = int(world.clock.monotonic()) - start
    assert 10 <= len(world.world.records()) - before <= 10 + 11 * (seconds - 1)
    world.clock.offset += 1
    await world.post(world.public, {"grant_type": "client_credentials"})
    counted = [record["flood"]["count"] for record in world.world.records()[before:] if "flood" in record]
    refused = [record for record in world.world.records()[before:] if record["type"] == "token.refuse"]
    assert sum(counted) + len(refused) == 41
    # those who authenticated always leave their own
    before = len(world.world.records())
    for _ in range(12):
        await world.mtls_token(alpha, resource=NOTES, scope="nothing")
    assert len(world.world.records()) - before == 12


def test_every_sentence_may_stand_in_an_oauth_error() -> None:
    reasons = {**AuthorizationError.reasons, **TransactionError.reasons}
    for name, reason in reasons.items():
        assert re.fullmatch(r"[\x20\x21\x23-\x5b\x5d-\x7e]+", reason.sentence), name
        assert reason.standard, name
    assert {STATUS.get(reason.standard, 400) for reason in reasons.values()} == {
        400,
        401,
        403,
        500,
        503,
    }
