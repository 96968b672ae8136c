"""The one ``metadata`` of all tables, and the tables of the store itself.

Each room declares its own tables on ``metadata`` in its ``store.py``. Rows of the tables here are written by the
committer alone. Times are Unix seconds; ``seq`` is a number of the change feed.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite makes a column the key of the table's tree only if its type reads exactly INTEGER; it holds 64 bits there.
Number = BigInteger().with_variant(Integer(), "sqlite")

KEPT_CHANGES = 86_400
"""Seconds that a line of the change feed is kept."""
KEPT_EXPIRED = 120
"""Seconds that claims and one-time things outlive their expiry: more than the greatest leeway of any verifier."""

feed_head = Table(
    "feed_head",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("seq", Number, nullable=False),
    CheckConstraint("one = 1", name="one"),
)
"""One row: the number of the last change. Made by the first migration."""

change = Table(
    "change",
    metadata,
    Column("seq", Number, primary_key=True, autoincrement=False),
    Column("at", Number, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("id", String(2048), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("stop_kind", String(16)),
    Column("stop_id", String(2048)),
    Column("stop_blocked", Boolean(create_constraint=False)),
)
"""The change feed, kept for a day. A line that is a stop repeats it, because ``stop`` keeps only the last one."""

stop = Table(
    "stop",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("id", String(2048), primary_key=True),
    Column("seq", Number, nullable=False),
    Column("blocked", Boolean(create_constraint=False), nullable=False),
    sqlite_with_rowid=False,
)

claim = Table(
    "claim",
    metadata,
    Column("k", LargeBinary, primary_key=True),
    Column("expires", Number, nullable=False),
    sqlite_with_rowid=False,
)
"""Spent proofs; ``k`` is ``Claim.key``, which begins with the expiry."""

once = Table(
    "once",
    metadata,
    Column("kind", String(32), primary_key=True),
    Column("id_hash", LargeBinary, primary_key=True),
    Column("expires", Number, nullable=False),
    Column("used_by", String(64)),
    Index(None, "expires"),
    sqlite_with_rowid=False,
)
"""One-time things of ours. Rooms insert rows as effects; ``used_by`` is ``writer:n`` of the record of its use."""

writer = Table(
    "writer",
    metadata,
    Column("writer", String(26), primary_key=True),
    Column("n", Number, nullable=False),
    sqlite_with_rowid=False,
)
"""How many records each writer has committed. A writer is one start of one process."""

outbox = Table(
    "outbox",
    metadata,
    Column("writer", String(26), primary_key=True),
    Column("n", Number, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
)
"""Audit bodies, numbered 1, 2, 3 ... without a gap for each writer, until the sequencer has taken them."""
