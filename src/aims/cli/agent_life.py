"""``aims agent suspend|resume|revoke|retire|quarantine|release``, ``aims person ...`` and ``aims signals ...``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import App, Parameter

from aims.cli.output import Output, show
from aims.server.admin_client import AdminClient, RefusedError, socket_path

RunDir = Annotated[
    Path | None, Parameter(name="--run-dir", help="folder of the sockets [default: $XDG_RUNTIME_DIR/aims]")
]
Why = Annotated[str, Parameter(name="--reason", help="why, for the record")]

person = App(name="person", help="People: end what is done in their name.")
signals = App(name="signals", help="Security events of other parties, and ours to them.")

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
    _remedy(run_dir, reason, "agents/suspend", {"name": name}, output)


def resume_agent(name: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Let a suspended agent ask for credentials again; its old ones stay dead."""
    _remedy(run_dir, reason, "agents/resume", {"name": name}, output)


def revoke_agent(name: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """End everything that was issued to an agent so far, without stopping it."""
    _remedy(run_dir, reason, "agents/revoke", {"name": name}, output)


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
    _remedy(run_dir, reason, "agents/retire", {"name": name}, output)


def quarantine_instance(
    instance: str,
    *,
    agent: Annotated[str, Parameter(name="--agent", help="whose it is, if it never got a credential")] = "",
    reason: Why = "",
    run_dir: RunDir = None,
    output: Output = "text",
) -> None:
    """Stop one running copy of an agent: NODE and 26 characters, as the audit names it."""
    _remedy(run_dir, reason, "agents/quarantine", {"instance": instance, "name": agent}, output)


def release_instance(instance: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Let a quarantined copy ask for credentials again."""
    _remedy(run_dir, reason, "agents/release", {"instance": instance}, output)


def register_on(agent: App) -> None:
    """Add the commands of an agent's life to ``aims agent``."""
    for name, command in (
        ("suspend", suspend_agent),
        ("resume", resume_agent),
        ("revoke", revoke_agent),
        ("retire", retire_agent),
        ("quarantine", quarantine_instance),
        ("release", release_instance),
    ):
        agent.command(command, name=name)


@person.command(name="stop")
def stop_person(who: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Stop everything that is done in this person's name."""
    _remedy(run_dir, reason, "people/stop", {"person": who}, output)


@person.command(name="resume")
def resume_person(who: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Let agents act for this person again, by new consent."""
    _remedy(run_dir, reason, "people/resume", {"person": who}, output)


@person.command(name="map")
def map_person(
    issuer: str,
    sub: str,
    *,
    person: Annotated[str, Parameter(name="--person", help="who is meant [default: somebody new]")] = "",
    at: Annotated[str, Parameter(name="--iss", help="issuer of the account [default: the transmitter]")] = "",
    reason: Why = "",
    run_dir: RunDir = None,
    output: Output = "text",
) -> None:
    """Say who is meant when a transmitter speaks of the account SUB."""
    subject = {"format": "iss_sub", "iss": at or issuer, "sub": sub}
    body = {"issuer": issuer, "subject": subject, "person": person}
    answer = _call(run_dir, reason, "POST", "people/map", body)
    show(answer, output, f"{answer['person']} is meant")


@signals.command(name="add-transmitter")
def add_transmitter(
    issuer: str,
    jwks: Annotated[Path, Parameter(help="file with its JWK Set")],
    *,
    reason: Why = "",
    run_dir: RunDir = None,
    output: Output = "text",
) -> None:
    """Hear a transmitter under these keys, or replace its keys. What it may say stands in the policy's tables."""
    body = {"issuer": issuer, "jwks": _text(jwks)}
    answer = _call(run_dir, reason, "POST", "transmitters", body)
    show(answer, output, f"{issuer} is heard under {' '.join(answer['kids'])}")


@signals.command(name="remove-transmitter")
def remove_transmitter(issuer: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Hear a transmitter no more."""
    answer = _call(run_dir, reason, "POST", "transmitters/remove", {"issuer": issuer})
    show(answer, output, f"{issuer} is not heard any more")


@signals.command(name="list-transmitters")
def list_transmitters(*, run_dir: RunDir = None, output: Output = "text") -> None:
    """List the transmitters with what the policy lets them cause."""
    rows = _call(run_dir, "", "GET", "transmitters")
    lines = [f"{row['issuer']}  up to {row['strongest']}  keys {' '.join(row['kids'])}" for row in rows]
    show(rows, output, "\n".join(lines) or "no transmitters")


@signals.command(name="set-receiver")
def set_receiver(
    url: str,
    *,
    audience: Annotated[str, Parameter(name="--audience", help="what its events are addressed to")],
    event: Annotated[list[str] | None, Parameter(name="--event", help="URI, may be repeated")] = None,
    issuer: Annotated[str, Parameter(name="--issuer", help="its own issuer, if it is a transmitter to us")] = "",
    private: Annotated[bool, Parameter(name="--private", help="its address may be private or loopback")] = False,
    ca: Annotated[Path | None, Parameter(name="--ca", help="file with its authorities, PEM")] = None,
    understands_complex: Annotated[bool, Parameter(name="--complex", help="it understands complex subjects")] = False,
    reason: Why = "",
    run_dir: RunDir = None,
    output: Output = "text",
) -> None:
    """Push our events to this party from now on, and those that could not be delivered."""
    body = {
        "url": url,
        "audience": audience,
        "events": event or [],
        "issuer": issuer,
        "private": private,
        "ca": _text(ca) if ca else "",
        "complex": understands_complex,
    }
    answer = _call(run_dir, reason, "POST", "receiver", body)
    show(answer, output, f"events go to {answer['url']}")


def _text(path: Path) -> str:
    from aims.cli.errors import CliError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError("file", f"{path}: {error}") from error


def _remedy(run_dir: Path | None, reason: str, path: str, body: dict[str, str], output: Output) -> None:
    for last in (*[False] * (_TRIES - 1), True):
        try:
            answer = _call(run_dir, reason, "POST", path, body)
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


def _call(run_dir: Path | None, reason: str, method: str, path: str, body: object | None = None) -> Any:
    with AdminClient(socket_path(run_dir), reason) as client:
        return client.call(method, f"/admin/v1/{path}", body)
