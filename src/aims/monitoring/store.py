"""Tables and statements of monitoring."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from aims.monitoring.model import Standing
from aims.storage.schema import Number, metadata
from aims.storage.write import Effect, Name

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
)
"""What remediation did to a subject. Each remedy moves the revision: of two that decide at once, one decides anew."""

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
"""The events that go out: ``waiting``, ``sent`` or ``dead``. ``subject`` keeps the events of one subject in order."""

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
    }
    if before.revision == 0:
        return Effect(_INSERT_STANDING, {"kind": after.name.kind, "id": after.name.id} | row, must_match=True)
    changed = {f"new_{column}": value for column, value in row.items()}
    key = {"of_kind": after.name.kind, "of_id": after.name.id, "of_revision": before.revision}
    return Effect(_UPDATE_STANDING, key | changed, must_match=True)
