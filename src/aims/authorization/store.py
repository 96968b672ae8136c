"""Grants as rows: one for each delegation, so that a tree can be shown and ended.

The first row of a tree is its root, and the root's id is the ``grant_id`` of every token below it. An agent's own
tokens carry its standing grant ``agent:NAME``, which has no row. Rows are written with the token that they belong
to and read by people and by revocation; issuing a token reads none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from aims.storage.schema import Number, metadata
from aims.storage.write import Effect

STANDING: Final = "agent:"
LEEWAY: Final = 60  # seconds that any verifier may grant to the end of a token
MOST_BELOW: Final = 64

grant = sa.Table(
    "delegation_grant",
    metadata,
    sa.Column("id", sa.String(26), primary_key=True),
    sa.Column("parent", sa.String(128), nullable=False),
    sa.Column("root", sa.String(128), nullable=False),
    sa.Column("agent", sa.String(2048), nullable=False),
    sa.Column("giver", sa.String(2048), nullable=False),
    sa.Column("instance", sa.String(256), nullable=False),
    sa.Column("subject", sa.String(2048), nullable=False),
    sa.Column("resource", sa.String(2048), nullable=False),
    sa.Column("scope", sa.Text(), nullable=False),
    sa.Column("details", sa.Text(), nullable=False),
    sa.Column("created", Number, nullable=False),
    sa.Column("expires", Number, nullable=False),
    sa.Column("revoked", Number, nullable=False),
    sa.Column("epoch", Number, nullable=False),
    sa.Index(None, "root"),
    sa.Index(None, "parent"),
    sqlite_with_rowid=False,
)
"""``agent`` got the right from ``giver``, whose ``instance`` gave it; ``revoked`` is when (Unix seconds), 0 before;
``epoch`` is the number of the feed that the server had read when it was given."""

_INSERT: Final = sa.insert(grant)
_REVOKE: Final = (
    sa.update(grant)
    .where(grant.c.root == sa.bindparam("of_root"), grant.c.revoked == 0)
    .values(revoked=sa.bindparam("at"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A right that one agent handed to another. Times are Unix seconds; ``revoked`` is 0 while it stands."""

    id: str
    parent: str
    root: str
    agent: str
    giver: str
    instance: str
    subject: str
    resource: str
    scope: str
    details: str
    created: int
    expires: int
    revoked: int = 0
    epoch: int = 0


def standing_grant(name: str) -> str:
    """Return the id of the grant under which an agent uses its own right."""
    return STANDING + name


def inserted(row: Grant) -> Effect:
    """Add a grant."""
    return Effect(_INSERT, {name: getattr(row, name) for name in Grant.__slots__}, must_match=True)


def revoked(root: str, at: int) -> Effect:
    """Mark every grant of a tree that still stands."""
    return Effect(_REVOKE, {"of_root": root, "at": at})


def find(connection: sa.Connection, grant_id: str) -> Grant | None:
    """Read one grant."""
    row = connection.execute(sa.select(grant).where(grant.c.id == grant_id)).one_or_none()
    return None if row is None else _grant(row)


def tree(connection: sa.Connection, root: str) -> tuple[Grant, ...]:
    """Read a tree, the oldest grant first."""
    rows = connection.execute(sa.select(grant).where(grant.c.root == root).order_by(grant.c.created, grant.c.id))
    return tuple(map(_grant, rows))


def below(connection: sa.Connection, parent: str, *, before: int, now: int) -> tuple[Grant, ...]:
    """Read some of what was delegated directly under ``parent``, before change ``before``, and is not over yet."""
    statement = (
        sa.select(grant)
        .where(
            grant.c.parent == parent,
            grant.c.revoked == 0,
            grant.c.epoch < before,
            grant.c.expires > now - LEEWAY,
        )
        .order_by(grant.c.id)
        .limit(MOST_BELOW)
    )
    return tuple(map(_grant, connection.execute(statement)))


def _grant(row: sa.Row[Any]) -> Grant:
    return Grant(**row._mapping)  # noqa: SLF001  the public name of it in SQLAlchemy
