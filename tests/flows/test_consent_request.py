"""The authorization request: whom it may be answered, what it may ask, and how long and often it waits."""

from __future__ import annotations

import asyncio
import html
import json
import re
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from tests.flows.people_world import CALLBACK, HERE, VERIFIER, Browser, PeopleWorld, open_people_world, query_of
from tests.flows.provisioning_world import cause
from tests.flows.token_world import FILES, INNER, ISSUER, NOTES, Agent, token_policy

from aims.authorization.people import request
from aims.authorization.people.consent import ConsentService
from aims.authorization.people.errors import PeopleError
from aims.authorization.people.pkce import transform
from aims.authorization.people.store import Pending
from aims.clock import IdSource, SystemClock
from aims.provisioning.registry.model import Kind
from aims.provisioning.registry.service import Registration
from aims.server.people_routes import AUTHORIZATION, CONSENT, GRANTS, SESSION_COOKIE
from aims.storage.database import Database
from aims.storage.intent import Plan
from aims.storage.write import Name


@pytest_asyncio.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> PeopleWorld:
    return await open_people_world(database, clock, ids)


async def ready(world: PeopleWorld) -> tuple[Agent, Browser]:
    """Ada, logged in, and an agent that may be approved."""
    await world.person()
    agent, browser = await world.client(), Browser(world)
    await browser.log_in()
    return agent, browser


NEAR_MISSES = (
    None,
    "",
    "http://127.0.0.1/callback/",
    "http://127.0.0.1/Callback",
    "http://127.0.0.1/callback?x=1",
    "http://127.0.0.1/callback#f",
    "http://127.0.0.1/callbac",
    "http://127.0.0.1/callback%20",
    "http://127.0.0.1:99999/callback",
    "http://127.0.0.1:0/callback",
    "http://127.0.0.1:051234/callback",
    "http://127.0.0.1:/callback",
    "http://127.0.0.2/callback",
    "http://localhost/callback",
    "http://[::1]/callback",
    "https://127.0.0.1/callback",
    "http://user@127.0.0.1/callback",
    "http://127.0.0.1.evil.example/callback",
    "http://127.0.0.1:80@evil.example/callback",
    "http://127.0.0.1\\@evil.example/callback",
    "//127.0.0.1/callback",
    "javascript:alert(1)",
    "data:text/html,x",
    "https://app.example/cb/",
    "https://app.example:8443/cb",
    "https://app.example/cb?state=1",
    "https://APP.example/cb",
    "https://x.app.example/cb",
    "https://app.example.evil.example/cb",
    "com.example.app:/cb2",
)


