"""From an authorization request to a token: consent in words, PKCE, one code, one token, and how it ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from tests.flows.people_world import CALLBACK, HERE, VERIFIER, Browser, PeopleWorld, open_people_world
from tests.flows.token_world import ISSUER, MTLS, NOTES, TOKEN, Agent, ProofKey, token_policy

from aims.authorization import store as grants
from aims.authorization.model import dead, stored
from aims.authorization.people.pkce import transform
from aims.authorization.routes import TokenEndpoint
from aims.authorization.service import TokenService
from aims.clock import IdSource, SystemClock
from aims.provisioning.instances import Instances
from aims.server.people_routes import GRANTS, SESSION_COOKIE, WITHDRAWAL
from aims.storage.database import Database
from aims.storage.write import Name


@pytest_asyncio.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> PeopleWorld:
    return await open_people_world(database, clock, ids)


async def test_a_person_lets_an_agent_act_and_the_token_says_so(world: PeopleWorld) -> None:
    ada, agent, browser = await world.person(), await world.client(), Browser(world)
    await browser.log_in()
    page = await browser.authorize(agent)
    assert page.status == 200, page.text
    for words in ("researcher", "team-a", "notes:read", "notes:write", NOTES, "Ada", "UTC"):
        assert words in page.text, words
    answer = (await browser.decide(page)).answer
    assert answer.keys() == {"code", "state", "iss"}
    assert (answer["state"], answer["iss"]) == ("s-1", ISSUER)
    redeemed = await world.redeem(agent, answer["code"])
    assert redeemed.status == 200, redeemed.json
    token = await world.read(redeemed.token)
    assert (token.subject, token.client_id, token.actors) == (ada.sub, agent.id, (agent.id,))
    assert (token.audience, token.scopes) == (NOTES, frozenset({"notes:read", "notes:write"}))
    assert token.confirmation is not None
    assert token.confirmation.thumbprint == agent.key.jkt
    assert Name("person", ada.sub) in {Name("person", name.id) for name in token.names if name.kind == "person"}
    types = [record["type"] for record in world.world.records() if record]
    assert types[-5:] == ["person.login", "person.login", "approval.request", "grant.issue", "token.issue"]
    last = world.record()
    assert last["principal"]["format"] == "commitment"
    assert ada.sub not in str(world.world.records())


async def ready(world: PeopleWorld, **more: Any) -> tuple[Agent, Browser]:
    """Ada, logged in, and an agent that may be approved."""
    await world.person()
    agent, browser = await world.client(**more), Browser(world)
    await browser.log_in()
    return agent, browser


# --- what a code is bound to


MISFITS: tuple[tuple[dict[str, str], str], ...] = (
    ({"code_verifier": ""}, "code_verifier"),
    ({"code_verifier": "w" * 64}, "code_verifier"),
    ({"code_verifier": VERIFIER[:-1]}, "code_verifier"),
    ({"code_verifier": VERIFIER + "0"}, "code_verifier"),
    ({"code_verifier": transform(VERIFIER)}, "code_verifier"),
    ({"redirect_uri": "http://127.0.0.1:51235/callback"}, "code_redirect"),
    ({"redirect_uri": CALLBACK}, "code_redirect"),
    ({"resource": "urn:example:notes"}, "code_target"),
    ({"resource": "https://localhost:9444/files"}, "code_target"),
    ({"code": "A" * 43}, "code_unknown"),
    ({"code": ""}, "parameter_missing"),
)


async def test_what_does_not_fit_the_code_is_refused_and_spends_nothing(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    secret = await browser.consent(agent)
    for changes, code in MISFITS:
        refused = await world.redeem(agent, **{"code": secret, **changes})
        assert (refused.status, refused.json["aims_error"]) == (400, f"authorization.{code}"), changes
        assert refused.json["error"] in {"invalid_grant", "invalid_target", "invalid_request"}
    # the code is as good as before: nobody who cannot use it can spoil it
    assert (await world.redeem(agent, secret, redirect_uri=HERE, resource=NOTES)).status == 200


async def test_another_client_gets_nothing_for_a_stolen_code(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    thief = await world.client("thief")
    secret = await browser.consent(agent)
    stolen = await world.redeem(thief, secret)
    assert stolen.refusal == (400, "invalid_grant", "authorization.code_client")
    assert (await world.redeem(agent, secret)).status == 200


async def test_a_code_with_a_key_is_for_that_key(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    secret = await browser.consent(agent, dpop_jkt=agent.key.jkt)
    other = world.proof(ProofKey(), MTLS + TOKEN)
    for proof in (False, other):
        refused = await world.redeem(agent, secret, proof=proof)
        assert refused.refusal == (400, "invalid_grant", "authorization.code_key")
    assert (await world.redeem(agent, secret)).json["token_type"] == "DPoP"


async def test_a_code_lives_for_a_minute(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    secret = await browser.consent(agent)
    world.clock.offset += 61
    late = await world.redeem(agent, secret)
    assert late.refusal == (400, "invalid_grant", "authorization.code_expired")


async def test_the_token_neither_outlives_the_grant_nor_widens_it(world: PeopleWorld) -> None:
    agent, browser = await ready(world, posture="shared-uid")
    secret = await browser.consent(agent, scope="notes:read notes:purge")
    redeemed = await world.redeem(agent, secret)
    token = await world.read(redeemed.token)
    assert token.scopes == {"notes:read"}, "the posture in which it collects the code cuts again"
    assert redeemed.json["scope"] == "notes:read"
    with world.database.reading() as connection:
        grant = grants.find(connection, token.grant_id)
    assert grant is not None
    assert token.expires <= grant.expires
    later = await browser.consent(agent, scope="notes:read")
    world.world.policy = token_policy(
        ('credential = "access-token"\nseconds = 600', 'credential = "access-token"\nseconds = 3600'),
        (
            '"access-token"\nposture = "shared-uid"\nseconds = 300',
            '"access-token"\nposture = "shared-uid"\nseconds = 3600',
        ),
    )
    longer = await world.read((await world.redeem(agent, later)).token)
    with world.database.reading() as connection:
        grant = grants.find(connection, longer.grant_id)
    assert grant is not None
    assert longer.expires == grant.expires < world.clock.now() + 700, "what the person read is what holds"


async def test_nothing_is_left_when_the_posture_takes_all(world: PeopleWorld) -> None:
    agent, browser = await ready(world, posture="shared-uid")
    secret = await browser.consent(agent, scope="notes:purge")
    refused = await world.redeem(agent, secret)
    assert refused.refusal == (400, "invalid_scope", "authorization.scope_ceiling")


# --- once


async def test_the_second_use_of_a_code_ends_what_the_first_one_gave(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    secret = await browser.consent(agent)
    token = (await world.redeem(agent, secret)).token
    again = await world.redeem(agent, secret)
    assert again.refusal == (400, "invalid_grant", "authorization.code_used")
    assert world.record()["type"] == "token.reuse"
    world.follow()
    narrowed = await world.exchange(agent, token, resource=NOTES, scope="notes:read")
    assert narrowed.json["aims_error"] == "authorization.subject_stopped"
    third = await world.redeem(agent, secret)
    assert third.refusal == (400, "invalid_grant", "authorization.code_used")
    page = await browser.get(GRANTS)
    assert "no agent acts for you" in page.text


async def test_a_second_use_after_the_end_of_the_code_still_ends_the_grant(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    secret = await browser.consent(agent)
    token = await world.read((await world.redeem(agent, secret)).token)
    world.clock.offset += 90
    assert (await world.redeem(agent, secret)).json["aims_error"] == "authorization.code_used"
    world.follow()
    assert world.stops[Name("grant", token.grant_id)].blocked


async def test_of_sixteen_redemptions_one_succeeds(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    for _ in range(5):
        secret = await browser.consent(agent)
        proofs = [world.proof(agent.key, MTLS + TOKEN) for _ in range(16)]
        answers = await asyncio.gather(*(world.redeem(agent, secret, proof=proof) for proof in proofs))
        assert Counter(answer.status for answer in answers) == {200: 1, 400: 15}
        assert {answer.json.get("error") for answer in answers} == {None, "invalid_grant"}
        world.follow()
        winner = await world.read(next(answer.token for answer in answers if answer.status == 200))
        assert world.stops[Name("grant", winner.grant_id)].blocked
        records = Counter(record["type"] for record in world.world.records()[-16:])
        assert records["token.issue"] == 1
        assert records["token.reuse"] >= 1
        assert sum(records.values()) == 16


async def test_two_workers_agree_about_a_code_and_a_decision(
    world: PeopleWorld, database_url: str, tmp_path: Path, clock: SystemClock, ids: IdSource
) -> None:
    agent, browser = await ready(world)
    second = Database.open(database_url, clock=clock, ids=ids, folder=tmp_path)
    try:
        other = copy(world)
        other.database = second
        other.service = TokenService(ISSUER, other, other.keys, Instances(second), second)
        peer = world.mtls._peer
        other.mtls = TokenEndpoint(other.service, other, second, url=MTLS + TOKEN, listener="mtls", peer=peer)
        there = Browser(other, browser.cookies)
        for _ in range(5):
            page = await browser.authorize(agent)
            pressed = await asyncio.gather(*(each.decide(page) for each in (browser, there) * 8))
            assert Counter(seen.status for seen in pressed) == {303: 1, 410: 15}
            secret = next(seen for seen in pressed if seen.status == 303).answer["code"]
            tries = [(each, world.proof(agent.key, MTLS + TOKEN)) for each in (world, other) * 8]
            answers = await asyncio.gather(*(each.redeem(agent, secret, proof=proof) for each, proof in tries))
            assert Counter(answer.status for answer in answers) == {200: 1, 400: 15}
            world.follow()
    finally:
        second.close()


async def test_of_sixteen_decisions_one_counts(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    given = 0
    for _ in range(5):
        page = await browser.authorize(agent)
        pressed = ["approve", "deny"] * 8
        seen = await asyncio.gather(*(browser.decide(page, decision) for decision in pressed))
        assert Counter(each.status for each in seen) == {303: 1, 410: 15}
        given += "code" in next(each for each in seen if each.status == 303).answer
        with world.database.reading() as connection:
            rows = connection.execute(sa.select(sa.func.count()).select_from(grants.grant)).scalar_one()
        assert rows == given


# --- how it ends


async def test_withdrawal_ends_the_tree(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    helper = await world.agent("helper")
    token = (await world.redeem(agent, await browser.consent(agent))).token
    handed = await world.delegate(agent, helper, token)
    taken = await world.exchange(helper, handed, resource=NOTES, scope="notes:read")
    below = await world.read(taken.token)
    assert below.actors == (helper.id, agent.id)
    own = await world.own(agent)

    page = await browser.get(GRANTS)
    assert agent.id in page.text
    done = await browser.post(WITHDRAWAL, {"csrf": page.hidden("csrf"), "grant": page.hidden("grant")})
    assert done.status == 303
    assert world.record()["type"] == "grant.revoke"
    world.follow()

    for subject, who in ((token, agent), (handed, helper), (taken.token, helper)):
        refused = await world.exchange(who, subject, resource=NOTES, scope="notes:read")
        assert refused.json["aims_error"] == "authorization.subject_stopped", refused.json
        assert dead(stored((await world.read(subject)).names), world.seq, world.stops) is not None
    # what is the agent's own goes on
    assert (await world.exchange(agent, own, resource=NOTES, scope="notes:read")).status == 200
    assert "no agent acts for you" in (await browser.get(GRANTS)).text
    again = await browser.post(WITHDRAWAL, {"csrf": page.hidden("csrf"), "grant": page.hidden("grant")})
    assert (again.status, again.code) == (410, "authorization.grant_gone")


async def test_a_withdrawal_that_this_process_has_not_read_ends_it_too(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    token = (await world.redeem(agent, await browser.consent(agent))).token
    grant_id = (await world.read(token)).grant_id
    await world.stop(Name("grant", grant_id), told=False)
    refused = await world.exchange(agent, token, resource=NOTES, scope="notes:read")
    assert refused.json["aims_error"] == "authorization.stopped"


async def test_nobody_withdraws_what_another_gave(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    await world.person("Eve")
    eve = Browser(world)
    await eve.log_in("Eve")
    await world.redeem(agent, await browser.consent(agent))
    mine = (await browser.get(GRANTS)).hidden("grant")
    hers = await eve.get(GRANTS)
    assert agent.id not in hers.text
    refused = await eve.post(WITHDRAWAL, {"csrf": hers.hidden("csrf"), "grant": mine})
    assert (refused.status, refused.code) == (410, "authorization.grant_gone")


@pytest.mark.parametrize("told", [True, False])
async def test_a_stopped_person_ends_that_persons_delegations_and_no_others(world: PeopleWorld, told: bool) -> None:
    agent, ada = await ready(world)
    await world.person("Bob")
    bob = Browser(world)
    await bob.log_in("Bob")
    hers = (await world.redeem(agent, await ada.consent(agent))).token
    waiting = await ada.consent(agent, scope="notes:read")
    page = await ada.authorize(agent, scope="notes:write")
    his = (await world.redeem(agent, await bob.consent(agent))).token
    sub = (await world.read(hers)).subject
    await world.stop(Name("person", sub), told=told)

    refused = await world.exchange(agent, hers, resource=NOTES, scope="notes:read")
    assert refused.json["aims_error"] == ("authorization.subject_stopped" if told else "authorization.stopped")
    assert (await world.redeem(agent, waiting)).json["aims_error"] == "authorization.stopped"
    assert (await ada.decide(page)).code == "authorization.person_stopped"
    assert (await world.exchange(agent, his, resource=NOTES, scope="notes:read")).status == 200
    assert (await world.mtls_token(agent, proof=True, scope="notes:read", resource=NOTES)).status == 200
    world.follow()
    assert (await ada.get(GRANTS)).code == "authorization.person_stopped"
    assert (await bob.get(GRANTS)).status == 200


async def test_what_was_approved_before_a_stop_stays_dead_after_it_is_lifted(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    code = await browser.consent(agent)
    person = Name("person", (await world.login.session(browser.cookies[SESSION_COOKIE])).person.sub)
    await world.stop(person)
    await world.stop(person, blocked=False)
    assert (await world.redeem(agent, code)).json["aims_error"] == "authorization.stopped"
    assert (await browser.get(GRANTS)).code == "authorization.person_stopped", "the session is as old as the code"
    await browser.log_in()
    assert (await world.redeem(agent, await browser.consent(agent))).status == 200
