"""The middleware of services: each refusal beside its accepted twin, and what the application gets to see."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx2
import pytest
from tests.flows.sdk_world import AGENT, OTHER, TOOL, Answer, Seat, World, knows, resource, scope, world
from tests.flows.workload_api_fake import until

from aims.authentication import wpt
from aims.jose import sign_now
from aims.sdk import asgi, open_calls
from aims.sdk.asgi import Middleware
from aims.sdk.caller import Caller, current
from aims.sdk.errors import SdkError
from aims.sdk.identity import Identity

URL = "https://localhost:8450/mcp"
BOUND = "https://localhost:8450/bound"
RESOURCES = {URL: resource(URL), BOUND: resource(BOUND, id="bound", profile="wimse-method-bound", audiences=["urn:b"])}


class App:
    """An application that notes what reached it."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.callers: list[Caller] = []
        self.hold: asyncio.Event | None = None
        self.ended: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] != "http":
            return
        if "aims.caller" in scope:
            assert current() is scope["aims.caller"]
            self.callers.append(scope["aims.caller"])
        while (await receive()).get("more_body"):
            pass
        if self.hold is not None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            message = await receive()
            self.ended.append(message["type"])
            await send({"type": "http.response.body", "body": b"b", "more_body": True})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


class Place:
    """A tool behind the middleware and an agent that calls it."""

    def __init__(self, node: World, tool: Seat, agent: Seat, me: Identity, served: Identity) -> None:
        self.node, self.tool, self.agent, self.me, self.served = node, tool, agent, me, served
        self.app = App()
        self.guarded = Middleware(self.app, served)

    def proof(self, method: str = "POST", url: str = URL, **options: Any) -> list[tuple[str, str]]:
        request = next(self.me.auth(**options).auth_flow(httpx2.Request(method, url)))
        return [(name, request.headers[name]) for name in ("workload-identity-token", "authorization")]

    def forged(self, claims: Mapping[str, Any], *, header: Mapping[str, Any] = wpt.HEADER) -> list[tuple[str, str]]:
        """A proof by the agent's own key with any claims."""
        token = self.agent.workload.wit
        good = wpt.build_claims(token, URL, token_id=self.me.ids.token(), now=self.node.clock.now())
        text = sign_now(header, {**good, **claims}, self.agent.workload.proof, with_kid=False)
        return [("workload-identity-token", token), ("authorization", f"WPT {text}")]

    async def ask(self, headers: list[tuple[str, str]], *, method: str = "POST", path: str = "/mcp") -> Answer:
        answer = Answer()
        await self.guarded(scope(method, path, headers), _body, answer.send)
        return answer


async def _body() -> dict[str, Any]:
    return {"type": "http.request", "body": b"{}", "more_body": False}


@contextlib.asynccontextmanager
async def place(resources: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Place]:
    async with world(RESOURCES if resources is None else resources) as node:
        tool, agent = await node.seat(TOOL), await node.seat(AGENT)
        async with tool.identity(**options) as served, agent.identity() as me:
            await knows(served)
            yield Place(node, tool, agent, me, served)


async def test_a_proved_request_reaches_the_application_with_its_caller_and_without_its_tokens() -> None:
    async with place() as it:
        answer = await it.ask(
            [*it.proof(), ("x-forwarded-user", "root"), ("x-spiffe-id", str(OTHER)), ("accept", "a/b")]
        )
        assert (answer.status, answer.body) == (200, b"done")
        (caller,) = it.app.callers
        assert (caller.agent, caller.subject, caller.actors, caller.resource) == (str(AGENT), str(AGENT), (), "tool")
        assert caller.profile == "wimse"
        assert caller.audience == URL
        assert it.app.scopes[0]["headers"] == [(b"host", b"tool.example"), (b"accept", b"a/b")]
        with pytest.raises(AttributeError):
            caller.agent = "spiffe://a.test/agents/root"  # type: ignore[misc]  # frozen
        with pytest.raises(SdkError, match=r"sdk\.no_caller"):
            current()


async def test_a_name_from_the_policy_is_an_audience_too_and_the_host_field_never_is() -> None:
    async with place() as it:
        assert (await it.ask(it.proof(audience="urn:tool"))).status == 200
        answer = await it.ask(it.proof(url="https://tool.example/mcp"))
        assert (answer.status, answer.code) == (401, "authentication.wpt_aud")


