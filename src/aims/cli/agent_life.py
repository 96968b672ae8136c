"""``aims agent suspend|resume|revoke|retire|quarantine|release``, and ``aims agent redirects``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, Parameter

from aims.cli.administrator import RunDir, Why, call
from aims.cli.output import Output, show
from aims.server.admin_client import RefusedError

_CHANGED: Final = "monitoring.changed"
_TRIES: Final = 3
_DONE: Final = {
    "suspend": "is suspended: nothing is issued, live credentials are dead",
    "resume": "is resumed; what was issued before stays dead",
    "revoke": "has to ask for new credentials: all earlier ones are dead",
    "retire": "is retired, for good",
    "quarantine": "is quarantined; other instances work on",
    "release": "is released; what was issued before stays dead",
}
_ALREADY: Final = {
    "suspend": "is suspended already",
    "resume": "is active already",
    "retire": "is retired already",
    "quarantine": "is quarantined already",
}
_OTHERWISE: Final = {
    "already": "was so already",
    "stale": "was not changed: something newer says otherwise",
    "held": "was not changed: somebody else holds the stop",
}


def suspend_agent(name: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Stop an agent until it is resumed."""
    remedy(run_dir, reason, "agents/suspend", {"name": name}, output)


def resume_agent(name: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Let a suspended agent ask for credentials again; its old ones stay dead."""
    remedy(run_dir, reason, "agents/resume", {"name": name}, output)


def revoke_agent(name: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """End everything that was issued to an agent so far, without stopping it."""
    remedy(run_dir, reason, "agents/revoke", {"name": name}, output)


def retire_agent(
    name: str,
    *,
    yes: Annotated[bool, Parameter(name="--yes", help="do not ask")] = False,
    reason: Why = "",
    run_dir: RunDir = None,
    output: Output = "text",
) -> None:
    """End an agent for good; its name is never given again."""
    from aims.cli.errors import CliError

    if not yes and (not sys.stdin.isatty() or input(f"Retire {name} for good? Type its name: ").strip() != name):
        raise CliError("argument", "retirement is for good: type the name, or say --yes")
    remedy(run_dir, reason, "agents/retire", {"name": name}, output)


def quarantine_instance(
    instance: str,
    *,
    agent: Annotated[str, Parameter(name="--agent", help="whose it is, if it never got a credential")] = "",
    reason: Why = "",
    run_dir: RunDir = None,
    output: Output = "text",
) -> None:
    """Stop one running copy of an agent: NODE and 26 characters, as the audit names it."""
    remedy(run_dir, reason, "agents/quarantine", {"instance": instance, "name": agent}, output)


def release_instance(instance: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Let a quarantined copy ask for credentials again."""
    remedy(run_dir, reason, "agents/release", {"instance": instance}, output)


def redirects(
    name: str,
    *uris: str,
    none: Annotated[bool, Parameter(name="--none", negative="", help="take all of them away")] = False,
    reason: Why = "",
    run_dir: RunDir = None,
    output: Output = "text",
) -> None:
    """Say where the answers of people may be sent whom this agent asks: these redirect URIs, in place of all others."""
    from aims.cli.errors import CliError

    if bool(uris) == none:
        raise CliError("argument", "name the redirect URIs, or say --none")
    answer = call(run_dir, reason, "POST", "clients/redirects", {"agent": name, "redirect_uris": list(uris)})
    said = ["people's answers go to", *answer["redirect_uris"]] if uris else ["no redirect URI: it can ask nobody"]
    show(answer, output, f"{answer['agent']}: {' '.join(said)}")


def register_on(agent: App) -> None:
    """Add the commands of an agent's life to ``aims agent``."""
    for name, command in (
        ("suspend", suspend_agent),
        ("resume", resume_agent),
        ("revoke", revoke_agent),
        ("retire", retire_agent),
        ("quarantine", quarantine_instance),
        ("release", release_instance),
        ("redirects", redirects),
    ):
        agent.command(command, name=name)


def remedy(run_dir: Path | None, reason: str, path: str, body: dict[str, str], output: Output) -> None:
    """Stop or resume somebody, and say what became of it."""
    for last in (*[False] * (_TRIES - 1), True):
        try:
            answer = call(run_dir, reason, "POST", path, body)
        except RefusedError as error:
            # Somebody did something to the same subject in the same moment; a stop is not given up for that.
            if last or f"{error.layer}.{error.reason}" != _CHANGED:
                raise
            continue
        done = answer["applied"] == "done"
        said = _DONE[answer["remedy"]] if done else _otherwise(answer["remedy"], answer["applied"])
        show(answer, output, f"{answer['id']} {said}")
        return


def _otherwise(remedy: str, applied: str) -> str:
    return _ALREADY.get(remedy, _OTHERWISE[applied]) if applied == "already" else _OTHERWISE[applied]
