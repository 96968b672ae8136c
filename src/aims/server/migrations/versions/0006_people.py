"""People, their logins and consents, and the codes that agents get."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "authorization_code",
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("grant_id", sa.String(length=26), nullable=False),
        sa.Column("person", sa.String(length=33), nullable=False),
        sa.Column("agent", sa.String(length=2048), nullable=False),
        sa.Column("audience", sa.String(length=2048), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("redirect_uri", sa.String(length=1024), nullable=False),
        sa.Column("challenge", sa.String(length=43), nullable=False),
        sa.Column("dpop_jkt", sa.String(length=43), nullable=True),
        sa.Column("epoch", _NUMBER, nullable=False),
        sa.Column("expires", _NUMBER, nullable=False),
        sa.Column("grant_expires", _NUMBER, nullable=False),
        sa.Column("used", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_authorization_code")),
    )
    op.create_index(op.f("ix_authorization_code_person"), "authorization_code", ["person"], unique=False)
    op.create_table(
        "client_redirect",
        sa.Column("agent", sa.String(length=63), nullable=False),
        sa.Column("uri", sa.String(length=1024), nullable=False),
        sa.PrimaryKeyConstraint("agent", "uri", name=op.f("pk_client_redirect")),
    )
    op.create_table(
        "login_link",
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("person", sa.String(length=33), nullable=False),
        sa.Column("browser", sa.LargeBinary(length=32), nullable=True),
        sa.Column("epoch", _NUMBER, nullable=False),
        sa.Column("expires", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_login_link")),
    )
    op.create_index(op.f("ix_login_link_person"), "login_link", ["person"], unique=False)
    op.create_table(
        "login_session",
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("person", sa.String(length=33), nullable=False),
        sa.Column("epoch", _NUMBER, nullable=False),
        sa.Column("expires", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_login_session")),
    )
    op.create_index(op.f("ix_login_session_person"), "login_session", ["person"], unique=False)
    op.create_table(
        "pending_consent",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("slot", sa.String(length=64), nullable=False),
        sa.Column("person", sa.String(length=33), nullable=False),
        sa.Column("agent", sa.String(length=2048), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("audience", sa.String(length=2048), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("redirect_uri", sa.String(length=1024), nullable=False),
        sa.Column("state", sa.String(length=512), nullable=True),
        sa.Column("challenge", sa.String(length=43), nullable=False),
        sa.Column("dpop_jkt", sa.String(length=43), nullable=True),
        sa.Column("expires", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pending_consent")),
        sa.UniqueConstraint("slot", name=op.f("uq_pending_consent_slot")),
    )
    op.create_index(op.f("ix_pending_consent_person"), "pending_consent", ["person"], unique=False)
    op.create_table(
        "person",
        sa.Column("sub", sa.String(length=33), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("created", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("sub", name=op.f("pk_person")),
        sa.UniqueConstraint("name", name=op.f("uq_person_name")),
    )


def downgrade() -> None:
    op.drop_table("person")
    op.drop_index(op.f("ix_pending_consent_person"), table_name="pending_consent")
    op.drop_table("pending_consent")
    op.drop_index(op.f("ix_login_session_person"), table_name="login_session")
    op.drop_table("login_session")
    op.drop_index(op.f("ix_login_link_person"), table_name="login_link")
    op.drop_table("login_link")
    op.drop_table("client_redirect")
    op.drop_index(op.f("ix_authorization_code_person"), table_name="authorization_code")
    op.drop_table("authorization_code")