FAULTS = [
    ("authorization_scheme", 401, "WPT"),
    ("wpt_aud", 401, "WPT"),
    ("wpt_expired", 401, "WPT"),
    ("wpt_exp_too_far", 401, "WPT"),
    ("wth_mismatch", 401, "WPT"),
    ("wpt_signature", 401, "WPT"),
    ("wpt_typ", 401, "WPT"),
    ("wit_header_count", 400, None),
    ("wit_signature", 400, None),
    ("authorization_count", 401, "WPT"),
]


@pytest.mark.parametrize(("reason", "status", "challenge"), FAULTS, ids=[fault[0] for fault in FAULTS])
async def test_each_fault_of_a_proof_is_named_with_its_status(reason: str, status: int, challenge: str | None) -> None:
    async with place() as it:
        now = it.node.clock.now()
        good = it.proof()
        wit = good[0][1]
        stolen = it.node  # another key than the WIT's
        other = (await stolen.seat(OTHER)).workload
        forged: dict[str, Callable[[], list[tuple[str, str]]]] = {
            "authorization_scheme": lambda: [good[0], ("authorization", "Bearer x.y.z")],
            "wpt_aud": lambda: it.forged({"aud": "https://localhost:8450/other"}),
            "wpt_expired": lambda: it.forged({"exp": now - 60}),
            "wpt_exp_too_far": lambda: it.forged({"exp": now + 3000}),
            "wth_mismatch": lambda: it.forged({"wth": wpt.token_hash(other.wit)}),
            "wpt_signature": lambda: [good[0], ("authorization", _by_other_key(it, other.proof))],
            "wpt_typ": lambda: it.forged({}, header={"typ": "JWT"}),
            "wit_header_count": lambda: [good[1]],
            "wit_signature": lambda: [("workload-identity-token", wit[:-4] + "AAAA"), good[1]],
            "authorization_count": lambda: [*good, ("authorization", "Basic eA==")],
        }
        answer = await it.ask(forged[reason]())
        assert (answer.status, answer.code) == (status, f"authentication.{reason}")
        assert answer.headers.get("www-authenticate") == challenge
        assert answer.json["message"]
        assert "eyJ" not in answer.body.decode()
        assert it.app.scopes == []
        assert (await it.ask(good)).status == 200, "nothing of the refused request was spent"


def _by_other_key(it: Place, key: Any) -> str:
    claims = wpt.build_claims(it.agent.workload.wit, URL, token_id=it.me.ids.token(), now=it.node.clock.now())
    return f"WPT {sign_now(wpt.HEADER, claims, key, with_kid=False)}"


async def test_method_and_url_are_bound_where_the_profile_says_so() -> None:
    async with place() as it:
        assert (await it.ask(it.proof(url=BOUND), path="/bound")).status == 200
        assert it.app.callers[-1].profile == "wimse-method-bound"
        unbound = await it.ask(it.proof(url=BOUND, profile="wimse"), path="/bound")
        assert unbound.code == "authentication.wpt_htm"
        other = await it.ask(it.proof("POST", BOUND), method="DELETE", path="/bound")
        assert (other.status, other.code) == (401, "authentication.wpt_htm")
        further = await it.ask(it.proof(url=f"{BOUND}/a", audience="urn:b"), path="/bound/b")
        assert further.code == "authentication.wpt_htu"
        assert (await it.ask(it.proof(url=f"{BOUND}/a?x=1", audience="urn:b"), path="/bound/a?x=2")).status == 200


async def test_a_proof_is_good_once_however_many_workers_there_are() -> None:
    async with place() as it, it.tool.identity() as second:
        await knows(second)
        other = Middleware(it.app, second)
        for _ in range(5):
            headers = it.proof()
            answers = [Answer() for _ in range(16)]
            doors = [it.guarded, other]
            await asyncio.gather(
                *(doors[n % 2](scope("POST", "/mcp", headers), _body, one.send) for n, one in enumerate(answers))
            )
            assert sorted(answer.status for answer in answers) == [200] + [401] * 15
            assert {answer.code for answer in answers if answer.status == 401} == {"authentication.wpt_replay"}


@pytest.mark.parametrize(
    "path",
    ["/", "/mcpx", "/mcp%2Fx", "/mcp/..%2fbound", "/mcp/%2e%2e/x", "/other", "/mcp/../bound", "/MCP"],
)
async def test_what_lies_outside_of_the_resources_is_not_there(path: str) -> None:
    async with place() as it:
        answer = await it.ask(it.proof(audience="urn:tool"), path=path)
        assert answer.status in {400, 404}
        assert it.app.scopes == []
        assert (await it.ask(it.proof(audience="urn:tool"), path="/mcp/sub")).status == 200


