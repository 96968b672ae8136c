"""``aims node run``: the node daemon in the foreground."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

from cyclopts import Parameter

from aims.cli.errors import CliError
from aims.server.settings import default_run_dir, default_state_dir


def run_node(
    *,
    state_dir: Annotated[Path | None, Parameter(help="key and identity [default: $XDG_STATE_HOME/aims/node]")] = None,
    run_dir: Annotated[Path | None, Parameter(help="the sockets [default: $XDG_RUNTIME_DIR/aims]")] = None,
    join_token: Annotated[
        Path | None, Parameter(help="a file of mode 0600, or - for standard input; needed once")
    ] = None,
) -> NoReturn:
    """Run this host's node until Ctrl-C: it starts agents, vouches for them and hands out their SVIDs.

    A join token (`aims node token NODE`) is needed until the node has an identity, and again if it has expired.
    """
    if sys.platform != "linux":
        raise CliError("platform")
    from aims.node.__main__ import run
    from aims.node.daemon import NodeSettings

    base = default_state_dir(os.environ)
    sys.exit(
        run(
            NodeSettings(
                state_dir=(state_dir or base / "node").absolute(),
                run_dir=(run_dir or default_run_dir(os.environ, base)).absolute(),
                join_token=join_token,
            )
        )
    )
