"""How subjects stand, whose security events are heard, and those that go out."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "signal_outbox",
        sa.Column("jti", sa.String(length=26), nullable=False),
        sa.Column("txn", sa.String(length=256), nullable=False),
        sa.Column("own", sa.Boolean(), nullable=False),
        sa.Column("subject", sa.String(length=2048), nullable=False),
        sa.Column("claims", sa.Text(), nullable=False),
        sa.Column("created", _NUMBER, nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("next_at", _NUMBER, nullable=False),
        sa.Column("reason", sa.String(length=256), nullable=False),
        sa.PrimaryKeyConstraint("jti", name=op.f("pk_signal_outbox")),
    )
    op.create_index(op.f("ix_signal_outbox_state_next_at"), "signal_outbox", ["state", "next_at"], unique=False)
    op.create_index(op.f("ix_signal_outbox_txn"), "signal_outbox", ["txn"], unique=False)
    op.create_table(
        "signal_person",
        sa.Column("issuer", sa.String(length=2048), nullable=False),
        sa.Column("subject", sa.String(length=1024), nullable=False),
        sa.Column("person", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("issuer", "subject", name=op.f("pk_signal_person")),
    )
    op.create_table(
        "signal_received",
        sa.Column("issuer", sa.String(length=2048), nullable=False),
        sa.Column("jti", sa.String(length=256), nullable=False),
        sa.Column("at", _NUMBER, nullable=False),
        sa.Column("event", sa.String(length=2048), nullable=False),
        sa.Column("applied", sa.String(length=16), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("issuer", "jti", name=op.f("pk_signal_received")),
    )
    op.create_index(op.f("ix_signal_received_at"), "signal_received", ["at"], unique=False)
    op.create_table(
        "signal_receiver",
        sa.Column("one", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("url", sa.String(length=2048), nullable=False),
        sa.Column("audience", sa.String(length=2048), nullable=False),
        sa.Column("issuer", sa.String(length=2048), nullable=False),
        sa.Column("private", sa.Boolean(), nullable=False),
        sa.Column("ca", sa.Text(), nullable=False),
        sa.Column("events", sa.Text(), nullable=False),
        sa.Column("complex", sa.Boolean(), nullable=False),
        sa.CheckConstraint("one = 1", name=op.f("ck_signal_receiver_one")),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_signal_receiver")),
    )
    op.create_table(
        "signal_transmitter",
        sa.Column("issuer", sa.String(length=2048), nullable=False),
        sa.Column("jwks", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("issuer", name=op.f("pk_signal_transmitter")),
    )
    op.create_table(
        "standing",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("id", sa.String(length=2048), nullable=False),
        sa.Column("blocked", sa.Boolean(), nullable=False),
        sa.Column("held_by", sa.String(length=2048), nullable=False),
        sa.Column("stopped_at", _NUMBER, nullable=False),
        sa.Column("resumed_at", _NUMBER, nullable=False),
        sa.Column("revoked_at", _NUMBER, nullable=False),
        sa.Column("revision", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("kind", "id", name=op.f("pk_standing")),
    )


def downgrade() -> None:
    op.drop_table("standing")
    op.drop_table("signal_transmitter")
    op.drop_table("signal_receiver")
    op.drop_index(op.f("ix_signal_received_at"), table_name="signal_received")
    op.drop_table("signal_received")
    op.drop_table("signal_person")
    op.drop_index(op.f("ix_signal_outbox_txn"), table_name="signal_outbox")
    op.drop_index(op.f("ix_signal_outbox_state_next_at"), table_name="signal_outbox")
    op.drop_table("signal_outbox")
