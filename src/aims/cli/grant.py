"""``aims grant``: what agents may do for others, and the end of it."""

from __future__ import annotations

from cyclopts import App

from aims.cli.administrator import RunDir, Why, call
from aims.cli.output import Output, show

app = App(name="grant", help="The rights under which agents act: end one.")


@app.command(name="revoke")
def revoke(grant: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """End a grant and everything below it, by the `grant_id` of its tokens.

    `agent:NAME` is what an agent does on its own right: all that it holds and handed on so far ends, and it may ask for
    new tokens. `aims explain TOKEN` names the grant of a token.
    """
    answer = call(run_dir, reason, "POST", "grants/revoke", {"grant": grant})
    name = answer["grant"]
    if answer["applied"] == "already":
        said = f"grant {name} had ended already"
    elif name.startswith("agent:"):
        said = f"every token of {name.removeprefix('agent:')} so far is dead, and all that it handed on"
    else:
        said = f"grant {name} is ended for good: every token that carries it is dead"
    show(answer, output, said)
