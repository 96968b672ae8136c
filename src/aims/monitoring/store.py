"""Tables and statements of monitoring."""

from __future__ import annotations

from typing import Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from aims.monitoring.model import Due, Receiver, Said, Standing
from aims.storage.schema import Number, metadata
from aims.storage.write import Change, Effect, Name

standing = sa.Table(
    "standing",
    metadata,
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("id", sa.String(2048), primary_key=True),
    sa.Column("blocked", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("held_by", sa.String(2048), nullable=False),
    sa.Column("stopped_at", Number, nullable=False),
    sa.Column("resumed_at", Number, nullable=False),
    sa.Column("revoked_at", Number, nullable=False),
    sa.Column("revision", Number, nullable=False),
    sa.Column("said", sa.Text(), nullable=False, server_default="{}"),
)
"""What remediation did to a subject. Each remedy moves the revision: of two that decide at once, one decides anew.
``said`` is JSON: for each party that stopped or lifted, ``[stopped_at, lifted_at]``."""

transmitter = sa.Table(
    "signal_transmitter",
    metadata,
    sa.Column("issuer", sa.String(2048), primary_key=True),
    sa.Column("jwks", sa.Text(), nullable=False),
)
"""Whose events are listened to, with the keys that an administrator gave."""

receiver = sa.Table(
    "signal_receiver",
    metadata,
    sa.Column("one", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("url", sa.String(2048), nullable=False),
    sa.Column("audience", sa.String(2048), nullable=False),
    sa.Column("issuer", sa.String(2048), nullable=False),
    sa.Column("private", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("ca", sa.Text(), nullable=False),
    sa.Column("events", sa.Text(), nullable=False),
    sa.Column("complex", sa.Boolean(create_constraint=False), nullable=False),
    sa.CheckConstraint("one = 1", name="one"),
)
"""The one receiver of our events. ``issuer``: under which name it is a transmitter to us, or ""."""

person = sa.Table(
    "signal_person",
    metadata,
    sa.Column("issuer", sa.String(2048), primary_key=True),
    sa.Column("subject", sa.String(1024), primary_key=True),
    sa.Column("person", sa.String(255), nullable=False),
)
"""Who is meant by a transmitter's name for a person; ``subject`` is ``subjects.canonical``."""

received = sa.Table(
    "signal_received",
    metadata,
    sa.Column("issuer", sa.String(2048), primary_key=True),
    sa.Column("jti", sa.String(256), primary_key=True),
    sa.Column("at", Number, nullable=False),
    sa.Column("event", sa.String(2048), nullable=False),
    sa.Column("applied", sa.String(16), nullable=False),
    sa.Column("token", sa.Text(), nullable=False),
    sa.Index(None, "at"),
)
"""The events that were accepted, as they came."""

outbox = sa.Table(
    "signal_outbox",
    metadata,
    sa.Column("jti", sa.String(26), primary_key=True),
    sa.Column("txn", sa.String(256), nullable=False),
    sa.Column("own", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("subject", sa.String(2048), nullable=False),
    sa.Column("claims", sa.Text(), nullable=False),
    sa.Column("created", Number, nullable=False),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("tries", sa.Integer(), nullable=False),
    sa.Column("next_at", Number, nullable=False),
    sa.Column("reason", sa.String(256), nullable=False),
    sa.Index(None, "state", "next_at"),
    sa.Index(None, "txn"),
)
"""The events that go out: ``waiting``, ``sent`` or ``dead``. ``subject`` keeps the events of one subject in order;
``own``: the cause is ours, and not another party's event that we pass on."""

CHANGED: Final = "signal_peer"
"""The kind of a line of the feed that says: the transmitters or the receiver are others now."""

KEPT_DAYS: Final = 30
"""How long accepted, sent and dead events are kept."""

_said: Final = msgspec.json.Decoder(dict[str, Said])

_INSERT_STANDING: Final = sa.insert(standing)
_UPDATE_STANDING: Final = (
    sa.update(standing)
    .where(
        standing.c.kind == sa.bindparam("of_kind"),
        standing.c.id == sa.bindparam("of_id"),
        standing.c.revision == sa.bindparam("of_revision"),
    )
    .values(
        blocked=sa.bindparam("new_blocked"),
        held_by=sa.bindparam("new_held_by"),
        stopped_at=sa.bindparam("new_stopped_at"),
        resumed_at=sa.bindparam("new_resumed_at"),
        revoked_at=sa.bindparam("new_revoked_at"),
        revision=sa.bindparam("new_revision"),
        said=sa.bindparam("new_said"),
    )
)


def read_standing(connection: sa.Connection, name: Name) -> Standing:
    """Read how a subject stands; one that was never touched has no row."""
    row = connection.execute(
        sa.select(standing).where(standing.c.kind == name.kind, standing.c.id == name.id)
    ).one_or_none()
    if row is None:
        return Standing(name=name)
    return Standing(
        name=name,
        blocked=bool(row.blocked),
        held_by=row.held_by,
        stopped_at=row.stopped_at,
        resumed_at=row.resumed_at,
        revoked_at=row.revoked_at,
        revision=row.revision,
        said=_said.decode(row.said),
    )


def put_standing(before: Standing, after: Standing) -> Effect:
    """Replace what was read; another remedy in between refuses the Write."""
    row = {
        "blocked": after.blocked,
        "held_by": after.held_by,
        "stopped_at": after.stopped_at,
        "resumed_at": after.resumed_at,
        "revoked_at": after.revoked_at,
        "revision": before.revision + 1,
        "said": msgspec.json.encode(after.said, order="deterministic").decode("utf-8"),
    }
    if before.revision == 0:
        return Effect(_INSERT_STANDING, {"kind": after.name.kind, "id": after.name.id} | row, must_match=True)
    changed = {f"new_{column}": value for column, value in row.items()}
    key = {"of_kind": after.name.kind, "of_id": after.name.id, "of_revision": before.revision}
    return Effect(_UPDATE_STANDING, key | changed, must_match=True)


_TRANSMITTER: Final = insert(transmitter)
_PUT_TRANSMITTER: Final = _TRANSMITTER.on_conflict_do_update(
    index_elements=["issuer"], set_={"jwks": _TRANSMITTER.excluded.jwks}
)
_REMOVE_TRANSMITTER: Final = sa.delete(transmitter).where(transmitter.c.issuer == sa.bindparam("of_issuer"))
_RECEIVER: Final = insert(receiver)
_PUT_RECEIVER: Final = _RECEIVER.on_conflict_do_update(
    index_elements=["one"],
    set_={column.name: getattr(_RECEIVER.excluded, column.name) for column in receiver.c if column.name != "one"},
)
_PERSON: Final = insert(person)
_PUT_PERSON: Final = _PERSON.on_conflict_do_update(
    index_elements=["issuer", "subject"], set_={"person": _PERSON.excluded.person}
)
_INSERT_RECEIVED: Final = sa.insert(received)
_FORGET_RECEIVED: Final = sa.delete(received).where(received.c.at < sa.bindparam("before"))
_INSERT_OUTBOX: Final = sa.insert(outbox)
_UPDATE_OUTBOX: Final = (
    sa.update(outbox)
    .where(
        outbox.c.jti == sa.bindparam("of_jti"),
        outbox.c.state == "waiting",
        outbox.c.tries == sa.bindparam("of_tries"),
    )
    .values(
        state=sa.bindparam("new_state"),
        tries=sa.bindparam("new_tries"),
        next_at=sa.bindparam("new_next_at"),
        reason=sa.bindparam("new_reason"),
    )
)
_REVIVE_OUTBOX: Final = (
    sa.update(outbox)
    .where(outbox.c.state == "dead", outbox.c.created >= sa.bindparam("since"))
    .values(state="waiting", tries=0, created=sa.bindparam("at"), next_at=sa.bindparam("at"))
)
_FORGET_OUTBOX: Final = sa.delete(outbox).where(outbox.c.state != "waiting", outbox.c.created < sa.bindparam("before"))


def changed(what: str) -> Change:
    """The line that makes every process read the transmitters and the receiver again."""
    return Change(CHANGED, what, b"null")


def put_transmitter(issuer: str, jwks: str) -> Effect:
    """Add a transmitter, or replace its keys."""
    return Effect(_PUT_TRANSMITTER, {"issuer": issuer, "jwks": jwks})


def remove_transmitter(issuer: str) -> Effect:
    """Listen to it no more; one that is not there refuses the Write."""
    return Effect(_REMOVE_TRANSMITTER, {"of_issuer": issuer}, must_match=True)


def put_receiver(value: Receiver) -> Effect:
    """Set the one receiver."""
    row = {
        "one": 1,
        "url": value.url,
        "audience": value.audience,
        "issuer": value.issuer,
        "private": value.private,
        "ca": value.ca,
        "events": " ".join(sorted(value.events)),
        "complex": value.complex,
    }
    return Effect(_PUT_RECEIVER, row)


def put_person(issuer: str, subject: str, sub: str) -> Effect:
    """Say who is meant by a transmitter's name."""
    return Effect(_PUT_PERSON, {"issuer": issuer, "subject": subject, "person": sub})


def insert_received(  # noqa: PLR0917  the columns, in their order
    issuer: str, jti: str, at: int, event: str, applied: str, token: str
) -> Effect:
    """Keep an accepted SET; one that was accepted before refuses the Write."""
    row = {"issuer": issuer, "jti": jti, "at": at, "event": event, "applied": applied, "token": token}
    return Effect(_INSERT_RECEIVED, row, must_match=True)


def insert_outbox(*, jti: str, txn: str, own: bool, subject: str, claims: str, now: int) -> Effect:
    """Let a SET go out."""
    row = {
        "jti": jti,
        "txn": txn,
        "own": own,
        "subject": subject,
        "claims": claims,
        "created": now,
        "state": "waiting",
        "tries": 0,
        "next_at": now,
        "reason": "",
    }
    return Effect(_INSERT_OUTBOX, row)


def tried(jti: str, tries: int, *, state: str, next_at: int, reason: str) -> Effect:
    """Note the outcome of a delivery; whoever tried the same at the same time refuses the Write."""
    row = {
        "of_jti": jti,
        "of_tries": tries,
        "new_state": state,
        "new_tries": tries + 1,
        "new_next_at": next_at,
        "new_reason": reason,
    }
    return Effect(_UPDATE_OUTBOX, row, must_match=True)


def revived(now: int) -> Effect:
    """Let dead letters of the last thirty days go out once more."""
    return Effect(_REVIVE_OUTBOX, {"since": now - KEPT_DAYS * 86_400, "at": now})


def forgotten(now: int) -> tuple[Effect, ...]:
    """Forget events that were accepted, sent or given up more than thirty days ago."""
    before = now - KEPT_DAYS * 86_400
    return Effect(_FORGET_RECEIVED, {"before": before}), Effect(_FORGET_OUTBOX, {"before": before})


def is_received(connection: sa.Connection, issuer: str, jti: str) -> bool:
    """Whether a SET was accepted before."""
    statement = sa.select(received.c.jti).where(received.c.issuer == issuer, received.c.jti == jti)
    return connection.execute(statement).first() is not None


def sent_of(connection: sa.Connection, txn: str, limit: int = 64) -> tuple[tuple[bool, str, str], ...]:
    """Return (own cause, subject, claims) of the events that we sent for a cause."""
    statement = sa.select(outbox.c.own, outbox.c.subject, outbox.c.claims).where(outbox.c.txn == txn).limit(limit)
    return tuple((bool(row.own), row.subject, row.claims) for row in connection.execute(statement))


def read_person(connection: sa.Connection, issuer: str, subject: str) -> str | None:
    """Return who is meant by a transmitter's name."""
    statement = sa.select(person.c.person).where(person.c.issuer == issuer, person.c.subject == subject)
    found = connection.execute(statement).scalar_one_or_none()
    return None if found is None else str(found)


def read_transmitters(connection: sa.Connection) -> dict[str, str]:
    """Return the JWK Sets by issuer."""
    return {row.issuer: row.jwks for row in connection.execute(sa.select(transmitter).order_by(transmitter.c.issuer))}


def read_receiver(connection: sa.Connection) -> Receiver | None:
    """Return the receiver, if one is set."""
    row = connection.execute(sa.select(receiver)).one_or_none()
    if row is None:
        return None
    return Receiver(
        url=row.url,
        audience=row.audience,
        issuer=row.issuer,
        private=bool(row.private),
        ca=row.ca,
        events=frozenset(row.events.split()),
        complex=bool(row.complex),
    )


def read_due(connection: sa.Connection, now: int, limit: int) -> tuple[Due, ...]:
    """Return what may go out now: of each subject only the oldest event that waits."""
    older = outbox.alias("older")
    waits = sa.exists().where(
        older.c.state == "waiting", older.c.subject == outbox.c.subject, older.c.jti < outbox.c.jti
    )
    statement = (
        sa.select(outbox.c.jti, outbox.c.txn, outbox.c.claims, outbox.c.tries, outbox.c.created, outbox.c.reason)
        .where(outbox.c.state == "waiting", outbox.c.next_at <= now, ~waits)
        .order_by(outbox.c.next_at, outbox.c.jti)
        .limit(limit)
    )
    return tuple(Due(*row) for row in connection.execute(statement))


def count_old(connection: sa.Connection, now: int) -> int:
    """Count what ``forgotten`` would delete."""
    before = now - KEPT_DAYS * 86_400
    accepted = connection.scalar(sa.select(sa.func.count()).select_from(received).where(received.c.at < before))
    ended = connection.scalar(
        sa.select(sa.func.count()).select_from(outbox).where(outbox.c.state != "waiting", outbox.c.created < before)
    )
    return int(accepted or 0) + int(ended or 0)
