"""The pages of people on the public listener: login, the authorization endpoint, consent, grants.

Every POST must come from a page of this server: ``Sec-Fetch-Site: same-origin``, no ``Origin`` of somebody else, and
the form value that only this browser's pages carry. A GET of a login link or of the authorization endpoint does
something only if a person navigated there, from wherever: whatever fetches ahead gets a page that says so, and the link
stays as it was, and no request waits.

Cookies are ``__Host-``: sent over TLS to this host alone, unreadable to scripts, and not along with other sites' forms.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from aims.authorization import form as forms
from aims.authorization.errors import AuthorizationError
from aims.authorization.flood import Gate, note
from aims.authorization.form import Form
from aims.authorization.model import Memory
from aims.authorization.people import pages, request
from aims.authorization.people.consent import ConsentService, Redirection
from aims.authorization.people.errors import PeopleError
from aims.authorization.people.login import LoginService, Session, check_csrf, csrf_of, flood, refusal
from aims.authorization.people.pages import Page
from aims.errors import AimsError
from aims.provisioning.errors import ProvisioningError
from aims.server.errors import ServerError
from aims.server.http import STATUS, Answer, App, Receive, Scope, Send, read_body, respond
from aims.storage.database import Database
from aims.storage.intent import Plan

AUTHORIZATION: Final = "/oauth/authorize"
CONSENT: Final = "/oauth/consent"
LOGIN: Final = "/login"
LOGOUT: Final = "/logout"
GRANTS: Final = "/grants"
WITHDRAWAL: Final = "/grants/withdraw"

SESSION_COOKIE: Final = "__Host-aims"
LINK_COOKIE: Final = "__Host-aims-link"
MAX_BODY: Final = 8192
LINK_COOKIE_SECONDS: Final = 600

_COOKIE: Final = "; Path=/; Secure; HttpOnly; SameSite=Lax"
_HTML: Final = b"text/html; charset=utf-8"

_T = TypeVar("_T")

_log = logging.getLogger("aims.server")


class Browsed(Memory, Protocol):
    """What the pages need of a worker: its memory, its database, and the URL of the public listener."""

    @property
    def database(self) -> Database: ...
    @property
    def public_url(self) -> str: ...


def people_routes(core: Browsed) -> Mapping[tuple[str, str], App]:
    """The routes of the public listener; ``core`` must be loaded."""
    return People(core).routes()


@dataclass(frozen=True, slots=True)
class Visit:
    """A browser's request: its headers, its cookies, and what it says about where it comes from."""

    query: bytes
    body: bytes
    headers: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, scope: Scope, body: bytes) -> Visit:
        headers: dict[str, tuple[str, ...]] = {}
        for name, value in scope["headers"]:
            key = name.decode("latin-1")
            headers[key] = (*headers.get(key, ()), value.decode("latin-1"))
        return cls(scope.get("query_string", b""), body, headers)

    def one(self, name: str) -> str | None:
        """The value of a header that stands there once, else None."""
        values = self.headers.get(name, ())
        return values[0] if len(values) == 1 else None

    def cookie(self, name: str) -> str | None:
        """The value of a cookie that was sent once; two of a name are none, for one of them is somebody else's."""
        found = [
            value
            for line in self.headers.get("cookie", ())
            for part in line.split(";")
            for key, separator, value in [part.strip().partition("=")]
            if separator and key == name
        ]
        return found[0] if len(found) == 1 else None

    @property
    def navigated(self) -> bool:
        """Whether a person went to this page, as browsers say it of every request; nobody else's word counts."""
        return (
            self.one("sec-fetch-mode") == "navigate"
            and self.one("sec-fetch-dest") == "document"
            and not self.headers.get("sec-purpose")
            and not self.headers.get("purpose")
        )


