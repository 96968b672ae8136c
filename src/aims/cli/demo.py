"""``aims demo``: the whole story, with real processes on loopback."""

from __future__ import annotations

import asyncio
import sys

from aims.cli.errors import CliError
from aims.cli.output import REFUSED


def demo() -> int:
    """Play the story; exit status 1 if a step did not see what was expected."""
    if sys.platform != "linux":
        raise CliError("platform")
    from rich.console import Console

    from aims.demo.play import play
    from aims.demo.telling import TerminalTeller

    return 0 if asyncio.run(play(TerminalTeller(Console()))) else REFUSED
