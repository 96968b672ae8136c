"""Logging in: an administrator makes a link, one browser opens it, and a button on its page uses it up.

Steps of ``open``, the GET: 1. the link exists and has not expired; 2. nobody opened it in another browser; 3. it is
bound to this one. Steps of ``use``, the POST: 1. and 2. again, and it was opened at all; 3. the person was not stopped
since the link was made; 4. one Write uses the link up and begins the session.

A fetch of the link that is not somebody's navigation (a preview, a scanner, a prefetch) does neither: see the routes.
What the browser holds are two random values in cookies; here are only their hashes.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection

from aims.audit.people import Pseudonym, pseudonym
from aims.audit.record import body, recorder
from aims.authorization.model import Memory, dead
from aims.authorization.people import store
from aims.authorization.people.errors import PeopleError
from aims.authorization.people.store import LinkRow, Person, SessionRow, hashed
from aims.jose import base64url
from aims.provisioning.registry.service import Cause
from aims.storage.database import Database
from aims.storage.intent import Plan
from aims.storage.write import Consume, Name, Outcome, Verdict, Write

SESSION_LIFE: Final = 8 * 3600  # seconds
SECRET_OCTETS: Final = 32
MAX_NAME: Final = 128
MAX_COOKIE: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Somebody who is logged in. ``csrf`` is what the forms of this session carry."""

    person: Person
    known_as: Pseudonym
    hash: bytes
    epoch: int
    expires: int
    csrf: str = field(repr=False)

    @property
    def name(self) -> Name:
        """Whose stop ends the session and everything that came of it."""
        return Name("person", self.person.sub)


