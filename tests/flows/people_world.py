"""People with browsers in front of an authorization server, and agents that send them there."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from tests.flows.provisioning_world import cause
from tests.flows.token_world import ISSUER, NOTES, Agent, Answer, TokenWorld, encoded, open_token_world

from aims.authorization.people import store
from aims.authorization.people.login import LoginService
from aims.authorization.people.pkce import transform
from aims.authorization.people.store import Person
from aims.clock import IdSource, SystemClock
from aims.server.people_routes import AUTHORIZATION, CONSENT, GRANTS, LINK_COOKIE, LOGIN, SESSION_COOKIE, people_routes
from aims.storage.database import Database
from aims.storage.write import Write

CALLBACK = "http://127.0.0.1/callback"
HERE = "http://127.0.0.1:51234/callback"
VERIFIER = "v" * 20 + "-._~" + "A1" * 20


@dataclass(frozen=True, slots=True)
class Seen:
    """What a browser got."""

    status: int
    headers: tuple[tuple[str, str], ...]
    text: str

    def header(self, name: str) -> str:
        """The one value of a header, "" without it."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, values
        return values[0] if values else ""

    @property
    def code(self) -> str:
        """Our code on an error page."""
        found = re.search(r"<code>([a-z]+\.[a-z_0-9]+)</code>", self.text)
        return found[1] if found else ""

    def hidden(self, name: str) -> str:
        """The value of the first hidden field of that name."""
        found = re.search(rf'<input type="hidden" name="{name}" value="([^"]*)">', self.text)
        assert found, self.text
        return html.unescape(found[1])

    @property
    def answer(self) -> dict[str, str]:
        """The parameters of the redirect."""
        assert self.status == 303, (self.status, self.text)
        return {name: values[0] for name, values in parse_qs(urlsplit(self.header("location")).query).items()}


class PeopleWorld(TokenWorld):
    """A token world with the pages of people."""

    public_url = ISSUER

    @property
    def login(self) -> LoginService:
        return LoginService(self, self.database)

    async def person(self, name: str = "Ada") -> Person:
        plan = self.login.create(name, cause())
        return plan.answer(await self.database.commit(plan.write))

    async def link(self, name: str = "Ada") -> str:
        """The secret of a new login link."""
        plan = await self.login.link(name, cause())
        return plan.answer(await self.database.commit(plan.write)).secret

    async def redirects(self, agent: Agent, *uris: str) -> None:
        effects = store.redirects_replaced(agent.registered.workload.name, uris or (CALLBACK,))
        await self.database.commit(Write(record=lambda _: b"{}", effects=effects))

    async def client(self, name: str = "researcher", **more: Any) -> Agent:
        """A running agent with a loopback redirect URI."""
        agent = await self.agent(name, **more)
        await self.redirects(agent)
        return agent

    async def redeem(self, agent: Agent, code: str, *, proof: bool | str = True, **more: str) -> Answer:
        """Ask the token endpoint for a token by a code; an empty parameter is left out."""
        wanted = {"grant_type": "authorization_code", "code": code, "code_verifier": VERIFIER} | more
        return await self.mtls_token(agent, proof=proof, **{name: text for name, text in wanted.items() if text})


@dataclass(slots=True)
class Browser:
    """A browser that sends what browsers send, and keeps cookies."""

    world: PeopleWorld
    cookies: dict[str, str] = field(default_factory=dict)

    async def get(self, path: str, query: str = "", **headers: str) -> Seen:
        """Go to a page; an empty header is not sent."""
        shown = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document", "sec-fetch-site": "none"}
        return await self._send("GET", path, query, b"", shown | _named(headers))

    async def post(self, path: str, form: dict[str, str], **headers: str) -> Seen:
        """Send a form of one of the server's pages."""
        shown = {
            "content-type": "application/x-www-form-urlencoded",
            "sec-fetch-mode": "navigate",
            "sec-fetch-dest": "document",
            "sec-fetch-site": "same-origin",
            "origin": "null",  # as Chromium does where the page's referrer policy is no-referrer
        }
        return await self._send("POST", path, "", encoded(form), shown | _named(headers))

    async def open(self, link: str) -> Seen:
        return await self.get(LOGIN, f"link={link}")

    async def log_in(self, name: str = "Ada") -> None:
        """Open a new link and use it."""
        page = await self.open(await self.world.link(name))
        assert page.status == 200, page.text
        done = await self.post(LOGIN, {"link": page.hidden("link"), "csrf": page.hidden("csrf")})
        assert (done.status, done.header("location")) == (303, GRANTS), done.text
        assert self.cookies.keys() == {SESSION_COOKIE}

    async def authorize(self, agent: Agent, **changes: str | None) -> Seen:
        """Follow an agent to the authorization endpoint."""
        return await self.get(AUTHORIZATION, query_of(agent, **changes))

    async def decide(self, page: Seen, decision: str = "approve") -> Seen:
        """Press a button on the page of consent."""
        form = {name: page.hidden(name) for name in ("csrf", "request", "shown")} | {"decision": decision}
        return await self.post(CONSENT, form)

    async def consent(self, agent: Agent, **changes: str | None) -> str:
        """Approve what an agent asks for, and return the code."""
        page = await self.authorize(agent, **changes)
        assert page.status == 200, page.text
        return (await self.decide(page)).answer["code"]

    async def _send(self, method: str, path: str, query: str, body: bytes, headers: dict[str, str]) -> Seen:
        app = people_routes(self.world)[method, path]
        fields = [(name.encode(), value.encode()) for name, value in headers.items() if value]
        if self.cookies and "cookie" not in headers:
            line = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
            fields.append((b"cookie", line.encode()))
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": fields,
        }
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        answer = tuple((name.decode(), value.decode()) for name, value in sent[0]["headers"])
        for name, value in answer:
            if name == "set-cookie":
                self._keep(value)
        return Seen(sent[0]["status"], answer, sent[1]["body"].decode())

    def _keep(self, line: str) -> None:
        pair, *attributes = line.split("; ")
        name, _, value = pair.partition("=")
        assert set(attributes) >= {"Path=/", "Secure", "HttpOnly", "SameSite=Lax"}, line
        assert name.startswith("__Host-")
        assert not any(attribute.startswith("Domain") for attribute in attributes)
        if "Max-Age=0" in attributes:
            self.cookies.pop(name, None)
        else:
            self.cookies[name] = value


def query_of(agent: Agent, **changes: str | None) -> str:
    """The query of a good authorization request with changes; None leaves a parameter out."""
    wanted: dict[str, str | None] = {
        "response_type": "code",
        "client_id": agent.id,
        "redirect_uri": HERE,
        "state": "s-1",
        "scope": "notes:read notes:write",
        "resource": NOTES,
        "code_challenge": transform(VERIFIER),
        "code_challenge_method": "S256",
    }
    return "&".join(
        f"{name}={quote(value, safe='')}" for name, value in (wanted | changes).items() if value is not None
    )


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


async def open_people_world(database: Database, clock: SystemClock, ids: IdSource) -> PeopleWorld:
    """A token world in which nobody has logged in yet."""
    tokens = await open_token_world(database, clock, ids)
    world = PeopleWorld(tokens.world)
    world.follow()
    return world


__all__ = ["LINK_COOKIE", "Browser", "PeopleWorld", "Seen", "open_people_world", "query_of"]
