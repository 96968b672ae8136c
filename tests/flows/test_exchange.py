"""Token exchange on both back ends: what is handed on, taken up and narrowed, and who may not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.flows.token_world import (
    FILES,
    ISSUER,
    MTLS,
    NOTES,
    TOKEN,
    Agent,
    ProofKey,
    TokenWorld,
    open_token_world,
    token_policy,
)

from aims.authorization import store
from aims.authorization.access_token import HEADER, TOKEN_TYPE, AccessToken
from aims.clock import IdSource, SystemClock
from aims.jose import sign_now
from aims.keys import Purpose
from aims.storage.database import Database
from aims.storage.write import Name

READ = {"resource": NOTES, "scope": "notes:read"}
SHARE = '[{"type":"notes:share","note":"n1","copies":2}]'


@pytest.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> TokenWorld:
    return await open_token_world(database, clock, ids)


@pytest.fixture
async def alpha(world: TokenWorld) -> Agent:
    return await world.agent("alpha")


@pytest.fixture
async def beta(world: TokenWorld) -> Agent:
    return await world.agent("beta")


async def _signed(world: TokenWorld, token: AccessToken) -> str:
    """A token of this server with claims that it would not give."""
    signer: Any = (await world.keys.current()).signer
    return sign_now(HEADER, token.claims(), signer)


async def _records(world: TokenWorld) -> list[dict[str, Any]]:
    return world.world.records()


# --- the walk


async def test_a_right_is_handed_on_and_taken_up(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    own = await world.own(alpha)
    answer = await world.exchange(alpha, own, audience=beta.id, scope="notes:read")
    assert answer.json["issued_token_type"] == TOKEN_TYPE
    assert answer.json["token_type"] == "DPoP"
    handed_on = await world.read(answer.token)
    assert handed_on.audience == handed_on.may_act == beta.id
    assert handed_on.resource == handed_on.target == NOTES
    assert handed_on.subject == handed_on.client_id == alpha.id
    assert handed_on.actors == ()
    assert handed_on.confirmation is not None
    assert handed_on.confirmation.thumbprint == alpha.key.jkt
    assert handed_on.grant_id != "agent:alpha"
    record = world.record()
    assert record["type"] == "token.exchange"
    assert record["delegation"] == {
        "id": handed_on.grant_id,
        "parent": "agent:alpha",
        "root": handed_on.grant_id,
        "depth": 0,
    }
    taken = await world.read((await world.exchange(beta, answer.token, **READ)).token)
    assert taken.audience == NOTES
    assert taken.subject == alpha.id
    assert taken.client_id == beta.id
    assert taken.actors == (beta.id,)
    assert taken.may_act is None
    assert taken.resource is None
    assert taken.grant_id == handed_on.grant_id
    assert taken.fence.instance == beta.instance
    assert taken.confirmation is not None
    assert taken.confirmation.thumbprint == beta.key.jkt
    assert taken.expires <= handed_on.expires <= (await world.read(own)).expires
    record = world.record()
    assert record["principal"] == {"format": "uri", "uri": alpha.id}
    assert record["chain"] == [beta.id]


async def test_one_row_is_kept_for_each_handing_on_and_none_for_its_use(
    world: TokenWorld, alpha: Agent, beta: Agent
) -> None:
    gamma = await world.agent("gamma")
    first = await world.delegate(alpha, beta)
    second = await world.delegate(beta, gamma, subject=first)
    await world.exchange(gamma, second, **READ)
    root = (await world.read(second)).grant_id
    with world.database.reading() as connection:
        rows = store.tree(connection, root)
    assert [(row.giver, row.agent, row.subject, row.scope, row.revoked) for row in rows] == [
        (alpha.id, beta.id, alpha.id, "notes:read", 0),
        (beta.id, gamma.id, alpha.id, "notes:read", 0),
    ]
    assert [row.parent for row in rows] == ["agent:alpha", root]
    assert rows[0].instance == alpha.instance
    assert rows[0].resource == NOTES


async def test_an_agent_narrows_its_own_token_and_is_no_actor(world: TokenWorld, alpha: Agent) -> None:
    own = await world.own(alpha)
    token = await world.read((await world.exchange(alpha, own, **READ)).token)
    assert (token.subject, token.client_id, token.actors) == (alpha.id, alpha.id, ())
    assert token.scopes == {"notes:read"}
    assert token.grant_id == "agent:alpha"


async def test_four_actors_and_no_fifth(world: TokenWorld, alpha: Agent) -> None:
    agents = [await world.agent(f"agent-{n}") for n in range(5)]
    giver, text = alpha, await world.own(alpha)
    for number, agent in enumerate(agents):
        text = await world.delegate(giver, agent, subject=text)
        answer = await world.exchange(agent, text, **READ)
        if number < 4:
            token = await world.read(answer.token)
            assert token.actors == tuple(each.id for each in reversed(agents[: number + 1]))
            assert token.subject == alpha.id
        else:
            assert answer.refusal == (400, "invalid_request", "authorization.chain_too_long")
        giver = agent


async def test_a_person_is_the_subject_and_every_agent_an_actor(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    # as a code grant leaves it: the person's right, the agent acting
    from aims.audit.people import Pseudonym
    from aims.storage.write import Write

    person = "person:" + "0" * 26
    made = Pseudonym.make(person, b"s" * 16)
    await world.database.commit(Write(record=lambda _: b"{}", effects=(made.stored(),)))
    own = await world.read(await world.own(alpha))
    text = await _signed(world, replace(own, subject=person, actors=(alpha.id,), grant_id="g" * 26))
    handed_on = await world.exchange(alpha, text, audience=beta.id, scope="notes:read")
    assert (await world.read(handed_on.token)).actors == (alpha.id,)
    assert world.record()["principal"] == {"format": "commitment", "commitment": made.commitment}
    assert person not in repr(world.record())
    taken = await world.read((await world.exchange(beta, handed_on.token, **READ)).token)
    assert taken.subject == person
    assert taken.actors == (beta.id, alpha.id)
    assert taken.grant_id == "g" * 26


# --- who may present what


async def test_a_deputy_is_not_confused(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    gamma = await world.agent("gamma")
    handed_on = await world.delegate(alpha, beta)
    # C exchanges what was meant for B, A takes back what it handed to B
    refused = await world.exchange(gamma, handed_on, **READ)
    assert refused.refusal == (400, "invalid_request", "authorization.subject_presenter")
    back = await world.exchange(alpha, handed_on, **READ)
    assert back.refusal == (400, "invalid_request", "authorization.may_act")
    record = world.record()
    assert record["type"] == "token.refuse"
    assert record["agent"]["id"] == alpha.id
    assert (await world.exchange(beta, handed_on, **READ)).status == 200


async def test_may_act_is_required_and_names_the_presenter(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    handed_on = await world.read(await world.delegate(alpha, beta))
    for may_act in (None, "spiffe://local.test/agents/gamma"):
        text = await _signed(world, replace(handed_on, may_act=may_act))
        refused = await world.exchange(beta, text, **READ)
        assert refused.refusal == (400, "invalid_request", "authorization.may_act")
    text = await _signed(world, handed_on)
    assert (await world.exchange(beta, text, **READ)).status == 200


async def test_possession_does_not_get_lost(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    own = await world.own(alpha)
    proof = (400, "invalid_request", "authorization.subject_proof")
    # a stolen token with another key, or with none but the certificate
    assert (await world.exchange(alpha, own, proof=False, **READ)).refusal == proof
    other = world.proof(ProofKey(), MTLS + TOKEN)
    assert (await world.exchange(alpha, own, proof=other, **READ)).refusal == proof
    certified = (await world.mtls_token(alpha, **READ)).token
    assert (await world.exchange(alpha, certified, proof=True, **READ)).refusal == proof
    # bound in, bound out, by key and by certificate
    for text, shown, method in ((own, True, "jkt"), (certified, False, "x5t#S256")):
        token = await world.read((await world.exchange(alpha, text, proof=shown, **READ)).token)
        assert token.confirmation is not None
        assert token.confirmation.method == method
    # on a renewed certificate the old binding is gone
    renewed = await world.run(alpha.registered)
    assert (await world.exchange(renewed, certified, proof=False, **READ)).refusal == proof
    # whom it was handed to proves a key of its own
    handed_on = await world.delegate(alpha, beta)
    bearer = await world.post(
        world.public,
        {"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token": handed_on, **READ},
    )
    assert bearer.refusal == (401, "invalid_client", "authorization.client_none")


async def test_nobody_stands_in_a_chain_twice(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    gamma = await world.agent("gamma")
    twice = (400, "invalid_request", "authorization.actor_twice")
    own = await world.own(alpha)
    assert (await world.exchange(alpha, own, audience=alpha.id, scope="notes:read")).refusal == twice
    first = await world.delegate(alpha, beta)
    for circle in (alpha, beta):
        assert (await world.exchange(beta, first, audience=circle.id, scope="notes:read")).refusal == twice
    second = await world.delegate(beta, gamma, subject=first)
    for circle in (alpha, beta):
        assert (await world.exchange(gamma, second, audience=circle.id, scope="notes:read")).refusal == twice
    # nor does a token that says so count
    token = await world.read(second)
    text = await _signed(world, replace(token, audience=beta.id, may_act=beta.id, actors=(gamma.id, beta.id)))
    assert (await world.exchange(beta, text, **READ)).refusal == twice
    assert (await world.exchange(gamma, second, **READ)).status == 200


async def test_an_actor_token_is_the_clients_own(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    gamma = await world.agent("gamma")
    handed_on = await world.delegate(alpha, beta)
    actor = {"actor_token_type": TOKEN_TYPE, **READ}

    async def refusal(**more: Any) -> str:
        answer = await world.exchange(beta, handed_on, **more)
        assert answer.json.get("error", "invalid_request") == "invalid_request"
        return str(answer.json.get("aims_error", "")).removeprefix("authorization.")

    foreign = await world.own(gamma)
    assert await refusal(**actor, actor_token=foreign) == "actor_token"
    assert await refusal(**actor, actor_token=handed_on) == "actor_token"
    assert await refusal(**actor, actor_token="a.b.c") == "actor_token"
    assert await refusal(**actor) == "actor_token_type"
    assert await refusal(**READ, actor_token=foreign) == "actor_token_type"
    assert (
        await refusal(**(actor | {"actor_token_type": "urn:ietf:params:oauth:token-type:jwt"}), actor_token=foreign)
        == "actor_token"
    )
    assert await refusal(**actor, actor_token=await world.own(beta)) == ""


# --- kinds of tokens


async def test_only_access_tokens_are_exchanged_for_access_tokens(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    portable = await world.agent("portable")
    own = await world.own(alpha)
    kinds = "urn:ietf:params:oauth:token-type:"

    async def refusal(subject: str, **more: Any) -> str:
        answer = await world.exchange(alpha, subject, **(READ | more))
        assert answer.json.get("error", "invalid_request") == "invalid_request"
        return str(answer.json.get("aims_error", "")).removeprefix("authorization.")

    for kind in ("jwt", "id_token", "refresh_token", "saml2", "txn_token", "ACCESS_TOKEN"):
        assert await refusal(own, subject_token_type=kinds + kind) == "subject_token_type"
    assert await refusal(own, subject_token_type="access_token") == "subject_token_type"
    assert await refusal(own, subject_token_type="") == "parameter_missing"
    assert await refusal("") == "parameter_missing"
    for kind in ("jwt", "id-jag", "refresh_token", "txn_token"):
        assert await refusal(own, requested_token_type=kinds + kind) == "requested_token_type"
    # whatever it calls itself, another kind of token is none of ours
    others = [
        await world.jwt_svid(portable),
        world.proof(alpha.key, MTLS + TOKEN),
        own[:-4] + ("AAAA" if own[-4:] != "AAAA" else "BBBB"),
        own + ".x",
        "not a token",
    ]
    for other in others:
        assert await refusal(other) == "subject_token"
    # signed by a key of this trust domain, but of another purpose
    key: Any = world.world.keeper.authority._tokens[Purpose.WIT_SVID]
    claims = (await world.read(own)).claims()
    assert await refusal(sign_now(HEADER, claims, key)) == "subject_token"
    key = (await world.keys.current()).signer
    assert await refusal(sign_now(HEADER, claims | {"iss": ISSUER + "/txn"}, key)) == "subject_token"
    assert await refusal(own, requested_token_type=TOKEN_TYPE) == ""


async def test_a_subject_token_ends(world: TokenWorld, alpha: Agent) -> None:
    own = await world.own(alpha)
    world.clock.offset = 606
    answer = await world.exchange(alpha, own, **READ)
    assert answer.refusal == (400, "invalid_request", "authorization.subject_token")


# --- how much


async def test_less_than_the_parent_or_nothing(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    handed_on = await world.delegate(alpha, beta)
    wider = await world.exchange(beta, handed_on, resource=NOTES, scope="notes:read notes:write")
    assert wider.refusal == (400, "invalid_scope", "authorization.scope_parent")
    # B could have it by its own right, which does not matter here
    assert (await world.mtls_token(beta, resource=NOTES, scope="notes:write")).status == 200
    nothing = await world.exchange(beta, handed_on, resource=NOTES)
    assert nothing.refusal == (400, "invalid_scope", "authorization.scope_missing")
    nothing = await world.exchange(alpha, await world.own(alpha), audience=beta.id)
    assert nothing.refusal == (400, "invalid_scope", "authorization.scope_missing")
    assert (await world.exchange(beta, handed_on, **READ)).status == 200


async def test_no_policy_lets_a_token_widen(database: Database, clock: SystemClock, ids: IdSource) -> None:
    world = await open_token_world(database, clock, ids)
    alpha, beta = await world.agent("alpha"), await world.agent("beta")
    handed_on = await world.delegate(alpha, beta)
    world.world.policy = token_policy(
        (
            "// A registered agent with an owner gets tokens",
            '@id("everything") permit (principal, action, resource);\n// A registered agent with an owner gets tokens',
        )
    )
    wider = await world.exchange(beta, handed_on, resource=NOTES, scope="notes:write")
    assert wider.refusal == (400, "invalid_scope", "authorization.scope_parent")


async def test_each_one_ends_at_its_own_ceiling_too(world: TokenWorld, alpha: Agent) -> None:
    reader = await world.agent("reader")
    handed_on = await world.delegate(alpha, reader, scope="notes:read notes:write")
    wider = await world.exchange(reader, handed_on, resource=NOTES, scope="notes:write")
    assert wider.refusal == (400, "invalid_scope", "authorization.scope_ceiling")
    assert (await world.exchange(reader, handed_on, **READ)).status == 200


async def test_a_right_does_not_move_to_another_resource(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    # notes:read is a word of both resources
    handed_on = await world.delegate(alpha, beta)
    other = (400, "invalid_target", "authorization.target_other")
    assert (await world.exchange(beta, handed_on, resource=FILES, scope="notes:read")).refusal == other
    assert (await world.exchange(alpha, await world.own(alpha), resource=FILES, scope="notes:read")).refusal == other
    moved = await world.exchange(alpha, await world.own(alpha), audience=beta.id, resource=FILES, scope="notes:read")
    assert moved.refusal == other
    kept = await world.exchange(alpha, await world.own(alpha), audience=beta.id, resource=NOTES, scope="notes:read")
    assert kept.status == 200
    assert (await world.exchange(beta, handed_on, resource="urn:example:notes", scope="notes:read")).status == 200


async def test_details_stay_with_what_is_handed_on(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    scope = "notes:read notes:write"
    held = await world.mtls_token(alpha, proof=True, resource=NOTES, scope=scope, authorization_details=SHARE)
    handed_on = await world.exchange(alpha, held.token, audience=beta.id, scope=scope, authorization_details=SHARE)
    assert (await world.read(handed_on.token)).details == ({"type": "notes:share", "note": "n1", "copies": 2},)

    async def take(details: str | None, subject: str = handed_on.token) -> Any:
        more = {} if details is None else {"authorization_details": details}
        return await world.exchange(beta, subject, resource=NOTES, scope=scope, **more)

    refused = (400, "invalid_authorization_details", "authorization.details_parent")
    changed = SHARE.replace('"copies":2', '"copies":3')
    assert (await take(changed)).refusal == refused
    assert (await take(f"{SHARE[:-1]},{changed[1:]}")).refusal == refused
    reordered = '[{"copies": 2, "note": "n1", "type": "notes:share"}]'
    assert (await take(reordered)).json["authorization_details"] == [{"type": "notes:share", "note": "n1", "copies": 2}]
    # not to repeat them is to keep them
    kept = (await take(None)).json["authorization_details"]
    assert kept == [{"type": "notes:share", "note": "n1", "copies": 2}]
    # a parent without details holds none
    bare = await world.delegate(alpha, beta, scope=scope)
    assert (await take(SHARE, bare)).refusal == refused
    assert "authorization_details" not in (await take(None, bare)).json


# --- who may hand on, and to whom


async def test_a_posture_may_forbid_handing_on(world: TokenWorld, beta: Agent) -> None:
    shared = await world.agent("shared", posture="shared-uid")
    free = await world.agent("free", measured=False)
    for capped in (shared, free):
        answer = await world.exchange(capped, await world.own(capped), audience=beta.id, scope="notes:read")
        assert answer.refusal == (400, "access_denied", "authorization.delegation_posture")
        assert (await world.exchange(capped, await world.own(capped), **READ)).status == 200
    world.world.policy = token_policy(
        (
            'name = "shared-uid"\nhigh = false\ndelegation = false',
            'name = "shared-uid"\nhigh = false\ndelegation = true',
        )
    )
    answer = await world.exchange(shared, await world.own(shared), audience=beta.id, scope="notes:read")
    assert answer.json["expires_in"] <= 300


async def test_rights_are_handed_to_live_agents_alone(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    from aims.provisioning.registry.model import Kind

    service = await world.agent("store", kind=Kind.SERVICE)
    own = await world.own(alpha)
    unknown = (400, "invalid_target", "authorization.target_unknown")
    for receiver in (
        "spiffe://local.test/agents/nobody",
        "spiffe://other.test/agents/beta",
        "spiffe://local.test/nodes/laptop",
        service.id,
        beta.id + "/sub/x",
        "spiffe://local.test",
    ):
        assert (await world.exchange(alpha, own, audience=receiver, scope="notes:read")).refusal == unknown
    several = await world.exchange(alpha, own, audience=[beta.id, alpha.id], scope="notes:read")
    assert several.refusal == (400, "invalid_target", "authorization.target_several")
    missing = await world.exchange(alpha, own, scope="notes:read")
    assert missing.refusal == (400, "invalid_target", "authorization.target_missing")
    await world.stop(Name("agent", beta.id), told=False)
    stopped = await world.exchange(alpha, own, audience=beta.id, scope="notes:read")
    assert stopped.refusal == (400, "invalid_grant", "authorization.stopped")


# --- stops


@pytest.mark.parametrize("whose", ["subject", "grant", "giver's instance", "the client's own grant"])
@pytest.mark.parametrize("told", [True, False])
async def test_whatever_the_subject_token_depends_on_can_be_stopped(
    world: TokenWorld, alpha: Agent, beta: Agent, whose: str, told: bool
) -> None:
    handed_on = await world.delegate(alpha, beta)
    assert (await world.exchange(beta, handed_on, **READ)).status == 200
    grant_id = (await world.read(handed_on)).grant_id
    name = {
        "subject": Name("agent", alpha.id),
        "grant": Name("grant", grant_id),
        "giver's instance": Name("instance", alpha.instance),
        "the client's own grant": Name("grant", "agent:beta"),
    }[whose]
    await world.stop(name, told=told)
    answer = await world.exchange(beta, handed_on, **READ)
    if whose == "the client's own grant":
        assert answer.status == 200
    else:
        assert answer.json["aims_error"] == f"authorization.{'subject_stopped' if told else 'stopped'}"
        assert world.record()["type"] == "token.refuse"


async def test_resuming_leaves_old_tokens_dead_and_new_ones_alive(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    old = await world.delegate(alpha, beta)
    await world.stop(Name("agent", alpha.id))
    await world.stop(Name("agent", alpha.id), blocked=False)
    dead = await world.exchange(beta, old, **READ)
    assert dead.refusal == (400, "invalid_request", "authorization.subject_stopped")
    # B's SVID is older than the stop of A, and that does not matter
    again = await world.run(alpha.registered)
    assert (await world.exchange(beta, await world.delegate(again, beta), **READ)).status == 200


async def test_exchanges_at_once_give_a_token_and_a_record_each_and_equal_proofs_one(
    world: TokenWorld, alpha: Agent, beta: Agent
) -> None:
    handed_on = await world.delegate(alpha, beta)
    before = len(await _records(world))
    answers = await asyncio.gather(*(world.exchange(beta, handed_on, **READ) for _ in range(10)))
    assert [answer.status for answer in answers] == [200] * 10
    tokens = [await world.read(answer.token) for answer in answers]
    assert len({token.token_id for token in tokens}) == 10
    assert {token.actors for token in tokens} == {(beta.id,)}
    assert len(await _records(world)) - before == 10
    proof = world.proof(beta.key, MTLS + TOKEN)
    answers = await asyncio.gather(*(world.exchange(beta, handed_on, proof=proof, **READ) for _ in range(16)))
    assert sorted(answer.status for answer in answers) == [200] + [400] * 15


async def test_policy_may_forbid_an_exchange(database: Database, clock: SystemClock, ids: IdSource) -> None:
    world = await open_token_world(database, clock, ids)
    alpha, beta = await world.agent("alpha"), await world.agent("beta")
    handed_on = await world.delegate(alpha, beta)
    mark = "// A registered agent with an owner gets tokens"
    rule = 'forbid (principal, action == AIMS::Action::"exchange", resource is AIMS::Resource)'
    world.world.policy = token_policy((mark, f'@id("short") {rule} when {{ context.actors > 0 }};\n{mark}'))
    assert (await world.exchange(beta, handed_on, **READ)).refusal == (400, "access_denied", "authorization.policy")
    assert (await world.exchange(alpha, await world.own(alpha), **READ)).status == 200
