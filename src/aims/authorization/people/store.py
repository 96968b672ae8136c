"""Tables and statements of people: who they are, how they log in, what waits for them, and the codes that agents get.

Whatever is secret is here by its SHA-256 only. A one-time thing has its row here and another in ``once``, where it is
consumed; leftovers of a person are swept by that person's next Write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from aims.authorization.store import grant as grant_table
from aims.storage.schema import Number, metadata, once
from aims.storage.write import Consume, Effect

R = TypeVar("R")

LINK: Final = "login-link"
DECISION: Final = "consent"
CODE: Final = "code"
"""Kinds of one-time things."""

KEPT_CODES: Final = 24 * 3600
"""Seconds that a code's row outlives it, so that a later second use is still told from an unknown one."""

person = sa.Table(
    "person",
    metadata,
    sa.Column("sub", sa.String(33), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False, unique=True),
    sa.Column("created", Number, nullable=False),
)

login_link = sa.Table(
    "login_link",
    metadata,
    sa.Column("hash", sa.LargeBinary(32), primary_key=True),
    sa.Column("person", sa.String(33), nullable=False),
    sa.Column("browser", sa.LargeBinary(32)),
    sa.Column("epoch", Number, nullable=False),
    sa.Column("expires", Number, nullable=False),
    sa.Index(None, "person"),
)
"""``browser`` is the hash of what the browser got that opened the link first; null before."""

session = sa.Table(
    "login_session",
    metadata,
    sa.Column("hash", sa.LargeBinary(32), primary_key=True),
    sa.Column("person", sa.String(33), nullable=False),
    sa.Column("epoch", Number, nullable=False),
    sa.Column("expires", Number, nullable=False),
    sa.Index(None, "person"),
)

client_redirect = sa.Table(
    "client_redirect",
    metadata,
    sa.Column("agent", sa.String(63), primary_key=True),
    sa.Column("uri", sa.String(1024), primary_key=True),
)
"""Where codes for an agent (by its name, which is never given twice) may be sent."""

