"""``aims server``: prepare the database of a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from aims.cli.output import say
from aims.server.settings import default_state_dir

app = App(name="server", help="Prepare the database of a server.")


@app.command
def migrate(
    *,
    database: Annotated[str, Parameter(help="a postgresql:// URL [default: SQLite in the state folder]")] = "",
    state_dir: Annotated[Path | None, Parameter(help="state folder [default: $XDG_STATE_HOME/aims]")] = None,
) -> None:
    """Give the database the tables of this version. An own SQLite file gets them at start by itself."""
    from aims.server import database as setup
    from aims.server.settings import Settings

    state = (state_dir or default_state_dir(os.environ)).absolute()
    settings = Settings(state_dir=state, run_dir=state / "run", database=database)
    setup.migrate(settings.database_url)
    say(f"the database is at revision {setup.newest()}")
