"""The policy in force, and the order of the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "audit_cursor",
        sa.Column("writer", sa.String(length=26), nullable=False),
        sa.Column("n", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("writer", name=op.f("pk_audit_cursor")),
    )
    op.create_table(
        "audit_head",
        sa.Column("one", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("origin", sa.String(length=200), nullable=False),
        sa.Column("size", _NUMBER, nullable=False),
        sa.Column("published", _NUMBER, nullable=False),
        sa.Column("recorded", _NUMBER, nullable=False),
        sa.CheckConstraint("one = 1", name=op.f("ck_audit_head_one")),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_audit_head")),
    )
    op.create_table(
        "audit_person",
        sa.Column("sub", sa.String(length=255), nullable=False),
        sa.Column("salt", sa.LargeBinary(length=16), nullable=False),
        sa.Column("commitment", sa.String(length=43), nullable=False),
        sa.PrimaryKeyConstraint("sub", name=op.f("pk_audit_person")),
        sa.UniqueConstraint("commitment", name=op.f("uq_audit_person_commitment")),
    )
    op.create_table(
        "audit_sequence",
        sa.Column("seq", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("writer", sa.String(length=26), nullable=False),
        sa.Column("n", _NUMBER, nullable=False),
        sa.Column("recorded", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit_sequence")),
        sa.UniqueConstraint("writer", "n", name=op.f("uq_audit_sequence_writer_n")),
    )
    op.create_table(
        "policy_active",
        sa.Column("one", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_policy_active")),
    )
    op.create_table(
        "policy_bundle",
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("loaded", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_policy_bundle")),
    )


def downgrade() -> None:
    op.drop_table("policy_bundle")
    op.drop_table("policy_active")
    op.drop_table("audit_sequence")
    op.drop_table("audit_person")
    op.drop_table("audit_head")
    op.drop_table("audit_cursor")