pending = sa.Table(
    "pending_consent",
    metadata,
    sa.Column("id", sa.String(26), primary_key=True),
    sa.Column("slot", sa.String(64), nullable=False, unique=True),
    sa.Column("person", sa.String(33), nullable=False),
    sa.Column("agent", sa.String(2048), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("audience", sa.String(2048), nullable=False),
    sa.Column("scope", sa.Text(), nullable=False),
    sa.Column("details", sa.Text(), nullable=False),
    sa.Column("redirect_uri", sa.String(1024), nullable=False),
    sa.Column("state", sa.String(512)),
    sa.Column("challenge", sa.String(43), nullable=False),
    sa.Column("dpop_jkt", sa.String(43)),
    sa.Column("expires", Number, nullable=False),
    sa.Index(None, "person"),
)
"""Requests that wait for a decision; the slot is one for each person, agent and scope."""

code = sa.Table(
    "authorization_code",
    metadata,
    sa.Column("hash", sa.LargeBinary(32), primary_key=True),
    sa.Column("grant_id", sa.String(26), nullable=False),
    sa.Column("person", sa.String(33), nullable=False),
    sa.Column("agent", sa.String(2048), nullable=False),
    sa.Column("audience", sa.String(2048), nullable=False),
    sa.Column("scope", sa.Text(), nullable=False),
    sa.Column("details", sa.Text(), nullable=False),
    sa.Column("redirect_uri", sa.String(1024), nullable=False),
    sa.Column("challenge", sa.String(43), nullable=False),
    sa.Column("dpop_jkt", sa.String(43)),
    sa.Column("epoch", Number, nullable=False),
    sa.Column("expires", Number, nullable=False),
    sa.Column("grant_expires", Number, nullable=False),
    sa.Column("used", Number, nullable=False),
    sa.Index(None, "person"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody. ``sub`` is ``person:`` and 26 characters, ``name`` is for people to read and unique here."""

    sub: str
    name: str
    created: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRow:
    """A login link by its hash. ``epoch`` is the number of the feed that its maker had read."""

    hash: bytes
    person: str
    browser: bytes | None
    epoch: int
    expires: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """A session by the hash of its cookie."""

    hash: bytes
    person: str
    epoch: int
    expires: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A request that waits for its person."""

    id: str
    slot: str
    person: str
    agent: str
    digest: str
    audience: str
    scope: str
    details: str
    redirect_uri: str
    state: str | None
    challenge: str
    dpop_jkt: str | None
    expires: int

    @property
    def consume(self) -> Consume:
        """What a decision uses up."""
        return Consume(DECISION, hashed(self.id))


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeRow:
    """A code by its hash, with everything that it is bound to. ``used`` is when (Unix seconds), 0 before."""

    hash: bytes
    grant_id: str
    person: str
    agent: str
    audience: str
    scope: str
    details: str
    redirect_uri: str
    challenge: str
    dpop_jkt: str | None
    epoch: int
    expires: int
    grant_expires: int
    used: int = 0

    @property
    def consume(self) -> Consume:
        return Consume(CODE, self.hash)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A grant as its person sees it."""

    id: str
    agent: str
    resource: str
    scope: str
    created: int
    expires: int


_PERSON: Final = sa.insert(person)
_ONCE: Final = sa.insert(once)
_LINK: Final = sa.insert(login_link)
_BIND: Final = (
    sa.update(login_link)
    .where(login_link.c.hash == sa.bindparam("of_hash"), login_link.c.browser.is_(None))
    .values(browser=sa.bindparam("new_browser"))
)
_USED_LINK: Final = sa.delete(login_link).where(login_link.c.hash == sa.bindparam("of_hash"))
_END_LINKS: Final = sa.delete(login_link).where(
    login_link.c.person == sa.bindparam("of_person"), login_link.c.expires <= sa.bindparam("until")
)
_SESSION: Final = sa.insert(session)
_END_SESSION: Final = sa.delete(session).where(session.c.hash == sa.bindparam("of_hash"))
_END_SESSIONS: Final = sa.delete(session).where(
    session.c.person == sa.bindparam("of_person"), session.c.expires <= sa.bindparam("until")
)
_REDIRECT: Final = sa.insert(client_redirect)
_FORGET_REDIRECTS: Final = sa.delete(client_redirect).where(client_redirect.c.agent == sa.bindparam("of_agent"))
_PENDING: Final = sa.insert(pending)
_PENDING_AGAIN: Final = (
    sa.update(pending)
    .where(pending.c.id == sa.bindparam("of_id"))
    .values({name: sa.bindparam(f"new_{name}") for name in Pending.__slots__})
)
_DECIDED: Final = sa.delete(pending).where(pending.c.id == sa.bindparam("of_id"))
_EXPIRED: Final = sa.delete(pending).where(
    pending.c.person == sa.bindparam("of_person"), pending.c.expires <= sa.bindparam("until")
)
_CODE: Final = sa.insert(code)
_USED: Final = sa.update(code).where(code.c.hash == sa.bindparam("of_hash")).values(used=sa.bindparam("at"))
_END_CODES: Final = sa.delete(code).where(
    code.c.person == sa.bindparam("of_person"), code.c.expires <= sa.bindparam("until")
)


def hashed(secret: str) -> bytes:
    """Return the form in which a secret is kept."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


# --- effects


def person_inserted(row: Person) -> Effect:
    return Effect(_PERSON, {"sub": row.sub, "name": row.name, "created": row.created}, must_match=True)


def link_inserted(row: LinkRow) -> tuple[Effect, ...]:
    """Add a link, unused; others of the person stay good until they expire or are used."""
    values = {name: getattr(row, name) for name in LinkRow.__slots__}
    return (_once(LINK, row.hash, row.expires), Effect(_LINK, values))


def link_bound(hash_: bytes, browser: bytes) -> Effect:
    """Give a link to the browser that opens it; refuses the Write if another was faster."""
    return Effect(_BIND, {"of_hash": hash_, "new_browser": browser}, must_match=True)


def link_used(hash_: bytes) -> Effect:
    """Forget a link that was used; of it only the one-time row is left."""
    return Effect(_USED_LINK, {"of_hash": hash_})


def session_inserted(row: SessionRow) -> Effect:
    return Effect(_SESSION, {name: getattr(row, name) for name in SessionRow.__slots__})


def session_ended(hash_: bytes) -> Effect:
    return Effect(_END_SESSION, {"of_hash": hash_}, must_match=True)


def redirects_replaced(agent: str, uris: Iterable[str]) -> tuple[Effect, ...]:
    return (
        Effect(_FORGET_REDIRECTS, {"of_agent": agent}),
        *(Effect(_REDIRECT, {"agent": agent, "uri": uri}) for uri in uris),
    )


def pending_inserted(row: Pending, now: int) -> tuple[Effect, ...]:
    """Add a request; one for the same person, agent and scope that still waits refuses the Write."""
    values = {name: getattr(row, name) for name in Pending.__slots__}
    return (
        Effect(_EXPIRED, {"of_person": row.person, "until": now}),
        Effect(_PENDING, values, must_match=True),
        _once(DECISION, hashed(row.id), row.expires),
    )


def pending_replaced(older: Pending, row: Pending) -> tuple[Effect, ...]:
    """Put a request in the place of another; the Write must use up the older one, and is refused if that is gone."""
    values = {f"new_{name}": getattr(row, name) for name in Pending.__slots__}
    return (
        Effect(_PENDING_AGAIN, values | {"of_id": older.id}, must_match=True),
        _once(DECISION, hashed(row.id), row.expires),
    )


def decided(id_: str) -> Effect:
    return Effect(_DECIDED, {"of_id": id_})


def code_inserted(row: CodeRow) -> tuple[Effect, ...]:
    values = {name: getattr(row, name) for name in CodeRow.__slots__}
    return (_once(CODE, row.hash, row.expires), Effect(_CODE, values))


def code_used(hash_: bytes, at: int) -> Effect:
    return Effect(_USED, {"of_hash": hash_, "at": at})


def swept(sub: str, now: int) -> tuple[Effect, ...]:
    """Delete what a person has left behind."""
    return (
        Effect(_END_LINKS, {"of_person": sub, "until": now}),
        Effect(_END_SESSIONS, {"of_person": sub, "until": now}),
        Effect(_END_CODES, {"of_person": sub, "until": now - KEPT_CODES}),
    )


def _once(kind: str, hash_: bytes, expires: int) -> Effect:
    return Effect(_ONCE, {"kind": kind, "id_hash": hash_, "expires": expires, "used_by": None})


# --- reading


def people(connection: sa.Connection) -> tuple[Person, ...]:
    """Read everybody, by name."""
    rows = connection.execute(sa.select(person).order_by(person.c.name))
    return tuple(Person(**row) for row in rows.mappings())


def find_person(connection: sa.Connection, *, name: str = "", sub: str = "") -> Person | None:
    """Read one person by name or identifier."""
    where = person.c.name == name if name else person.c.sub == sub
    return _one(connection, sa.select(person).where(where), Person)


def find_link(connection: sa.Connection, hash_: bytes) -> LinkRow | None:
    return _one(connection, sa.select(login_link).where(login_link.c.hash == hash_), LinkRow)


def find_session(connection: sa.Connection, hash_: bytes) -> SessionRow | None:
    return _one(connection, sa.select(session).where(session.c.hash == hash_), SessionRow)


def redirects(connection: sa.Connection, agent: str) -> tuple[str, ...]:
    """Read the redirect URIs of an agent, by its name."""
    statement = sa.select(client_redirect.c.uri).where(client_redirect.c.agent == agent)
    return tuple(connection.execute(statement.order_by(client_redirect.c.uri)).scalars())


def find_pending(connection: sa.Connection, sub: str, id_: str) -> Pending | None:
    """Read a request of this person, whether it has expired or not."""
    return _one(connection, sa.select(pending).where(pending.c.id == id_, pending.c.person == sub), Pending)


def waiting(connection: sa.Connection, sub: str, now: int) -> tuple[Pending, ...]:
    """Read what waits for a person, the oldest first."""
    statement = sa.select(pending).where(pending.c.person == sub, pending.c.expires > now).order_by(pending.c.id)
    return tuple(_row(row, Pending) for row in connection.execute(statement).mappings())


def find_code(connection: sa.Connection, hash_: bytes) -> CodeRow | None:
    return _one(connection, sa.select(code).where(code.c.hash == hash_), CodeRow)


def given(connection: sa.Connection, sub: str, now: int) -> tuple[Given, ...]:
    """Read the grants that a person gave and that stand, the newest first."""
    table = grant_table
    statement = sa.select(
        table.c.id, table.c.agent, table.c.resource, table.c.scope, table.c.created, table.c.expires
    ).where(table.c.giver == sub, table.c.revoked == 0, table.c.expires > now)
    rows = connection.execute(statement.order_by(table.c.created.desc(), table.c.id.desc()))
    return tuple(_row(row, Given) for row in rows.mappings())


def _one(connection: sa.Connection, statement: sa.Select[Any], kind: type[R]) -> R | None:
    row = connection.execute(statement).mappings().one_or_none()
    return None if row is None else _row(row, kind)


def _row(row: Mapping[Any, Any], kind: type[R]) -> R:
    # PostgreSQL hands out octets as memory views of its own
    return kind(**{name: bytes(value) if isinstance(value, memoryview) else value for name, value in row.items()})
