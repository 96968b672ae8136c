"""The Txn-Token service: who gets a token, out of what, for which purpose, and how it is carried on."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from tests.flows.people_world import Browser
from tests.flows.token_world import ISSUER, MTLS, NOTES, Agent, token_policy
from tests.flows.transaction_world import ACCESS, TOKEN_TYPE, TransactionWorld, open_transaction_world

from aims.audit.people import agent_principal
from aims.authentication.errors import AuthenticationError
from aims.authentication.liveness import StopLine, StopView
from aims.authentication.replay import MemoryWindow
from aims.authorization.access_token import HEADER as ACCESS_HEADER
from aims.authorization.transactions.transaction_token import HEADER, TransactionTokenVerifier
from aims.authorization.transactions.verification import Operation, TransactionVerifier
from aims.clock import IdSource, SystemClock
from aims.jose import sign_now
from aims.jose.jwks import parse_jwks
from aims.keys import immediate
from aims.storage.database import Database
from aims.storage.write import Name

REQUEST = (400, "invalid_request")


@pytest_asyncio.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> TransactionWorld:
    return await open_transaction_world(database, clock, ids)


async def test_the_edge_trades_an_access_token_for_one_purpose(world: TransactionWorld) -> None:
    agent = await world.agent("researcher")
    answer = await world.ask(
        world.edge, await world.own(agent), request_context='{"req_ip":"192.0.2.7","authn":"mtls","req_wl":"x"}'
    )
    assert answer.status == 200, answer.json
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json.keys() == {"access_token", "issued_token_type", "token_type", "expires_in"}
    assert (answer.json["issued_token_type"], answer.json["token_type"]) == (TOKEN_TYPE, "N_A")
    assert 0 < answer.json["expires_in"] <= 60
    token = await world.txn(answer.token)
    assert (token.subject, token.actors) == (agent.id, ())
    assert (token.purposes, token.requester) == (frozenset({"notes:share"}), world.edge.id)
    assert token.details == {"note": "n-1", "copies": 3}
    assert token.context == {"req_ip": "192.0.2.7", "authn": "mtls"}
    assert (token.grant_id, token.fence.instance) == ("agent:researcher", agent.instance)
    record = world.record()
    assert (record["type"], record["agent"]["id"], record["txn"]) == ("token.transact", world.edge.id, token.txn)
    assert record["principal"] == agent_principal(agent.id)
    assert len(answer.token.split(".")[2]) > 20
    assert answer.token.split(".")[2] not in json.dumps(world.world.records()), "no token in the log"


async def test_a_persons_action_keeps_its_person_and_its_agents(world: TransactionWorld) -> None:
    ada, agent = await world.person(), await world.client()
    helper, browser = await world.agent("helper"), Browser(world)
    await browser.log_in()
    hers = (await world.redeem(agent, await browser.consent(agent))).token
    handed = await world.delegate(agent, helper, hers, scope="notes:read notes:write")
    taken = (await world.exchange(helper, handed, resource=NOTES, scope="notes:read notes:write")).token
    token = await world.txn((await world.ask(world.edge, taken)).token)
    assert (token.subject, token.actors) == (ada.sub, (helper.id, agent.id))
    assert token.grant_id == (await world.read(hers)).grant_id
    assert world.record()["principal"]["format"] == "commitment"
    # what was handed on to an agent and not taken up yet is for nobody else
    assert (await world.ask(world.edge, handed)).json["aims_error"] == "authorization.subject_presenter"
    assert (await world.ask(helper, handed, proof=True)).json["aims_error"] == "authorization.subject_presenter"


async def test_who_may_carry_an_access_token_on(world: TransactionWorld) -> None:
    agent, other = await world.agent("researcher"), await world.agent("other")
    bound_to_key = await world.own(agent)
    bound_to_certificate = (await world.mtls_token(agent, scope="notes:read notes:write", resource=NOTES)).token
    # its audience, and its own client with the key
    assert (await world.ask(world.edge, bound_to_certificate)).status == 200
    assert (await world.ask(agent, bound_to_key, proof=True)).status == 200
    assert (await world.ask(agent, bound_to_certificate)).status == 200
    # its client without the key, another instance of its client, and anybody else
    twin = await world.run(agent.registered)
    refused = [
        await world.ask(agent, bound_to_key),
        await world.ask(twin, bound_to_key, proof=True),
        await world.ask(twin, bound_to_certificate),
    ]
    assert {answer.refusal for answer in refused} == {(*REQUEST, "authorization.subject_proof")}
    strangers = [await world.ask(who, bound_to_key, proof=True) for who in (world.inner, other)]
    assert {answer.refusal for answer in strangers} == {(*REQUEST, "authorization.subject_presenter")}


async def test_a_proof_is_spent(world: TransactionWorld) -> None:
    agent = await world.agent("researcher")
    subject, proof = await world.own(agent), world.proof(agent.key, MTLS + "/txn/token")
    asked = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "requested_token_type": TOKEN_TYPE,
        "audience": "local.test",
        "scope": "notes:share",
        "subject_token": subject,
        "subject_token_type": ACCESS,
        "request_details": '{"note":"n","copies":1}',
    }
    headers = [(b"dpop", proof.encode())]
    answers = await asyncio.gather(
        *(world.post(world.txn_mtls, asked, headers=headers, peer=agent.svid) for _ in range(16))
    )
    assert Counter(answer.status for answer in answers) == {200: 1, 400: 15}
    assert {answer.refusal for answer in answers if answer.status == 400} == {
        (400, "invalid_dpop_proof", "authentication.dpop_replay")
    }


async def test_nobody_asks_without_a_credential(world: TransactionWorld) -> None:
    agent = await world.agent("researcher")
    subject = await world.own(agent)
    form = {"grant_type": "x", "client_id": world.edge.id}
    assert (await world.post(world.txn_public, form)).refusal[:2] == (401, "invalid_client")
    assert (await world.post(world.txn_public, form | {"client_secret": "s"})).refusal[:2] == (401, "invalid_client")
    basic = [(b"authorization", b"Basic eDp5")]
    assert (await world.post(world.txn_public, form, headers=basic)).refusal[:2] == (401, "invalid_client")
    two = await world.post(world.txn_mtls, form, headers=basic, peer=world.edge.svid)
    assert two.refusal == (*REQUEST, "authorization.client_several")
    wrong = await world.ask(world.edge, subject, client_id=agent.id)
    assert wrong.refusal == (401, "invalid_client", "authorization.client_id")
    bearer = await world.post(world.txn_public, form, headers=[(b"authorization", b"Bearer " + subject.encode())])
    assert bearer.refusal[:2] == (401, "invalid_client")
    record = world.record()
    assert (record["agent"], record["claimed"]) == (None, {"client_id": world.edge.id})
    await world.stop(Name("agent", world.edge.id))
    assert (await world.ask(world.edge, subject)).refusal == (401, "invalid_client", "authorization.client_stopped")


async def test_parameters_and_their_errors(world: TransactionWorld) -> None:
    subject = await world.own(await world.agent("researcher"))
    base = "urn:ietf:params:oauth:token-type:"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"grant_type": None}, "invalid_request"),
        ({"requested_token_type": ACCESS}, "invalid_request"),
        ({"requested_token_type": None}, "invalid_request"),
        ({"audience": None}, "invalid_request"),
        ({"audience": ["local.test", "local.test"]}, "invalid_request"),
        ({"audience": ["local.test", "other.test"]}, "invalid_request"),
        ({"audience": "other.test"}, "invalid_target"),
        ({"audience": "spiffe://local.test"}, "invalid_target"),
        ({"audience": "local.test."}, "invalid_target"),
        ({"scope": None}, "invalid_request"),
        ({"scope": "notes:unknown"}, "invalid_scope"),
        ({"scope": "notes:read"}, "invalid_scope"),
        ({"scope": "notes:share notes:read"}, "invalid_scope"),
        ({"scope": "*"}, "invalid_scope"),
        ({"subject_token": None}, "invalid_request"),
        ({"subject_token_type": None, "kind": None}, "invalid_request"),
        ({"kind": base + "refresh_token"}, "invalid_request"),
        ({"kind": base + "id_token"}, "invalid_request"),
        ({"kind": base + "jwt"}, "invalid_request"),
        ({"kind": base + "saml2"}, "invalid_request"),
        ({"kind": base + "unsigned_json", "subject_token": '{"sub":"person:x"}'}, "unauthorized_client"),
        ({"kind": base + "self_signed"}, "unauthorized_client"),
        ({"kind": TOKEN_TYPE}, "invalid_request"),
        ({"request_details": "[1]"}, "invalid_request"),
        ({"request_details": "null"}, "invalid_request"),
        ({"request_details": '{"note":"a","note":"b","copies":1}'}, "invalid_request"),
        ({"request_details": "eyJub3RlIjoieCJ9"}, "invalid_request"),
        ({"request_details": '{"a":' * 1000 + "1" + "}" * 1000}, "invalid_request"),
        ({"request_details": json.dumps({"note": "x" * 9000, "copies": 1})}, "invalid_request"),
        ({"request_details": json.dumps({"note": "x" * 2**20, "copies": 1})}, "invalid_request"),
        ({"request_details": None}, "invalid_request"),
        ({"request_details": "{}"}, "invalid_request"),
        ({"request_details": '{"note":"n","copies":11}'}, "invalid_request"),
        ({"request_details": '{"note":"n","copies":"3"}'}, "invalid_request"),
        ({"request_details": '{"note":"n","copies":true}'}, "invalid_request"),
        ({"request_details": '{"note":"n","copies":3,"sub":"person:x"}'}, "invalid_request"),
        ({"request_details": '{"note":"n","copies":3,"agentic_ctx":{"model_id":"m"}}'}, "invalid_request"),
        ({"request_context": "[]"}, "invalid_request"),
        ({"request_context": '{"req_ip":"a","req_ip":"b"}'}, "invalid_request"),
        ({"request_context": '{"req_ip":"localhost"}'}, "invalid_request"),
        ({"request_context": '{"authn":{"a":1}}'}, "invalid_request"),
    ]
    for changes, error in cases:
        answer = await world.ask(world.edge, subject, **changes)
        assert answer.refusal[:2] == (400, error), (str(changes)[:80], answer.json)
        assert "access_token" not in answer.json
    assert (await world.ask(world.edge, subject)).status == 200


async def test_what_a_caller_says_about_itself_is_not_taken_over(world: TransactionWorld) -> None:
    subject = await world.own(await world.agent("researcher"))
    lies = {"req_wl": "spiffe://local.test/services/x", "txn": "t", "sub": "person:x", "act": {"sub": "x"}}
    answer = await world.ask(
        world.edge,
        subject,
        request_context=json.dumps(lies | {"agentic_ctx": {"model_id": "m", "posture": "tee"}, "authn": "dpop"}),
        req_wl=lies["req_wl"],
        txn="t",
        sub="person:x",
        act="x",
        instance="x",
    )
    token = await world.txn(answer.token)
    assert token.requester == world.edge.id
    assert token.context == {"authn": "dpop"}
    assert len(token.txn) == 22
    assert token.actors == ()


async def test_a_subject_token_that_is_not_ours_or_has_ended(world: TransactionWorld) -> None:
    agent = await world.agent("researcher")
    good = await world.own(agent)
    head, body, tail = good.split(".")
    signer = immediate((await world.keys.current()).signer)
    claims = (await world.read(good)).claims()
    now = int(world.clock.now())
    bad = {
        "another issuer": sign_now(ACCESS_HEADER, claims | {"iss": "https://evil.example"}, signer),
        "no scope": sign_now(ACCESS_HEADER, {k: v for k, v in claims.items() if k != "scope"}, signer),
        "empty scope": sign_now(ACCESS_HEADER, claims | {"scope": ""}, signer),
        "expired": sign_now(ACCESS_HEADER, claims | {"iat": now - 100, "exp": now - 1}, signer),
        "another audience": sign_now(ACCESS_HEADER, claims | {"aud": "https://nowhere.example"}, signer),
        "a txn key": sign_now(ACCESS_HEADER, claims, immediate((await world.txn_keys.current()).signer)),
        "a txn typ": sign_now(HEADER, claims, signer),
        "no signature": f"{head}.{body}.",
        "broken": f"{head}.{body}.{tail[:-4]}AAAA",
        "not a token": "x",
        "a WIT's text": "a.b.c",
    }
    for name, text in bad.items():
        answer = await world.ask(world.edge, text)
        assert answer.refusal == (*REQUEST, "authorization.txn_subject"), (name, answer.json)
    narrow = (await world.mtls_token(agent, proof=True, scope="notes:read", resource=NOTES)).token
    assert (await world.ask(world.edge, narrow)).refusal == (400, "invalid_scope", "authorization.txn_scope")


async def test_kinds_are_not_interchangeable(world: TransactionWorld) -> None:
    agent = await world.agent("researcher")
    access = await world.own(agent)
    txn = (await world.ask(world.edge, access)).token
    assert (await world.ask(world.edge, txn)).refusal == (*REQUEST, "authorization.txn_subject")
    assert (await world.replace(world.edge, access)).refusal == (*REQUEST, "authorization.txn_subject")
    exchanged = await world.exchange(agent, txn, resource=NOTES, scope="notes:read")
    assert exchanged.refusal == (*REQUEST, "authorization.subject_token")
    mine = parse_jwks((await world.txn_keys.current()).jwks)
    others = parse_jwks((await world.keys.current()).jwks)
    assert {entry["kid"] for entry in mine.entries}.isdisjoint(entry["kid"] for entry in others.entries)
    assert all(not {"d", "k"} & entry.keys() for entry in mine.entries)


async def test_a_token_that_says_exactly_what_gives_nothing_beside_it(world: TransactionWorld) -> None:
    agent = await world.agent("researcher")
    detail = '[{"type":"notes:share","note":"n-1","copies":3}]'
    exact = (
        await world.mtls_token(agent, scope="notes:read notes:write", resource=NOTES, authorization_details=detail)
    ).token
    assert (await world.ask(world.edge, exact)).status == 200
    other = await world.ask(world.edge, exact, request_details='{"note":"n-1","copies":4}')
    assert other.refusal == (*REQUEST, "authorization.txn_details")


@pytest.mark.parametrize("told", [True, False])
async def test_nothing_is_issued_on_what_was_stopped(world: TransactionWorld, told: bool) -> None:
    agent = await world.agent("researcher")
    access = await world.own(agent)
    txn = (await world.ask(world.edge, access)).token
    await world.stop(Name("grant", "agent:researcher"), blocked=False, told=told)
    for answer in (await world.ask(world.edge, access), await world.replace(world.inner, txn)):
        assert answer.refusal == (*REQUEST, "authorization.subject_stopped")
    world.follow()
    fresh = await world.own(agent)
    assert (await world.ask(world.edge, fresh)).status == 200
    await world.stop(Name("instance", agent.instance), told=told)
    assert (await world.ask(world.edge, fresh)).json["aims_error"] == "authorization.subject_stopped"


async def test_policy_decides_who_asks(world: TransactionWorld) -> None:
    subject = await world.own(await world.agent("researcher"))
    world.world.policy = token_policy(
        ('"purpose" && principal has owner', '"purpose" && principal has owner && principal.owner == "x"')
    )
    answer = await world.ask(world.edge, subject)
    assert answer.refusal == (400, "unauthorized_client", "authorization.txn_policy")
    assert world.record()["type"] == "token.refuse"


# --- replacements


async def test_a_replacement_carries_the_transaction_on_and_never_widens_it(world: TransactionWorld) -> None:
    agent = await world.agent("researcher")
    text = (await world.ask(world.edge, await world.own(agent))).token
    first = await world.txn(text)
    world.clock.offset += 20
    answer = await world.replace(world.inner, text, request_context='{"req_ip":"192.0.2.9"}')
    second = await world.txn(answer.token)
    assert (second.txn, second.subject, second.domain) == (first.txn, first.subject, first.domain)
    assert (second.grant_id, second.fence.instance, second.actors) == (first.grant_id, first.fence.instance, ())
    assert (second.requester, second.requesters) == (world.inner.id, (world.edge.id,))
    assert second.details == first.details
    assert second.began == first.issued_at < second.issued_at
    assert second.expires > first.expires
    assert world.record()["details"] == {"replacement": 1}

    changes: list[tuple[dict[str, Any], str]] = [
        ({"scope": "notes:other"}, "txn_wider"),
        ({"scope": "notes:read"}, "txn_wider"),
        ({"request_details": '{"note":"n-1","copies":4}'}, "txn_changed"),
        ({"request_details": '{"note":"n-1","copies":true}'}, "txn_changed"),
        ({"request_details": '{"note":"n-2","copies":3}'}, "txn_changed"),
        ({"request_details": '{"note":"n-1","copies":3,"more":1}'}, "txn_changed"),
        ({"request_details": '{"note":"n-1"}'}, "txn_changed"),
        ({"audience": "other.test"}, "txn_target"),
    ]
    for change, reason in changes:
        refused = await world.replace(world.inner, text, **change)
        assert (refused.status, refused.json["aims_error"]) == (400, f"authorization.{reason}"), change
    same = await world.replace(world.inner, text, request_details='{"copies":3,"note":"n-1"}')
    assert same.status == 200


async def test_only_whom_the_purpose_names_carries_a_transaction_on(world: TransactionWorld) -> None:
    agent, thief = await world.agent("researcher"), await world.agent("thief")
    text = (await world.ask(world.edge, await world.own(agent))).token
    refused = (400, "unauthorized_client", "authorization.txn_kind")
    # an agent that got hold of the text, the agent whose right it is, and a service that is not named
    for who in (thief, agent):
        assert (await world.replace(who, text)).refusal == refused
    assert world.record()["type"] == "token.refuse"
    assert (await world.replace(world.inner, text)).status == 200
    every = 'replacers = ["/services/*"]'
    world.world.policy = token_policy((every, 'replacers = ["/services/inner"]'))
    assert (await world.replace(world.inner, text)).status == 200
    assert (await world.replace(world.edge, text)).refusal == refused
    # nothing said is nobody
    world.world.policy = token_policy((every, ""))
    for who in (world.inner, world.edge, agent):
        assert (await world.replace(who, text)).refusal == refused
    assert (await world.ask(world.edge, await world.own(agent))).status == 200


def _judged(world: TransactionWorld, text: str, verifier: TransactionTokenVerifier) -> str:
    """What a tool says that has heard all stops: "accept" or the reason."""
    stops = StopView(world.clock, world.trust_domain)
    stops.full(world.seq, [StopLine(row.name.kind, row.name.id, row.seq, row.blocked) for row in world.stops.values()])
    stops.heartbeat(world.seq)
    operation = Operation(name="share", purposes=frozenset({"notes:share"}), callers=frozenset({"a caller"}))
    tool = TransactionVerifier(verifier, stops, MemoryWindow(world.clock), world.clock)
    try:
        tool.examine(SimpleNamespace(agent="a caller", txn_token=text), operation, {"note": "n-1", "copies": 3})
    except AuthenticationError as error:
        return error.reason
    return "accept"


@pytest.mark.parametrize(("told", "blocked"), [(True, True), (False, False)])
@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_stop_of_any_workload_that_asked_ends_the_transaction(
    world: TransactionWorld, told: bool, place: int, blocked: bool
) -> None:
    agent, last = await world.agent("researcher"), await world.run_service("last")
    chain = [world.edge, world.inner, await world.run_service("outer")]
    texts = [(await world.ask(world.edge, await world.own(agent))).token]
    for service in chain[1:]:
        texts.append((await world.replace(service, texts[-1])).token)
    verifier = (await world.txn_keys.current()).verifier
    assert [_judged(world, text, verifier) for text in texts] == ["accept"] * 3
    await world.stop(Name("agent", chain[place].id), blocked=blocked, told=told)
    # what was asked for before its turn goes on; from its turn on everything has ended, at the service and at tools
    answers = [await world.replace(last, text) for text in texts]
    ended = (*REQUEST, "authorization.subject_stopped")
    assert [answer.refusal if answer.status != 200 else 200 for answer in answers] == [200] * place + [ended] * (
        3 - place
    )
    world.follow()
    verdicts = ["accept"] * place + ["stopped"] * (3 - place)
    assert [_judged(world, text, verifier) for text in texts] == verdicts
    assert [_judged(world, answer.token, verifier) for answer in answers[:place]] == verdicts[:place]


async def test_a_forged_or_expired_predecessor(world: TransactionWorld) -> None:
    text = (await world.ask(world.edge, await world.own(await world.agent("researcher")))).token
    first = await world.txn(text)
    signer = immediate((await world.txn_keys.current()).signer)
    access = immediate((await world.keys.current()).signer)
    for forged in (
        sign_now(HEADER, first.claims(), access),
        sign_now({"typ": "txn_token"}, first.claims(), signer),
        sign_now(HEADER, first.claims() | {"purp": "x"}, signer),
        sign_now(HEADER, first.claims() | {"aud": "other.test"}, signer),
        text[:-6] + "AAAAAA",
    ):
        assert (await world.replace(world.inner, forged)).refusal == (*REQUEST, "authorization.txn_subject")
    world.clock.offset += 61  # the leeway of a reader is none of an issuer
    assert (await world.replace(world.inner, text)).refusal == (*REQUEST, "authorization.txn_subject")


async def test_a_transaction_ends_after_five_minutes_and_eight_replacements(world: TransactionWorld) -> None:
    text = (await world.ask(world.edge, await world.own(await world.agent("researcher")))).token
    first = await world.txn(text)
    for number in range(1, 7):
        world.clock.offset += 45
        text = (await world.replace((world.edge, world.inner)[number % 2], text)).token
        token = await world.txn(text)
        assert len(token.requesters) == number, "the chain grows by exactly one"
        assert token.expires <= first.issued_at + 300
    assert token.expires == first.issued_at + 300
    for _ in range(2):
        text = (await world.replace(world.inner, text)).token
    ninth = await world.replace(world.inner, text)
    assert ninth.refusal == (*REQUEST, "authorization.txn_replacements")


async def test_loops_are_refused_where_that_is_wanted(database: Database, clock: SystemClock, ids: IdSource) -> None:
    world = await open_transaction_world(database, clock, ids, refuse_loops=True)
    text = (await world.ask(world.edge, await world.own(await world.agent("researcher")))).token
    text = (await world.replace(world.inner, text)).token
    for who in (world.edge, world.inner):
        assert (await world.replace(who, text)).refusal == (*REQUEST, "authorization.txn_loop")


async def test_issuer_and_keys_are_those_of_the_service_alone(world: TransactionWorld) -> None:
    text = (await world.ask(world.edge, await world.own(await world.agent("researcher")))).token
    token = await world.txn(text)
    assert token.issuer == f"{ISSUER}/txn"
    assert token.domain.name == "local.test"
    assert isinstance(world.edge, Agent)