async def test_near_misses_of_a_redirect_uri_stay_on_the_page(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    await world.redirects(agent, CALLBACK, "https://app.example/cb", "com.example.app:/cb")
    for uri in NEAR_MISSES:
        page = await browser.authorize(agent, redirect_uri=uri)
        assert (page.status, page.header("location")) == (400, ""), uri
        assert page.code in {"authorization.request_redirect", "authorization.request_parameters"}, uri


async def test_what_is_registered_gets_the_answer(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    await world.redirects(agent, CALLBACK, "https://app.example/cb", "com.example.app:/cb", "http://[::1]/x?a=b")
    for uri in (HERE, CALLBACK, "https://app.example/cb", "com.example.app:/cb", "http://[::1]:7/x?a=b"):
        page = await browser.authorize(agent, redirect_uri=uri)
        assert page.status == 200, page.text
        assert "form-action 'self' " in page.header("content-security-policy")
        done = await browser.decide(page)
        assert done.status == 303, "never 307: the form must not be sent on"
        assert done.header("location").startswith(f"{uri}{'&' if '?' in uri else '?'}code=")
        assert done.header("referrer-policy") == "no-referrer"


async def test_an_unknown_client_gets_no_answer_at_all(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    for client in ("", "spiffe://local.test/agents/nobody", "researcher", "spiffe://evil.test/agents/researcher"):
        page = await browser.authorize(agent, client_id=client)
        assert (page.status, page.header("location"), page.code) == (400, "", "authorization.request_client")


async def test_a_service_is_no_client(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    wanted = Registration(kind=Kind.SERVICE, name="notes", owner="team-a")
    service = await world.world.commit(world.world.admin.register(wanted, cause()))
    page = await browser.authorize(agent, client_id=str(service.workload.spiffe_id))
    assert page.code == "authorization.request_client"


WRONG: tuple[tuple[dict[str, str | None], str], ...] = (
    ({"response_type": None}, "unsupported_response_type"),
    ({"response_type": "token"}, "unsupported_response_type"),
    ({"response_type": "code token"}, "unsupported_response_type"),
    ({"response_mode": "fragment"}, "unsupported_response_type"),
    ({"code_challenge": None}, "invalid_request"),
    ({"code_challenge_method": None}, "invalid_request"),
    ({"code_challenge_method": "plain"}, "invalid_request"),
    ({"code_challenge_method": "s256"}, "invalid_request"),
    ({"code_challenge": VERIFIER}, "invalid_request"),
    ({"code_challenge": transform(VERIFIER) + "="}, "invalid_request"),
    ({"code_challenge": transform(VERIFIER)[:-1]}, "invalid_request"),
    ({"request": "eyJ.a.b"}, "invalid_request"),
    ({"request_uri": "https://evil.example/r"}, "invalid_request"),
    ({"dpop_jkt": "short"}, "invalid_request"),
    ({"resource": None}, "invalid_target"),
    ({"resource": INNER}, "invalid_target"),
    ({"resource": NOTES + "/"}, "invalid_target"),
    ({"resource": f"{NOTES}#x"}, "invalid_target"),
    ({"scope": None}, "invalid_scope"),
    ({"scope": ""}, "invalid_scope"),
    ({"scope": "*"}, "invalid_scope"),
    ({"scope": "notes:read notes:read"}, "invalid_scope"),
    ({"scope": "notes:read  notes:write"}, "invalid_scope"),
    ({"scope": "notes:read files:read"}, "invalid_scope"),
    ({"authorization_details": "[]"}, "invalid_authorization_details"),
    ({"authorization_details": '[{"type":"notes:share","note":"n","copies":99}]'}, "invalid_authorization_details"),
)


async def test_what_is_wrong_is_told_to_the_agent_by_redirect(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    for changes, error in WRONG:
        page = await browser.authorize(agent, **changes)
        answer = page.answer
        assert (answer["error"], answer["state"], answer["iss"]) == (error, "s-1", ISSUER), changes
        assert "code" not in answer
        place = urlsplit(page.header("location"))
        assert f"{place.scheme}://{place.netloc}{place.path}" == HERE
    assert world.record()["type"] == "person.refuse"


async def test_two_resources_or_two_states_are_refused(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    twice = await browser.get("/oauth/authorize", query_of(agent) + "&resource=x")
    assert twice.answer["error"] == "invalid_target"
    page = await browser.get("/oauth/authorize", query_of(agent) + "&state=x")
    assert (page.status, page.code) == (400, "authorization.request_parameters")


async def test_scopes_beyond_the_ceiling_are_not_even_offered(world: PeopleWorld) -> None:
    await world.person()
    reader, browser = await world.client("reader"), Browser(world)
    await browser.log_in()
    page = await browser.authorize(reader, scope="notes:read notes:write notes:purge")
    assert "notes:read" in page.text
    assert "notes:write" not in page.text
    redeemed = await world.redeem(reader, (await browser.decide(page)).answer["code"])
    assert (await world.read(redeemed.token)).scopes == {"notes:read"}
    assert (await browser.authorize(reader, scope="notes:write")).answer["error"] == "invalid_scope"
    assert (await browser.authorize(reader, resource="urn:example:files", scope="files:read")).status == 200
    assert (await browser.authorize(reader, resource=FILES, scope="files:read")).answer["error"] == "invalid_target"


async def test_details_are_shown_and_go_into_the_token(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    page = await browser.authorize(agent, authorization_details='[{"type":"notes:share","note":"<n>","copies":3}]')
    assert "<dt>copies</dt><dd><bdi>3</bdi></dd>" in page.text
    assert "<dt>note</dt><dd><bdi>&lt;n&gt;</bdi></dd>" in page.text
    token = await world.read((await world.redeem(agent, (await browser.decide(page)).answer["code"])).token)
    assert token.details == ({"type": "notes:share", "note": "<n>", "copies": 3},)


async def test_no_value_of_the_details_looks_like_another_member(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    digests = set()
    for note in ("a, type: notes:read", "a</bdi></dd><dt>type</dt><dd><bdi>notes:read", "\u05d0 copies: 9"):
        details = json.dumps([{"type": "notes:share", "note": note, "copies": 10}])
        page = await browser.authorize(agent, authorization_details=details)
        shown = re.findall(r"<dt>([^<]*)</dt><dd><bdi>([^<]*)</bdi></dd>", page.text)
        members = [(name, html.unescape(value)) for name, value in shown]
        assert members == [("copies", "10"), ("note", note), ("type", "notes:share")]
        digests.add(page.hidden("shown"))
    assert len(digests) == 3, "a yes is to the values that were shown"


async def test_no_value_of_the_details_moves_what_stands_around_it(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    good: dict[str, object] = {"type": "notes:share", "note": "n", "copies": 3}
    for sign in ("\u202e", "\u2066", "\u200b", "\n", "\x07", "\x7f", "\u2028", "\u00ad"):
        for hidden in ({"note": f"a{sign}b"}, {f"copies{sign}": 3}, {"type": f"notes:share{sign}"}):
            page = await browser.authorize(agent, authorization_details=json.dumps([good | hidden]))
            assert page.answer["error"] == "invalid_authorization_details", hidden
    fine = json.dumps([good | {"note": "a, \u65e5\u672c \u05d0"}])
    assert (await browser.authorize(agent, authorization_details=fine)).status == 200


async def test_one_request_waits_for_each_agent_and_scope(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    other = await world.client("other")
    first = await browser.authorize(agent)
    again = await browser.authorize(agent)
    assert again.hidden("request") == first.hidden("request"), "the same page, loaded again"
    assert (await browser.authorize(agent, scope="notes:read")).status == 200, "another scope is another question"
    assert (await browser.authorize(other)).status == 200
    assert (await browser.get(GRANTS)).text.count('value="drop"') == 3
    assert (await browser.decide(first, "deny")).status == 303
    assert (await browser.authorize(agent, state="s-2")).status == 200
    world.clock.offset += 601
    assert (await browser.authorize(agent, state="s-3")).status == 200, "it ends by itself"


async def test_a_newer_request_takes_the_place_of_an_older_one(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    others = [await world.client(f"agent-{number}") for number in range(15)]
    assert [(await browser.authorize(other)).status for other in others] == [200] * 15
    first = await browser.authorize(agent)
    second = await browser.authorize(agent, state="s-2", dpop_jkt=agent.key.jkt)
    assert second.status == 200, "also where no more may wait"
    assert second.hidden("request") != first.hidden("request")
    assert world.record()["type"] == "approval.request"
    assert (await browser.get(GRANTS)).text.count('value="drop"') == 16
    for decision in ("approve", "deny"):
        late = await browser.decide(first, decision)
        assert (late.status, late.code) == (410, "authorization.pending_gone")
    answer = (await browser.decide(second)).answer
    assert answer["state"] == "s-2"
    assert (await world.redeem(agent, answer["code"])).json["token_type"] == "DPoP"


async def test_of_requests_at_once_one_waits(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    for others in ((), ("s-a",)):
        for state in others:
            assert (await browser.authorize(agent, state=state)).status == 200
        seen = await asyncio.gather(*(browser.authorize(agent, state=f"s-{number}") for number in range(8)))
        assert {each.status for each in seen} <= {200, 409}
        assert (await browser.get(GRANTS)).text.count('value="drop"') == 1
        pressed = [await browser.decide(each) for each in seen if each.status == 200]
        assert sorted(each.status for each in pressed) == [303] + [410] * (len(pressed) - 1)


async def test_of_a_request_and_what_overtakes_it_one_counts(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    consent = ConsentService(world, world.database, ISSUER)
    session = await world.login.session(browser.cookies[SESSION_COOKIE])

    async def plan(state: str) -> Plan[Pending]:
        form = request.read(query_of(agent, state=state).encode())
        found = await consent.wait(consent.examine(form, await consent.addressee(form)), session)
        assert isinstance(found, Plan)
        return found

    # both see an empty place, then both see the first one in it
    for one, another in (("s-1", "s-2"), ("s-3", "s-4")):
        plans = [await plan(one), await plan(another)]
        plans[0].answer(await world.database.commit(plans[0].write))
        with pytest.raises(PeopleError, match="pending_other"):
            plans[1].answer(await world.database.commit(plans[1].write))
    # it was decided meanwhile
    page, late = await browser.authorize(agent, state="s-3"), await plan("s-5")
    assert (await browser.decide(page)).status == 303
    with pytest.raises(PeopleError, match="pending_other"):
        late.answer(await world.database.commit(late.write))
    # it was replaced meanwhile
    page = await browser.authorize(agent, state="s-6")
    decision = await consent.decide(session, page.hidden("request"), approve=True, shown=page.hidden("shown"))
    assert (await browser.authorize(agent, state="s-7")).status == 200
    with pytest.raises(PeopleError, match="pending_gone"):
        decision.answer(await world.database.commit(decision.write))


NARROW = (
    'scopes = ["notes:read", "notes:write", "notes:purge"]\n\n[[ceilings]]',
    'scopes = ["notes:read"]\n\n[[ceilings]]',
)
MOVED = ('url = "https://localhost:9443/mcp-oauth"', 'url = "https://localhost:9447/mcp-oauth"')


async def test_a_yes_covers_what_was_shown(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    page, wide = await browser.authorize(agent), world.world.policy
    pending = (await waiting(world, browser))[0]
    # it is shown while the policy is narrow, and the policy is widened before the button is pressed
    world.world.policy = token_policy(NARROW)
    narrow = ConsentService(world, world.database, ISSUER).show(pending)
    assert narrow.scopes == ("notes:read",)
    form = {"csrf": page.hidden("csrf"), "request": pending.id, "decision": "approve"}
    world.world.policy = wide
    for shown in ({"shown": narrow.digest}, {"shown": ""}, {"shown": page.hidden("shown")[:-1]}, {}):
        refused = await browser.post(CONSENT, form | shown)
        assert (refused.status, refused.code) == (410, "authorization.pending_gone"), shown
        assert world.record()["type"] == "person.refuse"
    # less than was shown is no more what was approved, nor the same at another place, nor for longer
    for change in (NARROW, MOVED, ("seconds = 60", "seconds = 59")):
        world.world.policy = token_policy(change)
        assert (await browser.decide(page)).code == "authorization.pending_gone", change
    # what was shown is as good as before
    world.world.policy = wide
    redeemed = await world.redeem(agent, (await browser.decide(page)).answer["code"])
    assert (await world.read(redeemed.token)).scopes == {"notes:read", "notes:write"}


async def test_a_no_needs_no_word_of_what_was_shown(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    page = await browser.authorize(agent)
    world.world.policy = token_policy(NARROW)
    form = {"csrf": page.hidden("csrf"), "request": page.hidden("request"), "decision": "deny"}
    assert (await browser.post(CONSENT, form)).answer["error"] == "access_denied"


async def waiting(world: PeopleWorld, browser: Browser) -> tuple[Pending, ...]:
    session = await world.login.session(browser.cookies[SESSION_COOKIE])
    return await ConsentService(world, world.database, ISSUER).waiting(session)


async def test_what_fetches_ahead_asks_nothing(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    before = len(world.world.records())
    fetches: list[dict[str, str]] = [
        {"sec_purpose": "prefetch"},
        {"sec_purpose": "prefetch;prerender", "sec_fetch_site": "cross-site"},
        {"purpose": "prefetch"},
        {"sec_fetch_mode": "no-cors"},
        {"sec_fetch_mode": "", "sec_fetch_dest": "", "sec_fetch_site": ""},
    ]
    for headers in fetches:
        for query in (query_of(agent), query_of(agent, scope="no")):
            page = await browser.get(AUTHORIZATION, query, **headers)
            assert (page.status, page.header("location")) == (403, ""), headers
            assert "Nothing has happened yet" in page.text
            assert "researcher" not in page.text
    assert await waiting(world, browser) == ()
    assert len(world.world.records()) == before
    for site in ("none", "cross-site", "same-site", "same-origin"):
        page = await browser.get(AUTHORIZATION, query_of(agent, state=site), sec_fetch_site=site)
        assert page.status == 200, site


async def test_nobody_is_buried_under_requests(world: PeopleWorld) -> None:
    _, browser = await ready(world)
    agents = [await world.client(f"agent-{number}") for number in range(17)]
    pages = [await browser.authorize(agent) for agent in agents]
    assert [page.status for page in pages] == [200] * 16 + [429]
    overview = await browser.get(GRANTS)
    assert overview.text.count('value="drop"') == 16
    form = {"csrf": overview.hidden("csrf"), "request": overview.hidden("request"), "decision": "drop"}
    dropped = await browser.post(CONSENT, form)
    assert (dropped.status, dropped.header("location")) == (303, GRANTS)
    assert world.record()["type"] == "approval.deny"
    assert (await browser.authorize(agents[-1])).status == 200


async def test_no_is_an_answer_and_gives_nothing(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    page = await browser.authorize(agent)
    assert (await browser.decide(page, "deny")).answer == {"error": "access_denied", "state": "s-1", "iss": ISSUER}
    assert world.record()["type"] == "approval.deny"
    for decision in ("approve", "deny"):
        late = await browser.decide(page, decision)
        assert (late.status, late.code) == (410, "authorization.pending_gone")
    assert (await browser.decide(page, "perhaps")).code == "authorization.browser_form"


async def test_only_the_person_who_was_asked_decides(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    await world.person("Eve")
    eve = Browser(world)
    await eve.log_in("Eve")
    page = await browser.authorize(agent)
    form = {"csrf": (await eve.get(GRANTS)).hidden("csrf"), "request": page.hidden("request"), "decision": "approve"}
    refused = await eve.post(CONSENT, form)
    assert (refused.status, refused.code) == (410, "authorization.pending_gone")
    assert (await browser.decide(page)).status == 303


async def test_a_decision_comes_too_late_or_after_a_change(world: PeopleWorld) -> None:
    agent, browser = await ready(world)
    page = await browser.authorize(agent)
    await world.stop(Name("agent", agent.id), told=False)
    assert (await browser.decide(page)).code == "authorization.pending_gone"
    await world.stop(Name("agent", agent.id), blocked=False)
    page = await browser.authorize(agent)
    world.clock.offset += 601
    assert (await browser.decide(page)).code == "authorization.pending_gone"


async def test_without_a_session_nothing_waits(world: PeopleWorld) -> None:
    agent, _ = await ready(world)
    before = len(world.world.records())
    page = await Browser(world).authorize(agent)
    assert (page.status, page.code) == (401, "authorization.session_none")
    framed = await Browser(world).get("/oauth/authorize", "", sec_fetch_dest="iframe")
    assert (framed.status, framed.code) == (403, "authorization.browser_foreign")
    assert [record["type"] for record in world.world.records()[before:]] == ["person.refuse"]
