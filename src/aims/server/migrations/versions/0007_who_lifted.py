"""Which party stopped a subject and which lifted a stop, and when."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_standing = sa.table(
    "standing",
    sa.column("kind", sa.String()),
    sa.column("id", sa.String()),
    sa.column("blocked", sa.Boolean()),
    sa.column("held_by", sa.String()),
    sa.column("stopped_at", sa.BigInteger()),
    sa.column("resumed_at", sa.BigInteger()),
    sa.column("said", sa.Text()),
)


def upgrade() -> None:
    op.add_column("standing", sa.Column("said", sa.Text(), nullable=False, server_default="{}"))
    connection = op.get_bind()
    for row in connection.execute(sa.select(_standing)).all():
        # Who lifted was not kept: as if an administrator had, so that what was stale for everybody stays so. A stop
        # that stands is its holder's.
        said = {"admin": [0, row.resumed_at]}
        if row.blocked and row.held_by:
            said[row.held_by] = [row.stopped_at, said.get(row.held_by, [0, 0])[1]]
        connection.execute(
            sa.update(_standing)
            .where(_standing.c.kind == row.kind, _standing.c.id == row.id)
            .values(said=json.dumps(said))
        )


def downgrade() -> None:
    op.drop_column("standing", "said")