@dataclass(frozen=True, slots=True)
class Link:
    """A link that was made: the secret in it, and when it ends (Unix seconds)."""

    secret: str = field(repr=False)
    expires: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A link that this browser owns: the value of its cookie, and whom it lets in."""

    browser: str = field(repr=False)
    person: Person


@dataclass(frozen=True, slots=True)
class Begun:
    """A session that has begun: the value of its cookie, and the seconds that it lasts."""

    cookie: str = field(repr=False)
    seconds: int


@dataclass(frozen=True, slots=True)
class _Found:
    link: LinkRow
    person: Person
    known_as: Pseudonym


class LoginService:
    """Makes people and links, opens and uses links, knows sessions. Each change is a Plan."""

    def __init__(self, memory: Memory, database: Database) -> None:
        self._memory = memory
        self._database = database

    # --- the administrator

    def create(self, name: str, cause: Cause) -> Plan[Person]:
        """Make a person.

        Raises:
            PeopleError: ``person_name``; on commit too, when the name is taken.
        """
        if not 0 < len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
            raise PeopleError("person_name")
        memory = self._memory
        somebody = Person(sub=f"person:{memory.ids.new()}", name=name, created=int(memory.clock.now()))
        salt = base64url.decode(memory.ids.token(16).encode("ascii"))
        known_as = Pseudonym.make(somebody.sub, salt)
        record = recorder(
            refuse="admin.refuse",
            type="person.register",
            outcome="success",
            resource="person",
            action="person.create",
            principal=known_as.principal,
            **self._administrative(cause),
        )
        write = Write(record=record, effects=(store.person_inserted(somebody), known_as.stored()))
        return Plan(write, lambda outcome: _settled(outcome, somebody, "person_name"))

    async def link(self, name: str, cause: Cause) -> Plan[Link]:
        """Make a login link for a person, by name. Only the secret in the answer opens it.

        Raises:
            PeopleError: ``person_unknown``, ``person_stopped``; PolicyError ``lifetime``; StorageError.
        """
        memory = self._memory

        def ask(connection: Connection) -> tuple[Person, Pseudonym] | None:
            somebody = store.find_person(connection, name=name)
            return None if somebody is None else (somebody, pseudonym(connection, somebody.sub))

        found = await self._database.read(ask)
        if found is None:
            raise PeopleError("person_unknown")
        somebody, known_as = found
        now, seen = int(memory.clock.now()), memory.seq
        self._require_unblocked(somebody)
        link = Link(memory.ids.token(SECRET_OCTETS), now + memory.policy.tables.lifetime("login-link").seconds)
        row = LinkRow(hash=hashed(link.secret), person=somebody.sub, browser=None, epoch=seen, expires=link.expires)
        record = recorder(
            refuse="admin.refuse",
            type="admin.action",
            outcome="success",
            resource="person",
            action="person.link",
            principal=known_as.principal,
            details={"expires": link.expires},
            **self._administrative(cause),
        )
        write = Write(
            record=record,
            names=(Name("person", somebody.sub),),
            seen=seen,
            effects=(*store.swept(somebody.sub, now), *store.link_inserted(row)),
        )
        return Plan(write, lambda outcome: _settled(outcome, link, "person_stopped"))

    def _administrative(self, cause: Cause) -> dict[str, Any]:
        return {
            "time": self._memory.clock.now(),
            "id": self._memory.ids.new(),
            "request_id": cause.request_id,
            "decision": cause.decision,
            "operator": cause.operator,
            "cause": cause.member,
        }

    # --- the browser

    async def open(self, secret: str, browser: str | None) -> Plan[Opened] | Opened:
        """Bind a link to the browser that opens it. ``browser`` is the cookie that this browser got before, or None.

        Raises:
            PeopleError: ``link_unknown``, ``link_browser``, ``person_stopped``; StorageError.
        """
        found = await self._find(secret)
        if found.link.browser is not None:
            _require_browser(found.link, browser)
            assert browser is not None  # noqa: S101  it was compared
            return Opened(browser, found.person)
        opened = Opened(self._memory.ids.token(SECRET_OCTETS), found.person)
        write = Write(
            record=recorder(refuse="person.refuse", **self._fields(found, "link.open")),
            effects=(store.link_bound(found.link.hash, hashed(opened.browser)),),
        )
        return Plan(write, lambda outcome: _settled(outcome, opened, "link_browser"))

    async def use(self, secret: str, browser: str | None) -> Plan[Begun]:
        """Use a link up and begin a session in the browser that opened it.

        Raises:
            PeopleError: as ``open``, ``link_closed``; on commit ``person_stopped``, and ``link_unknown`` for the second
                use.
        """
        memory = self._memory
        found = await self._find(secret)
        if found.link.browser is None:
            raise PeopleError("link_closed")
        _require_browser(found.link, browser)
        now, seen = int(memory.clock.now()), memory.seq
        self._require_alive(found.person, found.link.epoch)
        begun = Begun(memory.ids.token(SECRET_OCTETS), SESSION_LIFE)
        row = SessionRow(hash=hashed(begun.cookie), person=found.person.sub, epoch=seen, expires=now + SESSION_LIFE)
        write = Write(
            record=recorder(refuse="person.refuse", **self._fields(found, "link.use")),
            names=(Name("person", found.person.sub),),
            seen=seen,
            consume=Consume(store.LINK, found.link.hash),
            effects=(
                store.link_used(found.link.hash),
                *store.swept(found.person.sub, now),
                store.session_inserted(row),
            ),
        )
        return Plan(write, lambda outcome: _settled(outcome, begun, "link_unknown"))

    async def session(self, cookie: str | None) -> Session:
        """Return the session of a cookie.

        Raises:
            PeopleError: ``session_none``, ``person_stopped``; StorageError.
        """
        if not cookie or len(cookie) > MAX_COOKIE:
            raise PeopleError("session_none")

        def ask(connection: Connection) -> tuple[SessionRow, Person, Pseudonym] | None:
            row = store.find_session(connection, hashed(cookie))
            somebody = None if row is None else store.find_person(connection, sub=row.person)
            return None if row is None or somebody is None else (row, somebody, pseudonym(connection, row.person))

        found = await self._database.read(ask)
        if found is None or found[0].expires <= self._memory.clock.now():
            raise PeopleError("session_none")
        row, somebody, known_as = found
        self._require_alive(somebody, row.epoch)
        return Session(
            person=somebody,
            known_as=known_as,
            hash=row.hash,
            epoch=row.epoch,
            expires=row.expires,
            csrf=csrf_of(cookie),
        )

    def logout(self, session: Session) -> Plan[None]:
        """End a session."""
        record = recorder(
            refuse="person.refuse",
            type="person.logout",
            outcome="success",
            time=self._memory.clock.now(),
            id=self._memory.ids.new(),
            request_id=self._memory.ids.new(),
            principal=session.known_as.principal,
            action="logout",
            decision={"effect": "permit", "reason": "the person asked"},
        )
        write = Write(record=record, effects=(store.session_ended(session.hash),))
        return Plan(write, lambda outcome: _settled(outcome, None, "session_none"))

    async def _find(self, secret: str) -> _Found:
        if not secret or len(secret) > MAX_COOKIE:
            raise PeopleError("link_unknown")

        def ask(connection: Connection) -> _Found | None:
            link = store.find_link(connection, hashed(secret))
            somebody = None if link is None else store.find_person(connection, sub=link.person)
            if link is None or somebody is None:
                return None
            return _Found(link, somebody, pseudonym(connection, somebody.sub))

        found = await self._database.read(ask)
        if found is None or found.link.expires <= self._memory.clock.now():
            raise PeopleError("link_unknown")
        return found

    def _fields(self, found: _Found, action: str) -> dict[str, Any]:
        request_id = self._memory.ids.new()
        return {
            "type": "person.login",
            "outcome": "success",
            "time": self._memory.clock.now(),
            "id": request_id,
            "request_id": request_id,
            "principal": found.known_as.principal,
            "resource": "person",
            "action": action,
            "decision": {"effect": "permit", "reason": "login link"},
        }

    def _require_alive(self, somebody: Person, epoch: int) -> None:
        if dead((Name("person", somebody.sub),), epoch, self._memory.stops) is not None:
            raise PeopleError("person_stopped")

    def _require_unblocked(self, somebody: Person) -> None:
        stop = self._memory.stops.get(Name("person", somebody.sub))
        if stop is not None and stop.blocked:
            raise PeopleError("person_stopped")


def csrf_of(cookie: str) -> str:
    """Return the value that forms carry for a cookie: known to the pages that the server gave to this browser only."""
    return base64url.encode(hashlib.sha256(b"aims form\0" + cookie.encode("utf-8")).digest()).decode("ascii")


def check_csrf(given: str | None, expected: str) -> None:
    """Refuse a form that is not of a page of this browser. Raises: PeopleError ``browser_form``."""
    if given is None or not hmac.compare_digest(given.encode("utf-8"), expected.encode("utf-8")):
        raise PeopleError("browser_form")


def refusal(memory: Memory, error: PeopleError, action: str, session: Session | None) -> Write:
    """Return the Write that records a refusal. What an unknown browser says is no part of it."""
    request_id = memory.ids.new()
    principal: Mapping[str, Any] | None = None if session is None else session.known_as.principal
    record = recorder(
        refuse="person.refuse",
        type="person.refuse",
        outcome="refused",
        time=memory.clock.now(),
        id=request_id,
        request_id=request_id,
        principal=principal,
        action=action,
        decision={"effect": "deny", "reason": error.code},
    )
    return Write(record=record)


def flood(memory: Memory, code: str, count: int, since: float) -> Write:
    """Return the Write of the one record for many equal refusals of strangers."""
    request_id = memory.ids.new()
    octets = body(
        type="request.refuse",
        outcome="refused",
        time=memory.clock.now(),
        id=request_id,
        request_id=request_id,
        action="page",
        decision={"effect": "deny", "reason": code},
        flood={"count": count, "since": int(since), "listener": "public"},
    )
    return Write(record=lambda _: octets)


def _require_browser(link: LinkRow, browser: str | None) -> None:
    if not browser or len(browser) > MAX_COOKIE or link.browser is None:
        raise PeopleError("link_browser")
    if not hmac.compare_digest(hashed(browser), link.browser):
        raise PeopleError("link_browser")


def _settled(outcome: Outcome, value: Any, conflict: str) -> Any:
    if outcome.verdict is Verdict.COMMITTED:
        return value
    if outcome.verdict is Verdict.STOPPED:
        raise PeopleError("person_stopped", outcome.culprit)
    raise PeopleError(conflict, outcome.verdict)
