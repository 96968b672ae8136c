"""The tables of the store: feed, stops, claims, one-time things, writers and the outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    head = op.create_table(
        "feed_head",
        sa.Column("one", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("seq", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_feed_head")),
        sa.CheckConstraint("one = 1", name=op.f("ck_feed_head_one")),
    )
    op.bulk_insert(head, [{"one": 1, "seq": 0}])
    op.create_table(
        "change",
        sa.Column("seq", _NUMBER, nullable=False, autoincrement=False),
        sa.Column("at", _NUMBER, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("id", sa.String(2048), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("stop_kind", sa.String(16)),
        sa.Column("stop_id", sa.String(2048)),
        sa.Column("stop_blocked", sa.Boolean(create_constraint=False)),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_change")),
    )
    op.create_table(
        "stop",
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("id", sa.String(2048), nullable=False),
        sa.Column("seq", _NUMBER, nullable=False),
        sa.Column("blocked", sa.Boolean(create_constraint=False), nullable=False),
        sa.PrimaryKeyConstraint("kind", "id", name=op.f("pk_stop")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "claim",
        sa.Column("k", sa.LargeBinary, nullable=False),
        sa.Column("expires", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("k", name=op.f("pk_claim")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "once",
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("id_hash", sa.LargeBinary, nullable=False),
        sa.Column("expires", _NUMBER, nullable=False),
        sa.Column("used_by", sa.String(64)),
        sa.PrimaryKeyConstraint("kind", "id_hash", name=op.f("pk_once")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_once_expires"), "once", ["expires"])
    op.create_table(
        "writer",
        sa.Column("writer", sa.String(26), nullable=False),
        sa.Column("n", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("writer", name=op.f("pk_writer")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "outbox",
        sa.Column("writer", sa.String(26), nullable=False),
        sa.Column("n", _NUMBER, nullable=False, autoincrement=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("writer", "n", name=op.f("pk_outbox")),
    )


def downgrade() -> None:
    for table in ("outbox", "writer", "once", "claim", "stop", "change", "feed_head"):
        op.drop_table(table)