class People:
    """The browser's endpoints over one worker's memory."""

    def __init__(self, core: Browsed) -> None:
        self._core = core
        self._login = LoginService(core, core.database)
        self._consent = ConsentService(core, core.database, core.public_url)
        self._gate = Gate(core.clock)

    def routes(self) -> Mapping[tuple[str, str], App]:
        """Every route, by method and path."""
        return {
            ("GET", LOGIN): self._page("link.open", self._open_link),
            ("POST", LOGIN): self._page("link.use", self._use_link),
            ("POST", LOGOUT): self._page("logout", self._logout),
            ("GET", AUTHORIZATION): self._page("authorize", self._authorize),
            ("POST", CONSENT): self._page("consent", self._decide),
            ("GET", GRANTS): self._page("grants", self._grants),
            ("POST", WITHDRAWAL): self._page("grant.withdraw", self._withdraw),
        }

    # --- login

    async def _open_link(self, visit: Visit) -> Answer:
        secret = _parameter(request.read(visit.query), "link")
        if not visit.navigated:
            return _html(pages.quiet_page())
        found = await self._login.open(secret, visit.cookie(LINK_COOKIE))
        opened = await self._commit(found) if isinstance(found, Plan) else found
        page = pages.link_page(secret, opened.person.name, csrf_of(opened.browser))
        return _html(page, _cookie(LINK_COOKIE, opened.browser, LINK_COOKIE_SECONDS))

    async def _use_link(self, visit: Visit) -> Answer:
        form = self._form(visit)
        browser = visit.cookie(LINK_COOKIE)
        if browser is None:
            raise PeopleError("link_browser")
        check_csrf(form.get("csrf"), csrf_of(browser))
        begun = await self._commit(await self._login.use(_parameter(form, "link"), browser))
        cookies = (_cookie(SESSION_COOKIE, begun.cookie, begun.seconds), _cookie(LINK_COOKIE, "", 0))
        return _see_other(GRANTS, *cookies)

    async def _logout(self, visit: Visit) -> Answer:
        session, _ = await self._posted(visit)
        await self._commit(self._login.logout(session))
        return _see_other(GRANTS, _cookie(SESSION_COOKIE, "", 0))

    # --- consent

    async def _authorize(self, visit: Visit) -> Answer:
        # a page that loads this as a part of itself is no person who goes here
        if visit.one("sec-fetch-dest") not in {None, "document"}:
            raise PeopleError("browser_foreign")
        # and a page that has it fetched ahead must not fill the list of what waits
        if not visit.navigated:
            return _html(pages.unasked_page())
        # 1. without a client and an address that are known there is nobody to answer to but the person
        form = request.read(visit.query)
        to = await self._consent.addressee(form)
        # 2. what is wrong with the rest is for the agent to know
        try:
            asked = self._consent.examine(form, to)
        except PeopleError as error:
            await self._record(error, "authorize", None)
            return _redirect(self._consent.error(to, error))
        # 3. who the person is
        session = await self._login.session(visit.cookie(SESSION_COOKIE))
        found = await self._consent.wait(asked, session)
        pending = await self._commit(found) if isinstance(found, Plan) else found
        return _html(pages.consent_page(self._consent.show(pending), session))

    async def _decide(self, visit: Visit) -> Answer:
        session, form = await self._posted(visit)
        decision = _parameter(form, "decision")
        if decision not in {"approve", "deny", "drop"}:
            raise PeopleError("browser_form")
        approve = decision == "approve"
        plan = await self._consent.decide(
            session, _parameter(form, "request"), approve=approve, shown=form.get("shown")
        )
        answer = await self._commit(plan)
        # a request that is refused on the page of grants ends there; nobody is waiting at its address
        return _see_other(GRANTS) if decision == "drop" else _redirect(answer)

    # --- grants

    async def _grants(self, visit: Visit) -> Answer:
        session = await self._login.session(visit.cookie(SESSION_COOKIE))
        given, waiting = await self._consent.given(session), await self._consent.waiting(session)
        return _html(pages.grants_page(given, waiting, session))

    async def _withdraw(self, visit: Visit) -> Answer:
        session, form = await self._posted(visit)
        await self._commit(await self._consent.withdraw(session, _parameter(form, "grant")))
        return _see_other(GRANTS)

    # --- what all have in common

    async def _posted(self, visit: Visit) -> tuple[Session, Form]:
        """Who sent a form: only the session's own pages can have."""
        form = self._form(visit)
        session = await self._login.session(visit.cookie(SESSION_COOKIE))
        check_csrf(form.get("csrf"), session.csrf)
        return session, form

    def _form(self, visit: Visit) -> Form:
        # A page that forbids referrers has no origin to name either, so browsers send "null" from our own pages. From a
        # frame without an origin they send it too, but call that cross-site.
        origin = visit.headers.get("origin", ("null",))
        if visit.one("sec-fetch-site") != "same-origin" or origin not in {("null",), (self._core.public_url,)}:
            raise PeopleError("browser_foreign")
        try:
            return forms.read(visit.body, visit.one("content-type"))
        except AuthorizationError as error:
            raise PeopleError("browser_form", str(error)) from error

    async def _commit(self, plan: Plan[_T]) -> _T:
        outcome = await self._core.database.commit(plan.write)
        try:
            return plan.answer(outcome)
        except PeopleError as error:
            raise _RecordedError(error) from error

    async def _record(self, error: PeopleError, action: str, session: Session | None) -> None:
        """Leave the record of a refusal; of strangers only so many a second have one."""
        for code, count, since in self._gate.due():  # of seconds that are over, so before this one is counted
            await self._core.database.commit(flood(self._core, code, count, since))
        if session is not None or self._gate.passes(error.code):
            await self._core.database.commit(refusal(self._core, error, action, session))

    async def _known(self, visit: Visit) -> Session | None:
        try:
            return await self._login.session(visit.cookie(SESSION_COOKIE))
        except PeopleError:
            return None

    def _page(self, action: str, handle: Callable[[Visit], Awaitable[Answer]]) -> App:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                try:
                    body = await read_body(receive, MAX_BODY)
                except ServerError as error:
                    await note(scope, error)
                    raise
                visit = Visit.of(scope, body)
                if not self._core.current:
                    raise ProvisioningError("behind")
                try:
                    answer = await handle(visit)
                except PeopleError as error:
                    # a page that asks to log in is no refusal; whatever else is has a record
                    if error.reason != "session_none":
                        await self._record(error, action, await self._known(visit))
                    answer = _html(pages.error_page(error))
                except _RecordedError as refused:
                    answer = _html(pages.error_page(refused.error))
            except AimsError as error:
                _log.warning("no page", extra={"code": error.code, "detail": error.detail})
                answer = _html(pages.error_page(error, STATUS.get(error.code, 503)))
            await respond(send, answer)

        return app


class _RecordedError(Exception):
    """A refusal by the store, whose Write has left its record."""

    def __init__(self, error: PeopleError) -> None:
        super().__init__(error)
        self.error = error


def _parameter(form: Form, name: str) -> str:
    value = form.get(name)
    if value is None:
        raise PeopleError("browser_form", f"{name} is missing")
    return value


def _html(page: Page, *cookies: tuple[bytes, bytes]) -> Answer:
    return Answer(page.status, page.body, _HTML, (*page.headers, *cookies))


def _redirect(to: Redirection) -> Answer:
    return _see_other(to.url)


def _see_other(url: str, *cookies: tuple[bytes, bytes]) -> Answer:
    # 303: a browser that has just sent a form must not send it on (RFC 9700 4.12)
    headers = ((b"location", url.encode("ascii")), (b"referrer-policy", b"no-referrer"), *cookies)
    return Answer(303, b"", _HTML, headers)


def _cookie(name: str, value: str, seconds: int) -> tuple[bytes, bytes]:
    return b"set-cookie", f"{name}={value}; Max-Age={seconds}{_COOKIE}".encode("ascii")
