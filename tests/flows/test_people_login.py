"""Logging in by a link, and what a browser that is led here by somebody else can and cannot do."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
import pytest_asyncio
from tests.flows.people_world import LINK_COOKIE, Browser, PeopleWorld, Seen, open_people_world
from tests.flows.provisioning_world import cause
from tests.flows.token_world import ISSUER

from aims.authorization.people.errors import PeopleError
from aims.authorization.people.login import csrf_of
from aims.clock import IdSource, SystemClock
from aims.server.people_routes import CONSENT, GRANTS, LOGIN, LOGOUT, SESSION_COOKIE, WITHDRAWAL, People
from aims.storage.database import Database
from aims.storage.write import Name

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}'


@pytest_asyncio.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> PeopleWorld:
    return await open_people_world(database, clock, ids)


def form_of(page: Seen) -> dict[str, str]:
    return {"link": page.hidden("link"), "csrf": page.hidden("csrf")}


async def test_a_link_lets_one_person_in_once(world: PeopleWorld) -> None:
    ada = await world.person()
    browser, link = Browser(world), await world.link()
    page = await browser.open(link)
    assert "Log in as Ada" in page.text
    assert (await browser.get(GRANTS)).status == 401, "opening is not logging in"
    assert (await browser.post(LOGIN, form_of(page))).status == 303
    assert "Ada" in (await browser.get(GRANTS)).text
    records = world.world.records()
    assert [record["action"] for record in records[-2:]] == ["link.open", "link.use"]
    assert {record["type"] for record in records[-2:]} == {"person.login"}
    assert ada.sub not in str(records)
    assert "Ada" not in str(records), "a name is personal data and stands in no record"
    assert link not in str(records)

    again = await browser.post(LOGIN, form_of(page))
    assert again.code == "authorization.link_browser", "the cookie of the link is gone"
    second = Browser(world)
    assert (await second.open(link)).code == "authorization.link_unknown"


async def test_what_fetches_ahead_opens_nothing(world: PeopleWorld) -> None:
    await world.person()
    link, browser = await world.link(), Browser(world)
    before = len(world.world.records())
    fetches: list[dict[str, str]] = [
        {"sec_fetch_mode": "", "sec_fetch_dest": "", "sec_fetch_site": ""},
        {"sec_purpose": "prefetch"},
        {"sec_purpose": "prefetch;prerender"},
        {"purpose": "prefetch"},
        {"sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"},
        {"sec_fetch_mode": "cors", "sec_fetch_dest": "empty"},
        {"sec_fetch_dest": "iframe"},
    ]
    for headers in fetches:
        page = await Browser(world).get(LOGIN, f"link={link}", **headers)
        assert (page.status, page.header("set-cookie")) == (200, "")
        assert "Nothing has happened yet" in page.text
        assert "Ada" not in page.text
    assert len(world.world.records()) == before
    assert (await browser.post(LOGIN, form_of(await browser.open(link)))).status == 303


async def test_a_link_belongs_to_the_browser_that_opened_it(world: PeopleWorld) -> None:
    await world.person()
    link, first, second = await world.link(), Browser(world), Browser(world)
    page = await first.open(link)
    assert (await first.open(link)).status == 200, "the same browser may load it again"
    other = await second.open(link)
    assert (other.status, other.code) == (403, "authorization.link_browser")
    # not even with what stands in the page of the first one
    second.cookies[LINK_COOKIE] = "A" * 43
    refused = await second.post(LOGIN, form_of(page))
    assert (refused.status, refused.code) == (403, "authorization.browser_form")
    # nor with a form that it made for itself: the link is another's
    own = {"link": link, "csrf": csrf_of("A" * 43)}
    stolen = await second.post(LOGIN, own)
    assert (stolen.status, stolen.code) == (403, "authorization.link_browser")
    assert (await first.post(LOGIN, form_of(page))).status == 303


async def test_a_link_that_was_never_opened_is_not_used(world: PeopleWorld) -> None:
    await world.person()
    with pytest.raises(PeopleError) as caught:
        await world.login.use(await world.link(), "A" * 43)
    assert caught.value.reason == "link_closed"


async def test_a_link_ends_after_ten_minutes(world: PeopleWorld) -> None:
    await world.person()
    link, browser = await world.link(), Browser(world)
    page = await browser.open(link)
    world.clock.offset += 601
    late = await browser.post(LOGIN, form_of(page))
    assert (late.status, late.code) == (410, "authorization.link_unknown")
    assert (await Browser(world).open(link)).code == "authorization.link_unknown"
    assert (await Browser(world).open("A" * 43)).code == "authorization.link_unknown"


@pytest.mark.parametrize("told", [True, False])
async def test_a_link_dies_with_its_person(world: PeopleWorld, told: bool) -> None:
    ada = await world.person()
    browser = Browser(world)
    page = await browser.open(await world.link())
    await world.stop(Name("person", ada.sub), told=told)
    refused = await browser.post(LOGIN, form_of(page))
    assert (refused.status, refused.code) == (403, "authorization.person_stopped")
    assert SESSION_COOKIE not in browser.cookies
    world.follow()
    await world.stop(Name("person", ada.sub), blocked=False)
    late = await browser.post(LOGIN, form_of(page))
    assert late.code == "authorization.person_stopped", "a link from before the stop stays dead"
    assert (await Browser(world).open(await world.link())).status == 200
    await world.stop(Name("person", ada.sub))
    with pytest.raises(PeopleError) as caught:
        await world.login.link("Ada", cause())
    assert caught.value.reason == "person_stopped"


async def test_of_sixteen_uses_of_a_link_one_begins_a_session(world: PeopleWorld) -> None:
    await world.person()
    for _ in range(5):
        browser = Browser(world)
        page = await browser.open(await world.link())
        twins = [Browser(world, dict(browser.cookies)) for _ in range(16)]
        seen = await asyncio.gather(*(twin.post(LOGIN, form_of(page)) for twin in twins))
        assert Counter(each.status for each in seen) == {303: 1, 410: 15}
        assert sum(SESSION_COOKIE in twin.cookies for twin in twins) == 1


async def test_of_two_browsers_that_open_a_link_at_once_one_has_it(world: PeopleWorld) -> None:
    await world.person()
    link = await world.link()
    browsers = [Browser(world) for _ in range(8)]
    seen = await asyncio.gather(*(browser.open(link) for browser in browsers))
    assert Counter(each.status for each in seen) == {200: 1, 403: 7}


async def test_a_session_ends(world: PeopleWorld) -> None:
    await world.person()
    browser = Browser(world)
    await browser.log_in()
    held = Browser(world, dict(browser.cookies))
    page = await browser.get(GRANTS)
    assert (await browser.post(LOGOUT, {"csrf": page.hidden("csrf")})).status == 303
    assert browser.cookies == {}
    assert (await held.get(GRANTS)).status == 401, "the cookie alone is worth nothing any more"
    assert world.record()["type"] == "person.logout"
    await browser.log_in()
    world.clock.offset += 8 * 3600 + 1
    assert (await browser.get(GRANTS)).status == 401


async def test_two_cookies_of_one_name_are_none(world: PeopleWorld) -> None:
    await world.person()
    browser = Browser(world)
    await browser.log_in()
    cookie = f"{SESSION_COOKIE}={browser.cookies[SESSION_COOKIE]}"
    assert (await browser.get(GRANTS, cookie=cookie)).status == 200
    assert (await browser.get(GRANTS, cookie=f"{cookie}; {SESSION_COOKIE}=x")).status == 401
    for other in (
        f"x{cookie}",
        cookie.replace("__Host-", ""),
        f"{SESSION_COOKIE}={'A' * 4096}",
        "=",
        f"{SESSION_COOKIE}=",
    ):
        assert (await browser.get(GRANTS, cookie=other)).status == 401


FOREIGN = (
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
    {"sec_fetch_site": "none"},
    {"sec_fetch_site": ""},
    {"origin": "https://evil.example"},
    {"origin": "null", "sec_fetch_site": "cross-site"},
    {"origin": "https://localhost:8441"},
)


async def test_a_form_of_another_page_does_nothing(world: PeopleWorld) -> None:
    await world.person()
    await world.person("Eve")
    agent, browser, eve = await world.client(), Browser(world), Browser(world)
    await browser.log_in()
    await eve.log_in("Eve")
    hers = (await eve.get(GRANTS)).hidden("csrf")
    await world.redeem(agent, await browser.consent(agent))
    page = await browser.authorize(agent, scope="notes:read")
    grant = (await browser.get(GRANTS)).hidden("grant")
    form = {"csrf": page.hidden("csrf"), "request": page.hidden("request"), "decision": "approve", "grant": grant}
    attempts = [(headers, form, "browser_foreign") for headers in FOREIGN]
    attempts += [({"content_type": "text/plain"}, form, "browser_form")]
    attempts += [({}, form | {"csrf": value}, "browser_form") for value in (hers, "", "A" * 43)]
    for path in (LOGOUT, CONSENT, WITHDRAWAL):
        for headers, sent, code in attempts:
            refused = await browser.post(path, sent, **headers)
            assert (refused.status, refused.code) == (403, f"authorization.{code}"), (path, headers)
            last = world.record()
            assert (last["type"], last["decision"]["reason"]) == ("person.refuse", f"authorization.{code}")
            assert last["principal"]["format"] == "commitment", "somebody known was used for it"
    overview = await browser.get(GRANTS)
    assert grant in overview.text
    assert page.hidden("request") in overview.text
    # browsers that name the origin of their own pages are as welcome as those that do not
    assert (await browser.post(WITHDRAWAL, form, origin=ISSUER)).status == 303
    assert (await browser.post(LOGOUT, form, origin="")).status == 303


async def test_pages_repeat_names_as_text_and_cannot_be_framed(world: PeopleWorld) -> None:
    await world.person(HOSTILE)
    agent, browser = await world.client(), Browser(world)
    page = await browser.open(await world.link(HOSTILE))
    pages = [page]
    await browser.post(LOGIN, form_of(page))
    pages += [
        await browser.authorize(agent, state=HOSTILE),
        await browser.get(GRANTS),
        await browser.get(GRANTS, cookie="a=b"),
        await browser.get(LOGIN, f"link={'A' * 43}"),
        await browser.authorize(agent, client_id=HOSTILE),
        await browser.authorize(agent, redirect_uri=f"https://evil.example/{HOSTILE}"),
    ]
    for shown in pages:
        assert "<script" not in shown.text
        assert "<img" not in shown.text
        assert "evil.example" not in shown.text
        assert "http" not in shown.header("content-security-policy").replace("http://127.0.0.1:51234", "")
        policy = shown.header("content-security-policy")
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "script-src" not in policy
        assert shown.header("x-frame-options") == "DENY"
        assert shown.header("referrer-policy") == "no-referrer"
        assert shown.header("cache-control") == "no-store"
        assert shown.header("access-control-allow-origin") == ""
        assert 'href="http' not in shown.text
    assert "&lt;script&gt;" in pages[1].text
    assert "{{ 7*7 }}" in pages[1].text


async def test_strangers_cannot_fill_the_log(world: PeopleWorld) -> None:
    people, before = People(world), len(world.world.records())
    for _ in range(100):
        await people._record(PeopleError("link_unknown"), "link.use", None)
    world.clock.offset += 2
    await people._record(PeopleError("link_unknown"), "link.use", None)
    records = world.world.records()[before:]
    # ten a second and one for the rest, and the loop may have seen the second change
    assert len(records) <= 40
    counted = [record["flood"]["count"] for record in records if record["type"] == "request.refuse"]
    assert counted
    assert sum(counted) + sum(record["type"] == "person.refuse" for record in records) == 101
