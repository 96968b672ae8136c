"""The administrator's calls on people, and the Txn-Token service as a worker serves it."""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
import pytest_asyncio
from tests.flows.command_world import answering, typed
from tests.flows.people_world import HERE, Browser
from tests.flows.token_world import ISSUER
from tests.flows.transaction_world import ACCESS, TOKEN_TYPE, TransactionWorld, open_transaction_world

from aims.authorization.errors import AuthorizationError
from aims.cli.errors import CliError
from aims.clock import IdSource, SystemClock
from aims.errors import AimsError
from aims.jose.jwks import parse_jwks
from aims.policy.question import Decision
from aims.server import transaction_routes
from aims.server.admin import AdminCall, Operator
from aims.server.admin_people import PeopleCalls
from aims.server.core import Core
from aims.server.people_routes import LOGIN
from aims.server.transaction_routes import TransactionRoutes
from aims.storage.database import Database


@pytest_asyncio.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> TransactionWorld:
    return await open_transaction_world(database, clock, ids)


async def call(world: TransactionWorld, name: str, body: dict[str, Any] | None = None) -> Any:
    """Make an administrative call that policy permits."""
    route = next(route for route in PeopleCalls(world).routes() if route.name == name)
    operator = Operator(1000, "alice", frozenset({"operator"}), "first day")
    decision = Decision(True, "", ("operator_administers",), "p" * 64, "")
    admin = AdminCall(operator, decision, world.ids.new(), world.clock.now())
    plan = await route.plan(admin, msgspec.convert(body or {}, route.body))
    return plan.answer(await world.database.commit(plan.write))


async def test_an_administrator_makes_people_and_their_links(world: TransactionWorld) -> None:
    ada = await call(world, "person.create", {"name": "Ada"})
    assert ada["id"].startswith("person:")
    assert len(ada["id"]) == 33
    record = world.record()
    assert (record["type"], record["operator"]["user"]) == ("person.register", "alice")
    assert record["cause"] == {"admin": "alice", "reason": "first day"}
    assert [one["name"] for one in await call(world, "person.list")] == ["Ada"]
    link = await call(world, "person.link", {"name": "Ada"})
    place = urlsplit(link["url"])
    assert f"{place.scheme}://{place.netloc}{place.path}" == ISSUER + LOGIN
    assert link["expires"] <= world.clock.now() + 600
    secret = parse_qs(place.query)["link"][0]
    assert (await Browser(world).open(secret)).status == 200
    log = str(world.world.records())
    for private in (ada["id"], "Ada", secret):
        assert private not in log


async def test_names_are_unique_and_plain(world: TransactionWorld) -> None:
    await call(world, "person.create", {"name": "Ada"})
    for name in ("Ada", " Ada", "Ada\n", "A\u202eda\u0000", "x" * 129):
        with pytest.raises(AuthorizationError) as caught:
            await call(world, "person.create", {"name": name})
        assert caught.value.reason == "person_name"
    with pytest.raises(AuthorizationError) as caught:
        await call(world, "person.link", {"name": "Bob"})
    assert caught.value.reason == "person_unknown"


async def test_redirect_uris_belong_to_agents_and_are_replaced_as_a_whole(world: TransactionWorld) -> None:
    agent = await world.agent("researcher")
    await world.person()
    browser = Browser(world)
    await browser.log_in()
    uris = ["http://127.0.0.1/callback", "https://app.example/cb"]
    assert (await call(world, "client.redirects", {"agent": "researcher", "redirect_uris": uris}))[
        "agent"
    ] == "researcher"
    assert world.record()["type"] == "client.change"
    assert (await browser.authorize(agent, redirect_uri=HERE)).status == 200
    await call(world, "client.redirects", {"agent": "researcher", "redirect_uris": uris[1:]})
    assert (await browser.authorize(agent, redirect_uri=HERE)).code == "authorization.request_redirect"
    await call(world, "client.redirects", {"agent": "researcher", "redirect_uris": []})
    assert (await browser.authorize(agent, redirect_uri=uris[1])).code == "authorization.request_redirect"
    for wrong in (
        {"agent": "notes"},
        {"agent": "nobody"},
        {"agent": "researcher", "redirect_uris": ["http://evil.example/"]},
    ):
        with pytest.raises(AimsError):
            await call(world, "client.redirects", {"redirect_uris": uris} | wrong)


async def test_a_command_registers_where_the_answers_of_people_go(
    world: TransactionWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = await world.agent("researcher")
    await world.person()
    browser = Browser(world)
    await browser.log_in()
    answer = answering(world, PeopleCalls(world).routes())
    words = ("agent", "redirects", "researcher")
    await typed(answer, monkeypatch, *words, "http://127.0.0.1/callback", "--reason", "it acts for people")
    assert capsys.readouterr().out == "researcher: people's answers go to http://127.0.0.1/callback\n"
    assert world.record()["operator"]["reason"] == "it acts for people"
    assert (await browser.authorize(agent, redirect_uri=HERE)).status == 200
    for wrong in ((), ("http://127.0.0.1/callback", "--none")):
        with pytest.raises(CliError, match="--none"):
            await typed(answer, monkeypatch, *words, *wrong)
    await typed(answer, monkeypatch, *words, "--none")
    assert "it can ask nobody" in capsys.readouterr().out
    assert (await browser.authorize(agent, redirect_uri=HERE)).code == "authorization.request_redirect"


async def test_the_service_of_a_worker_issues_and_publishes(
    world: TransactionWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction_routes, "peer_svid", lambda scope: scope["peer"])
    routes = TransactionRoutes(cast("Core", world), world.keys)
    agent = await world.agent("researcher")
    asked = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "requested_token_type": TOKEN_TYPE,
        "audience": "local.test",
        "scope": "notes:share",
        "subject_token": await world.own(agent),
        "subject_token_type": ACCESS,
        "request_details": '{"note":"n","copies":1}',
    }
    answer = await world.post(routes.mtls["POST", "/txn/token"], asked, peer=world.edge.svid)
    assert (await world.txn(answer.token)).issuer == f"{ISSUER}/txn"
    refused = await world.post(routes.public["POST", "/txn/token"], asked, peer=world.edge.svid)
    assert refused.refusal == (401, "invalid_client", "authorization.client_none"), "no certificate counts there"
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await routes.public["GET", "/txn/jwks"]({}, receive, send)
    published = parse_jwks(sent[1]["body"])
    assert [entry["kid"] for entry in published.entries] == [(await world.txn_keys.current()).signer.kid]