@pytest.mark.parametrize("path", ["/mcp#/secret", "/mcp?a=1#/secret", "/mcp#"])
async def test_a_number_sign_in_the_request_line_is_refused(path: str) -> None:
    async with place() as it:
        answer = await it.ask(it.proof(audience="urn:tool"), path=path)
        assert answer.status in {400, 404}
        assert it.app.scopes == []


async def test_a_nested_resource_is_judged_by_its_own_profile_however_its_path_is_spelled() -> None:
    inner = f"{URL}/admin"
    resources = {URL: resource(URL), inner: resource(inner, id="in", profile="wimse-method-bound", audiences=["urn:i"])}
    async with place(resources) as it:
        assert (await it.ask(it.proof(audience="urn:tool"), path="/mcp/adm")).status == 200
        answer = await it.ask(it.proof(audience="urn:tool"), path="/mcp/admin")
        assert answer.code == "authentication.wpt_aud"
        answer = await it.ask(it.proof(audience="urn:tool"), path="/mcp/%61dmin")
        assert answer.status == 404
        assert (await it.ask(it.proof(url=inner), path="/mcp/admin")).status == 200


async def test_names_of_fields_are_bounded_and_an_underscore_hides_no_identity() -> None:
    async with place() as it:
        it.guarded = Middleware(it.app, it.served, open_paths=["/health"])
        known = asgi._tells.cache_info().currsize
        long = [(f"x-{n:03}" + "a" * 252, "1") for n in range(20)]
        hidden = [
            (name, "root") for name in ("x_remote_user", "remote_user", "x-remote_user", "aims_agent", "x_aims_a")
        ]
        kept = ("accept_it", "2")
        # on a path that takes a proof such names are refused altogether
        for path, sent in (("/health", [*long, ("x-" + "a" * 254, "1")]), ("/mcp", it.proof())):
            answer = await it.ask([*sent, *hidden, kept], path=path)
            assert answer.status == 200, (path, answer.body)
            found = [name for name, _ in it.app.scopes[-1]["headers"]]
            whole = [b"x-" + b"a" * 254] if path == "/health" else []
            assert found == [b"host", *whole, b"accept_it"]
        assert asgi._tells.cache_info().currsize - known <= len(hidden) + 5, "long names are not remembered"


async def test_open_paths_are_exact_and_show_no_identity() -> None:
    async with place() as it:
        it.guarded = Middleware(it.app, it.served, open_paths=["/health"])
        assert (await it.ask([("x-forwarded-user", "root"), ("Txn-Token", "a.b.c")], path="/health")).status == 200
        assert it.app.scopes[0]["headers"] == [(b"host", b"tool.example")]
        assert it.app.callers == []
        assert (await it.ask([], path="/health/x")).status == 404
        assert (await it.ask([])).code == "authentication.wit_header_count"


async def test_a_websocket_is_refused() -> None:
    async with place() as it:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await it.guarded({"type": "websocket", "path": "/mcp", "headers": []}, receive, send)
        assert sent == [{"type": "websocket.close", "code": 1008}]
        assert it.app.scopes == []


async def test_the_life_of_the_server_passes_through() -> None:
    async with place() as it:
        await it.guarded({"type": "lifespan"}, _body, Answer().send)
        assert it.app.scopes == [{"type": "lifespan"}]


async def test_a_stop_refuses_the_next_request_and_ends_the_open_one() -> None:
    async with place() as it:
        it.app.hold = asyncio.Event()
        answer = Answer()
        silent = asyncio.Event()

        async def receive() -> Any:
            if silent.is_set():
                await asyncio.Event().wait()
            silent.set()
            return await _body()

        running = asyncio.create_task(it.guarded(scope("POST", "/mcp", it.proof()), receive, answer.send))
        await until(lambda: answer.body == b"a")
        it.node.stop("agent", OTHER)
        it.node.beat()
        await until(lambda: _view(it).number == it.node.seq)
        assert not running.done()
        it.node.stop("agent", AGENT)
        await asyncio.wait_for(running, 5)
        assert (it.app.ended, answer.body, answer.complete) == (["http.disconnect"], b"a", False)
        refused = await it.ask(it.proof())
        assert (refused.status, refused.code) == (401, "authentication.stopped")
        it.node.stop("agent", AGENT, blocked=False)
        it.node.beat()
        it.app.hold = None
        await until(lambda: _view(it).number == it.node.seq)
        assert (await it.ask(it.proof())).code == "authentication.stopped", "old credentials stay dead"
        it.agent.renew(epoch=it.node.seq)
        await until(lambda: it.me.live.require_proof().wit == it.agent.workload.wit)
        assert (await it.ask(it.proof())).status == 200


