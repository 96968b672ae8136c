"""``aims run --as NAME -- CMD``: start a program as a registered agent."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

from cyclopts import Parameter

from aims.cli.errors import CliError
from aims.server.settings import default_run_dir, default_state_dir


def run(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True, help="the command, after `--`")],
    as_: Annotated[str, Parameter(name="--as", help="the agent's registered name")],
    run_dir: Annotated[Path | None, Parameter(help="folder of the sockets [default: $XDG_RUNTIME_DIR/aims]")] = None,
    quiet: Annotated[bool, Parameter(help="do not name the variables that the program will not see")] = False,
) -> NoReturn:
    """Have the node start a program as a registered agent: measured, in a cleaned environment, with your terminal.

    The exit status is the program's own (or death by the same signal); 125 AIMS refused or failed, 126 not executable,
    127 not found.
    """
    from aims.cli import run_client

    if sys.platform != "linux":
        raise CliError("platform")
    if not command:
        raise CliError("argument", "name the command after `--`")
    folder = run_dir or default_run_dir(os.environ, default_state_dir(os.environ))
    sys.exit(run_client.run(as_, command, launch_socket=folder / "launch.sock", quiet=quiet))
