"""``python -m aims.node``: the node daemon; says ``ready`` on standard output once it can vouch for programs."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from pathlib import Path

from aims.clock import SystemClock, SystemIds
from aims.errors import AimsError
from aims.log import start_logging
from aims.node.daemon import NodeSettings, serve


def run(settings: NodeSettings) -> int:
    """Run the node to its end; return the exit status: 0, or 1 with the reason on standard error."""
    start_logging()
    clock = SystemClock()

    def ready() -> None:
        with contextlib.suppress(OSError):  # whoever wanted to hear it may be gone
            os.write(1, b"ready\n")

    try:
        asyncio.run(serve(settings, clock=clock, ids=SystemIds(clock), ready=ready))
    except AimsError as error:
        detail = f"      {error.detail}\n" if error.detail else ""
        hint = f" fix: {error.hint}\n" if error.hint else ""
        sys.stderr.write(f"aims node: {error.code}: {error.sentence}\n{detail}{hint}")
        return 1
    return 0


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m aims.node", description="The node daemon of AIMS.")
    parser.add_argument("--state-dir", type=Path, required=True, help="what must survive: key, SVID, bundle")
    parser.add_argument("--run-dir", type=Path, required=True, help="the sockets")
    parser.add_argument("--join-token", type=Path, help="a private file, or - for standard input")
    parser.add_argument("--life", type=int, help="a descriptor; when its other end closes, the node ends")
    given = parser.parse_args()
    sys.exit(
        run(
            NodeSettings(
                state_dir=given.state_dir.absolute(),
                run_dir=given.run_dir.absolute(),
                join_token=given.join_token,
                life=given.life,
            )
        )
    )


if __name__ == "__main__":
    main()
