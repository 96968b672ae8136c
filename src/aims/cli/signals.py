"""``aims signals``: whom we hear, and who hears us."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from aims.cli.administrator import RunDir, Why, call
from aims.cli.errors import CliError
from aims.cli.output import Output, show

app = App(name="signals", help="Security events of other parties, and ours to them.")


@app.command(name="add-transmitter")
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
    answer = call(run_dir, reason, "POST", "transmitters", body)
    show(answer, output, f"{issuer} is heard under {' '.join(answer['kids'])}")


@app.command(name="remove-transmitter")
def remove_transmitter(issuer: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Hear a transmitter no more."""
    answer = call(run_dir, reason, "POST", "transmitters/remove", {"issuer": issuer})
    show(answer, output, f"{issuer} is not heard any more")


@app.command(name="list-transmitters")
def list_transmitters(*, run_dir: RunDir = None, output: Output = "text") -> None:
    """List the transmitters with what the policy lets them cause."""
    rows = call(run_dir, "", "GET", "transmitters")
    lines = [f"{row['issuer']}  up to {row['strongest']}  keys {' '.join(row['kids'])}" for row in rows]
    show(rows, output, "\n".join(lines) or "no transmitters")


@app.command(name="set-receiver")
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
    answer = call(run_dir, reason, "POST", "receiver", body)
    show(answer, output, f"events go to {answer['url']}")


@app.command(name="receiver")
def show_receiver(*, run_dir: RunDir = None, output: Output = "text") -> None:
    """Show to whom our events are pushed, and which."""
    receiver = call(run_dir, "", "GET", "receiver")
    if receiver is None:
        show(None, output, "nobody gets our events; say who with `aims signals set-receiver`")
        return
    lines = [f"{receiver['url']}  audience {receiver['audience']}", *(f"  {event}" for event in receiver["events"])]
    more = {
        f"it is a transmitter to us: {receiver['issuer']}": receiver["issuer"],
        "its address may be private or loopback": receiver["private"],
        "it shows a certificate of authorities of its own": receiver["own_ca"],
        "it understands complex subjects": receiver["complex"],
    }
    show(receiver, output, "\n".join([*lines, *(f"  {said}" for said, so in more.items() if so)]))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError("file", f"{path}: {error}") from error
