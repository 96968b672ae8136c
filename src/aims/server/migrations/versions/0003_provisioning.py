"""Owners, agents, services, nodes and entries; the authority's keys."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "authority_key",
        sa.Column("kid", sa.String(length=43), nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("slot", sa.String(length=8), nullable=True),
        sa.Column("uri", sa.String(length=2048), nullable=False),
        sa.Column("jwk", sa.Text(), nullable=False),
        sa.Column("certificate", sa.LargeBinary(), nullable=False),
        sa.Column("created", _NUMBER, nullable=False),
        sa.Column("not_after", _NUMBER, nullable=False),
        sa.Column("activated", _NUMBER, nullable=False),
        sa.Column("retire_until", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("kid", name=op.f("pk_authority_key")),
        sa.UniqueConstraint("purpose", "slot", name=op.f("uq_authority_key_purpose_slot")),
    )
    op.create_table(
        "bundle_number",
        sa.Column("one", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sequence", _NUMBER, nullable=False),
        sa.CheckConstraint("one = 1", name=op.f("ck_bundle_number_one")),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_bundle_number")),
    )
    op.create_table(
        "node",
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("spiffe_id", sa.String(length=2048), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("selectors", sa.Text(), nullable=False),
        sa.Column("created", _NUMBER, nullable=False),
        sa.Column("last_seen", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node")),
        sa.UniqueConstraint("spiffe_id", name=op.f("uq_node_spiffe_id")),
    )
    op.create_table(
        "owner",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("contact", sa.String(length=256), nullable=False),
        sa.Column("created", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_owner")),
    )
    op.create_table(
        "uid_use",
        sa.Column("uid", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("used_by", sa.String(length=26), nullable=False),
        sa.PrimaryKeyConstraint("uid", name=op.f("pk_uid_use")),
    )
    op.create_table(
        "workload",
        sa.Column("spiffe_id", sa.String(length=2048), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("owner", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("profile", sa.Text(), nullable=True),
        sa.Column("launch_uids", sa.Text(), nullable=False),
        sa.Column("created", _NUMBER, nullable=False),
        sa.Column("revision", _NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owner.name"], name=op.f("fk_workload_owner_owner")),
        sa.PrimaryKeyConstraint("spiffe_id", name=op.f("pk_workload")),
        sa.UniqueConstraint("name", name=op.f("uq_workload_name")),
    )
    op.create_table(
        "entry",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("spiffe_id", sa.String(length=2048), nullable=False),
        sa.Column("selectors", sa.Text(), nullable=False),
        sa.Column("nodes", sa.Text(), nullable=False),
        sa.Column("node_selectors", sa.Text(), nullable=False),
        sa.Column("x509_ttl", _NUMBER, nullable=False),
        sa.Column("jwt_ttl", _NUMBER, nullable=False),
        sa.Column("hint", sa.String(length=128), nullable=False),
        sa.Column("revision", _NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["spiffe_id"], ["workload.spiffe_id"], name=op.f("fk_entry_spiffe_id_workload")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_entry")),
    )


def downgrade() -> None:
    op.drop_table("entry")
    op.drop_table("workload")
    op.drop_table("uid_use")
    op.drop_table("owner")
    op.drop_table("node")
    op.drop_table("bundle_number")
    op.drop_table("authority_key")
