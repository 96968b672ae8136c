"""``aims doctor``: look at the set-up and name, for each finding, what mends it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import Parameter

from aims.cli.output import REFUSED, Output, show
from aims.errors import AimsError
from aims.server.admin_client import AdminClient
from aims.server.settings import MOST_SOCKET_OCTETS, default_run_dir, default_state_dir


@dataclass(frozen=True, slots=True)
class Place:
    """The set-up that is looked at."""

    state_dir: Path
    run_dir: Path


class Finding(msgspec.Struct, frozen=True):
    """One check: ``ok`` or not, what was found, and the fix."""

    check: str
    ok: bool
    found: str
    fix: str = ""


def doctor(
    *,
    state_dir: Annotated[Path | None, Parameter(help="state folder [default: $XDG_STATE_HOME/aims]")] = None,
    run_dir: Annotated[Path | None, Parameter(help="folder of the sockets [default: $XDG_RUNTIME_DIR/aims]")] = None,
    output: Output = "text",
) -> int:
    """Check the set-up and print the fix for each finding; exit status 1 when something is wrong."""
    state = (state_dir or default_state_dir(os.environ)).absolute()
    place = Place(state, (run_dir or default_run_dir(os.environ, state)).absolute())
    findings = list(examine(place))
    lines = [
        f"{'ok   ' if one.ok else 'WRONG'}  {one.check}: {one.found}" + (f"\n       fix: {one.fix}" if one.fix else "")
        for one in findings
    ]
    show(findings, output, "\n".join(lines))
    return 0 if all(one.ok for one in findings) else REFUSED


def examine(place: Place) -> Iterator[Finding]:
    """Run every check, each for itself."""
    for check in CHECKS:
        yield check(place)


def _sockets(place: Place) -> Finding:
    name = "socket of the server"
    path = place.run_dir / "admin.sock"
    if len(bytes(path)) > MOST_SOCKET_OCTETS:
        return Finding(
            name, False, f"{path} has {len(bytes(path))} bytes", "choose a shorter folder with --run-dir (100 bytes)"
        )
    if not path.exists():
        return Finding(name, False, f"{path} is not there", "start the server with `aims up`")
    try:
        with AdminClient(path) as client:
            status = client.call("GET", "/admin/v1/status")
    except AimsError as error:
        return Finding(name, False, f"{path}: {error.code}: {error.sentence}", error.hint)
    if not status["writable"]:
        return Finding(
            name, False, "the database cannot be written", "free space or mend the disk; it goes on by itself"
        )
    return Finding(name, True, f"{path} answers, trust domain {status['trust_domain']}")


CHECKS: Final[tuple[Callable[[Place], Finding], ...]] = (_sockets,)
