"""Print the body of a new database revision: what the tables in the code have and the newest revision has not.

.venv/bin/python scripts/revision.py "what and why" > src/aims/server/migrations/versions/NNNN_name.py
"""

from __future__ import annotations

import re
import sys

import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext

from aims.server.database import all_tables, migrate_on, newest


def main() -> None:
    """Compare a fresh database of the newest revision with the metadata."""
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        migrate_on(connection, "head")
        context = MigrationContext.configure(connection)
        found = produce_migrations(context, all_tables())
        if found.upgrade_ops is None or found.downgrade_ops is None:
            raise SystemExit("nothing to do")
        up = render_python_code(found.upgrade_ops)
        down = render_python_code(found.downgrade_ops)
    before = newest()
    text = f'''"""{sys.argv[1]}"""

import sqlalchemy as sa
from alembic import op

revision = "{int(before or 0) + 1:04d}"
down_revision = "{before}"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    {up}


def downgrade() -> None:
    {down}
'''
    text = re.sub(r"sa\.BigInteger\(\)\.with_variant\(sa\.Integer\(\), ['\"]sqlite['\"]\)(?! *$)", "_NUMBER", text)
    text = text.replace("_NUMBER = _NUMBER", '_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")')
    sys.stdout.write(re.sub(r"\n *# ### .*", "", text))


if __name__ == "__main__":
    main()
