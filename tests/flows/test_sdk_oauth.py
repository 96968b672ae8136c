"""The call profile oauth-bound in the middleware: a token is good with its key, here, and once per proof."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import httpx2
import pytest
from tests.flows.sdk_world import AGENT, EPOCH, OTHER, TD, TOOL, Answer, World, knows, resource, scope, world
from tests.flows.workload_api_fake import until
from tests.properties.hostile import LocalKey

from aims.authentication import dpop
from aims.authorization.access_token import HEADER, AccessToken, Confirmation
from aims.credentials.model import Fence
from aims.identifiers import SpiffeId
from aims.jose import KeySet, sign_now
from aims.sdk.asgi import Middleware
from aims.sdk.caller import Caller
from aims.sdk.errors import SdkError
from aims.sdk.identity import Identity
from aims.sdk.issuer_keys import IssuerKeys
from aims.sdk.material import ProofKey
from aims.sdk.tokens import Token

URL = "https://localhost:8450/mcp-oauth"
ISSUER = "https://localhost:8440"
PERSON = "person:" + "a" * 26
FOREIGN = SpiffeId.agent(TD, "another")
Headers = list[tuple[str, str]]


class Issuer:
    """Publishes keys and signs what a test wants."""

    def __init__(self) -> None:
        self.key = LocalKey.new("ES256", "at-1")
        self.published = [self.key]
        self.fetched = 0

    async def keys(self) -> KeySet:
        self.fetched += 1
        return KeySet([key.verification for key in self.published])


class Place:
    def __init__(self, node: World, me: Identity, served: Identity) -> None:
        self.node, self.me, self.served = node, me, served
        self.issuer = Issuer()
        served._issuer_keys = IssuerKeys(self.issuer.keys, node.clock)
        self.callers: list[Caller] = []
        self.guarded = Middleware(self._app, served)
        now = int(node.clock.now())
        self.right = AccessToken(
            issuer=ISSUER,
            subject=PERSON,
            client_id=str(AGENT),
            audience=URL,
            scopes=frozenset({"refund"}),
            issued_at=now,
            expires=now + 300,
            token_id="t-1",
            grant_id="g-1",
            fence=Fence("node-1:" + "b" * 26, EPOCH),
            confirmation=Confirmation("jkt", self.key.kid),
            actors=(str(AGENT), str(FOREIGN)),
        )

    instead: Callable[[Caller, Any], Awaitable[None]] | None = None
    """What the application does with a caller, if not answer 200."""

    @property
    def key(self) -> ProofKey:
        return self.me.live.require_proof()

    def text(self, key: LocalKey | None = None, **changes: Any) -> str:
        return sign_now(HEADER, replace(self.right, **changes).claims(), key or self.issuer.key)

    def headers(self, text: str, method: str = "POST", url: str = URL) -> Headers:
        token = Token(text=text, audience=URL, scopes=frozenset(), expires=0, key=self.key)
        request = next(self.me.auth(token=token).auth_flow(httpx2.Request(method, url)))
        return [(name, request.headers[name]) for name in ("authorization", "dpop")]

    async def ask(self, headers: Headers, *, method: str = "POST", path: str = "/mcp-oauth") -> Answer:
        answer = Answer()
        await self.guarded(scope(method, path, headers), _body, answer.send)
        return answer

    async def _app(self, scope: Any, _: Any, send: Any) -> None:
        self.callers.append(scope["aims.caller"])
        if self.instead is not None:
            await self.instead(scope["aims.caller"], send)
            return
        assert not {name for name, _ in scope["headers"]} & {b"authorization", b"dpop"}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


async def _body() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


@contextlib.asynccontextmanager
async def place() -> AsyncIterator[Place]:
    async with world({URL: resource(URL, profile="oauth-bound", audiences=["urn:refunds"])}) as node:
        tool, agent = await node.seat(TOOL), await node.seat(AGENT)
        async with tool.identity() as served, agent.identity() as me:
            await knows(served)
            yield Place(node, me, served)


async def test_a_bound_token_says_who_calls_for_whom_and_with_which_right() -> None:
    async with place() as it:
        assert (await it.ask(it.headers(it.text()))).status == 200
        (caller,) = it.callers
        assert (caller.agent, caller.subject, caller.actors) == (str(AGENT), PERSON, (str(AGENT), str(FOREIGN)))
        assert (caller.scopes, caller.grant_id, caller.profile) == (frozenset({"refund"}), "g-1", "oauth-bound")
        caller.require_scope("refund")
        for needed in (("refund", "admin"), ("admin",), ()):
            with pytest.raises(SdkError, match=r"sdk\.scope_insufficient"):
                caller.require_scope(*needed)
        assert (await it.ask(it.headers(it.text(audience="urn:refunds")))).status == 200


async def test_a_tool_holds_a_request_against_what_the_token_allows_exactly() -> None:
    refund = {"type": "refund", "amount": 5, "to": {"account": "DE00", "tags": ["a", "b"]}}
    async with place() as it:
        assert (await it.ask(it.headers(it.text(details=(refund, {"type": "look"}))))).status == 200
        assert (await it.ask(it.headers(it.text()))).status == 200
        told, silent = it.callers
    first, second = told.authorization_details
    assert (first["type"], first["amount"], first["to"]["tags"], dict(second)) == (
        "refund",
        5,
        ("a", "b"),
        {"type": "look"},
    )
    told.require_details("look")
    told.require_details("refund", amount=5, to={"tags": ["a", "b"], "account": "DE00"})
    to = first["to"]
    for kind, members in (
        ("refund", {"amount": 6, "to": to}),
        ("refund", {"amount": 5.0, "to": to}),
        ("refund", {"amount": "5", "to": to}),
        ("refund", {"amount": 5}),
        ("refund", {"amount": 5, "to": {"account": "DE00", "tags": ["b", "a"]}}),
        ("refund", {"amount": 5, "to": to, "more": True}),
        ("refund", {}),
        ("look", {"amount": 5, "to": to}),
        ("other", {}),
    ):
        with pytest.raises(SdkError, match=r"sdk\.details_insufficient"):
            told.require_details(kind, **members)
    # a token that says no more than its scopes allows nothing exactly
    assert silent.authorization_details == ()
    with pytest.raises(SdkError, match=r"sdk\.details_insufficient"):
        silent.require_details("refund", amount=5, to=to)
    # the application cannot widen it
    first = cast("Any", first)
    for change in (
        lambda: setattr(told, "authorization_details", ()),
        lambda: first.__setitem__("amount", 500),
        lambda: first["to"].__setitem__("account", "mine"),
        lambda: first["to"]["tags"].append("c"),
    ):
        with pytest.raises((AttributeError, TypeError)):
            change()


FAULTS = [
    ("authorization.token_audience", "another audience, with its key"),
    ("authorization.token_passthrough", "a token that was given to somebody else is forwarded"),
    ("authorization.token_passthrough", "a token that was given to somebody else is forwarded as a bearer"),
    ("authorization.token_binding", "a stolen token with the thief's own proof"),
    ("authorization.token_scheme", "a bound token as a bearer"),
    ("authorization.token_scheme", "another scheme"),
    ("authorization.token_unbound", "a token without a key"),
    ("authorization.token_binding", "a token bound to a certificate"),
    ("authorization.token_expired", "an old token"),
    ("authorization.token_issuer", "a token of another issuer"),
    ("authorization.token_signature", "a token by another key"),
    ("authorization.token_typ", "a token of another kind"),
    ("authentication.dpop_htm", "a proof for another method"),
    ("authentication.dpop_htu", "a proof for another URL"),
    ("authentication.dpop_ath", "a proof for another token"),
    ("authentication.dpop_header_count", "no proof"),
    ("authentication.dpop_iat", "an old proof"),
]


@pytest.mark.parametrize(("code", "fault"), FAULTS, ids=[fault for _, fault in FAULTS])
async def test_each_fault_of_a_token_or_its_proof_is_named(code: str, fault: str) -> None:
    async with place() as it:
        good = it.headers(it.text())
        elsewhere: dict[str, Any] = {"audience": str(AGENT), "client_id": str(OTHER), "actors": (str(OTHER),)}
        elsewhere["confirmation"] = Confirmation("jkt", "x" * 43)
        now = int(it.node.clock.now())
        cases: dict[str, Headers] = {
            FAULTS[0][1]: it.headers(it.text(audience="https://localhost:8450/other")),
            FAULTS[1][1]: it.headers(it.text(**elsewhere)),
            FAULTS[2][1]: [("authorization", f"Bearer {it.text(**elsewhere)}")],
            FAULTS[3][1]: it.headers(it.text(confirmation=Confirmation("jkt", "x" * 43))),
            FAULTS[4][1]: [("authorization", f"Bearer {it.text()}")],
            FAULTS[5][1]: [("authorization", f"WPT {it.text()}")],
            FAULTS[6][1]: it.headers(it.text(confirmation=None)),
            FAULTS[7][1]: [("authorization", f"Bearer {it.text(confirmation=Confirmation('x5t#S256', 'x' * 43))}")],
            FAULTS[8][1]: it.headers(it.text(issued_at=now - 400, expires=now - 100)),
            FAULTS[9][1]: it.headers(it.text(issuer="https://elsewhere.example")),
            FAULTS[10][1]: it.headers(it.text(LocalKey.new("ES256", "at-1"))),
            FAULTS[11][1]: it.headers(sign_now({"typ": "JWT"}, it.right.claims(), it.issuer.key)),
            FAULTS[12][1]: it.headers(it.text(), method="GET"),
            FAULTS[13][1]: it.headers(it.text(), url=f"{URL}/x"),
            FAULTS[14][1]: [good[0], it.headers(it.text(token_id="t-2"))[1]],
            FAULTS[15][1]: good[:1],
            FAULTS[16][1]: [good[0], ("dpop", _proof(it, it.text(), now - 400))],
        }
        answer = await it.ask(cases[fault])
        assert (answer.status, answer.code) == (401, code)
        assert answer.headers["www-authenticate"].startswith("DPoP ")
        assert "resource_metadata=" in answer.headers["www-authenticate"] or code.endswith("header_count")
        assert it.callers == []
        assert (await it.ask(it.headers(it.text()))).status == 200


def _proof(it: Place, text: str, now: int) -> str:
    claims = dpop.build_claims("POST", URL, token_id=it.me.ids.token(), now=now, access_token=text)
    return dpop.issue_now(claims, it.key, it.key.public)


async def test_a_dpop_proof_is_good_once() -> None:
    async with place() as it:
        headers = it.headers(it.text())
        answers = await asyncio.gather(*(it.ask(headers) for _ in range(16)))
        assert sorted(answer.status for answer in answers) == [200] + [401] * 15
        assert {answer.code for answer in answers if answer.status == 401} == {"authentication.dpop_replay"}


@pytest.mark.parametrize(
    ("kind", "id_"), [("person", PERSON), ("grant", "g-1"), ("agent", AGENT), ("agent", FOREIGN), ("node", "node-1")]
)
async def test_a_stop_of_any_name_in_the_token_refuses_it(kind: str, id_: object) -> None:
    async with place() as it:
        assert (await it.ask(it.headers(it.text()))).status == 200
        it.node.stop(kind, id_)
        it.node.beat()
        enforcement = it.guarded._live.enforcement
        assert enforcement is not None
        await until(lambda: enforcement.stops.number == it.node.seq)
        answer = await it.ask(it.headers(it.text()))
        assert (answer.status, answer.code) == (401, "authentication.stopped")
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]


async def test_a_caller_without_a_token_is_shown_where_to_get_one() -> None:
    async with place() as it:
        answer = await it.ask([])
        assert (answer.status, answer.code) == (401, "authentication.authorization_count")
        challenge = answer.headers["www-authenticate"]
        where = "https://localhost:8450/.well-known/oauth-protected-resource/mcp-oauth"
        assert f'resource_metadata="{where}"' in challenge
        assert "error=" not in challenge
        found = await it.ask([], method="GET", path="/.well-known/oauth-protected-resource/mcp-oauth")
        assert (found.status, found.json["resource"], found.json["authorization_servers"]) == (200, URL, [ISSUER])
        assert found.json["dpop_bound_access_tokens_required"] is True
        assert (await it.ask([], method="GET", path="/.well-known/oauth-protected-resource")).status == 404


async def test_new_keys_of_the_issuer_are_found_and_a_flood_of_unknown_ones_fetches_little() -> None:
    async with place() as it:
        assert (await it.ask(it.headers(it.text()))).status == 200
        newer = LocalKey.new("ES256", "at-2")
        it.issuer.published.append(newer)
        it.node.clock.offset += 11
        it.node.beat()
        await knows(it.served)
        assert (await it.ask(it.headers(it.text(newer)))).status == 200
        assert it.issuer.fetched == 2
        for number in range(20):
            answer = await it.ask(it.headers(it.text(LocalKey.new("ES256", f"x-{number}"))))
            assert answer.code == "authorization.token_signature"
        assert it.issuer.fetched == 2


async def test_without_the_issuers_keys_nobody_is_let_in() -> None:
    async with place() as it:
        asked: list[int] = []

        async def fail() -> KeySet:
            asked.append(1)
            raise SdkError("issuer_unreachable")

        it.served._issuer_keys = IssuerKeys(fail, it.node.clock)
        for _ in range(5):
            answer = await it.ask(it.headers(it.text()))
            assert (answer.status, answer.code) == (503, "sdk.unavailable")
        assert asked == [1], "strangers do not make this service ask again and again"
        it.node.clock.offset += 11
        it.node.beat()
        await knows(it.served)
        assert (await it.ask(it.headers(it.text()))).status == 503
        assert asked == [1, 1]


async def _fail(send: Any) -> None:
    """What frameworks do before they let an exception out."""
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body", "body": b"Internal Server Error"})


async def test_a_refusal_by_the_application_is_a_403_and_nothing_else_is() -> None:
    async def narrow(caller: Caller, send: Any) -> None:
        try:
            caller.require_scope("wire")
        except SdkError:
            await _fail(send)
            raise

    async def exact(caller: Caller, _: Any) -> None:
        caller.require_details("pay", amount=5)

    async def broken(_: Caller, send: Any) -> None:
        await _fail(send)
        raise RuntimeError("a defect")

    async def unwell(_: Caller, send: Any) -> None:
        await _fail(send)

    async def begun(caller: Caller, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        caller.require_scope("wire")

    async with place() as it:
        for code, instead in (("sdk.scope_insufficient", narrow), ("sdk.details_insufficient", exact)):
            it.instead = instead
            answer = await it.ask(it.headers(it.text()))
            assert (answer.status, answer.code) == (403, code)
            assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
        it.instead = unwell
        answer = await it.ask(it.headers(it.text()))
        assert (answer.status, answer.body) == (500, b"Internal Server Error")
        it.instead = broken
        with pytest.raises(RuntimeError, match="a defect"):
            await it.ask(it.headers(it.text()))
        it.instead = begun
        with pytest.raises(SdkError, match="scope_insufficient"):
            await it.ask(it.headers(it.text()))