async def test_an_open_call_ends_with_its_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_calls, "SWEEP_SECONDS", 0.02)
    async with place() as it:
        it.app.hold = asyncio.Event()
        answer = Answer()
        running = asyncio.create_task(it.guarded(scope("POST", "/mcp", it.proof()), _once(), answer.send))
        await until(lambda: answer.body == b"a")
        it.node.clock.offset = 3700.0
        await asyncio.wait_for(running, 5)
        assert it.app.ended == ["http.disconnect"]


def _once() -> Any:
    told = False

    async def receive() -> Any:
        nonlocal told
        if told:
            await asyncio.Event().wait()
        told = True
        return await _body()

    return receive


def _view(it: Place) -> Any:
    enforcement = it.served.live.enforcement
    assert enforcement is not None
    return enforcement.stops


async def test_silence_makes_everything_unknown_after_max_stale_and_news_lift_it() -> None:
    async with place(max_stale=0.5) as it:
        it.node.beat()
        await knows(it.served)
        assert (await it.ask(it.proof())).status == 200
        it.node.clock.offset += 0.6
        answer = await it.ask(it.proof())
        assert (answer.status, answer.code) == (503, "authentication.state_unknown")
        assert answer.headers["retry-after"] == "2"
        it.node.beat()
        await knows(it.served)
        assert (await it.ask(it.proof())).status == 200


async def test_max_stale_can_only_be_lowered() -> None:
    rows = {URL: resource(URL, max_stale=4), BOUND: resource(BOUND, id="b", max_stale=9, audiences=["urn:b"])}
    async with place(rows, max_stale=3600.0) as it:
        it.node.clock.offset += 3.5
        assert (await it.ask(it.proof())).status == 200
        it.node.clock.offset += 1.0
        assert (await it.ask(it.proof())).code == "authentication.state_unknown"


async def test_a_node_that_goes_away_refuses_new_requests_and_one_that_returns_serves_them() -> None:
    async with place() as it:
        assert (await it.ask(it.proof())).status == 200
        await it.tool.close_agent_sock()
        await until(lambda: not it.served.live.window.ready)
        answer = await it.ask(it.proof())
        assert (answer.status, answer.code) == (503, "authentication.window_unavailable")
        await it.tool.open_agent_sock()
        it.node.beat()
        await knows(it.served)
        assert (await it.ask(it.proof())).status == 200


async def test_a_lone_verifier_keeps_its_own_window_and_refuses_what_is_older_than_it() -> None:
    async with place() as it:
        old = it.proof()
        it.guarded = Middleware(it.app, it.served, lone=True)
        answer = await it.ask(old)
        assert (answer.status, answer.code) == (503, "authentication.window_starting")
        it.node.clock.offset += 7
        it.node.beat()
        await knows(it.served)
        fresh = it.proof()
        assert (await it.ask(fresh)).status == 200
        assert (await it.ask(fresh)).code == "authentication.wpt_replay"


async def test_a_resource_of_a_reserved_profile_lets_nobody_in_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with place({URL: resource(URL, profile="bearer")}) as it:
        for _ in range(3):
            answer = await it.ask(it.proof())
            assert (answer.status, answer.code) == (503, "sdk.unavailable")
            assert answer.json["hint"] == "The log of the service says why."
        warned = [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]
        assert [line for line in warned if "sdk.profile_unknown" in line and "bearer" in line] == warned[:1]
        it.node.resources = {URL: resource(URL, profile="oauth-signed")}
        it.node.full()
        it.node.beat()
        await until(lambda: it.served.settings.of_peer(TOOL)[0].profile == "oauth-signed")
        await knows(it.served)
        assert (await it.ask(it.proof())).status == 503
        assert "oauth-signed" in caplog.records[-1].getMessage()
        assert caplog.records[-1].levelname == "WARNING"


async def test_a_service_without_resources_says_nothing_about_its_callers() -> None:
    async with place({URL: resource(URL, peer=OTHER)}) as it:
        answer = await it.ask(it.proof())
        assert (answer.status, answer.code) == (503, "sdk.unavailable")
        it.node.resources = {URL: resource(URL)}
        it.node.full()
        it.node.beat()
        await until(lambda: it.served.settings.of_peer(TOOL))
        await knows(it.served)
        assert (await it.ask(it.proof())).status == 200
