"""What keeps each instance apart; grants that one agent handed to another."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "delegation_grant",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("parent", sa.String(length=128), nullable=False),
        sa.Column("root", sa.String(length=128), nullable=False),
        sa.Column("agent", sa.String(length=2048), nullable=False),
        sa.Column("giver", sa.String(length=2048), nullable=False),
        sa.Column("instance", sa.String(length=256), nullable=False),
        sa.Column("subject", sa.String(length=2048), nullable=False),
        sa.Column("resource", sa.String(length=2048), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("created", _NUMBER, nullable=False),
        sa.Column("expires", _NUMBER, nullable=False),
        sa.Column("revoked", _NUMBER, nullable=False),
        sa.Column("epoch", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delegation_grant")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_delegation_grant_parent"), "delegation_grant", ["parent"])
    op.create_index(op.f("ix_delegation_grant_root"), "delegation_grant", ["root"])
    op.create_table(
        "instance",
        sa.Column("id", sa.String(length=256), nullable=False),
        sa.Column("agent", sa.String(length=2048), nullable=False),
        sa.Column("posture", sa.String(length=64), nullable=False),
        sa.Column("measured", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("created", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("instance")
    op.drop_index(op.f("ix_delegation_grant_root"), table_name="delegation_grant")
    op.drop_index(op.f("ix_delegation_grant_parent"), table_name="delegation_grant")
    op.drop_table("delegation_grant")
