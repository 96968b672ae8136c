"""``aims``: the root of the command line. Commands are imported when they are called."""

from __future__ import annotations

import sys
from typing import Final

from cyclopts import App, CycloptsError

from aims import __version__
from aims.cli.output import USAGE, complain
from aims.errors import AimsError

app: Final = App(
    name="aims",
    help="Attested identity, short-lived credentials, authorization and a stop for AI agents.",
    version_flags=["--version"],
    version=__version__,
)
app.command("aims.cli.demo:demo", name="demo", help="Play the whole story with real processes on loopback.")
app.command("aims.cli.up:up", name="up", help="Start a trust domain on this host and keep it running.")
app.command("aims.cli.run:run", name="run", help="Start a program as a registered agent.")
app.command("aims.cli.registry:agent", name="agent", help="The agents of the trust domain.")
app.command("aims.cli.registry:owner", name="owner", help="The people and teams that answer for agents.")
app.command("aims.cli.registry:entry", name="entry", help="What an agent must show, and where, for its identity.")
app.command("aims.cli.resource:app", name="resource", help="The tools and services that agents may call.")
app.command("aims.cli.registry:node", name="node", help="The hosts on which agents run.")
app.command("aims.cli.people:person", name="person", help="People, and what is done in their name.")
app.command("aims.cli.grant:app", name="grant", help="The rights under which agents act: end one.")
app.command("aims.cli.signals:app", name="signals", help="Security events of other parties, and ours to them.")
app.command("aims.cli.svid:app", name="svid", help="What the Workload API gives to this process.")
app.command("aims.cli.explain:explain", name="explain", help="Explain a refusal, a token or a SPIFFE ID.")
app.command("aims.cli.doctor:doctor", name="doctor", help="Check the set-up and print the fix for each finding.")
app.command("aims.cli.policy:app", name="policy", help="Ask the policy what it decides and why; change it.")
app.command("aims.cli.server:app", name="server", help="Prepare the database of a server.")
app.command("aims.cli.audit:app", name="audit", help="Verify the tamper-evident log, and read it.")


def main() -> None:
    """Run one command; the exit status says how it went (0 done, 1 refused or failed, 2 wrong usage)."""
    try:
        sys.exit(app(exit_on_error=False, print_error=True) or 0)
    except CycloptsError:
        sys.exit(USAGE)
    except AimsError as error:
        sys.exit(complain(error))
    except KeyboardInterrupt:
        sys.exit(130)
