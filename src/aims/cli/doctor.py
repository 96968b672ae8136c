"""``aims doctor``: look at the set-up and name, for each finding, what mends it."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from cyclopts import Parameter

from aims.cli.output import REFUSED, Output, show
from aims.errors import AimsError
from aims.server.admin_client import AdminClient
from aims.server.settings import MOST_SOCKET_OCTETS, default_run_dir, default_state_dir

PIDFD_KERNEL: Final = (6, 5)
LEEWAY_SECONDS: Final = 5.0
PROBE_SECONDS: Final = 5.0
SOCKETS: Final = ("admin.sock", "workload.sock", "launch.sock", "agent.sock")


@dataclass(slots=True)
class Place:
    """The set-up that is looked at, and what the server said of itself when it was asked."""

    state_dir: Path
    run_dir: Path
    status: dict[str, Any] | None = field(default=None)


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
    """Run every check in order; what the server says of itself is asked once."""
    for check in CHECKS:
        yield check(place)


def _sockets(place: Place) -> Finding:
    name = "server and its socket"
    longest = max((place.run_dir / one for one in SOCKETS), key=lambda path: len(bytes(path)))
    if len(bytes(longest)) > MOST_SOCKET_OCTETS:
        size = len(bytes(longest))
        return Finding(name, False, f"{longest} has {size} bytes", "choose a shorter folder with --run-dir (100 bytes)")
    path = place.run_dir / "admin.sock"
    if not path.exists():
        return Finding(name, False, f"{path} is not there", "start the server with `aims up`, or name its --run-dir")
    try:
        with AdminClient(path, "aims doctor") as client:
            place.status = client.call("GET", "/admin/v1/status")
    except AimsError as error:
        return Finding(name, False, f"{path}: {error.code}: {error.sentence}", error.hint)
    return Finding(name, True, f"{path} answers, trust domain {place.status['trust_domain']}")


def _clock(place: Place) -> Finding:
    name = "clock against the server"
    if place.status is None:
        return Finding(name, False, "the server does not answer", "mend the first finding")
    apart = abs(time.time() - float(place.status["time"]))
    if apart > LEEWAY_SECONDS:
        return Finding(
            name,
            False,
            f"{apart:.0f} s apart",
            "set both clocks by NTP; tokens and certificates bear 5 s of difference",
        )
    return Finding(name, True, f"{apart:.1f} s apart")


def _kernel(_: Place) -> Finding:
    name = "kernel"
    release = platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None or (int(found[1]), int(found[2])) < PIDFD_KERNEL:
        return Finding(
            name,
            False,
            f"Linux {release}",
            "use Linux 6.5 or newer; before it `aims run` cannot recognise what it started",
        )
    return Finding(name, True, f"Linux {release} names its peers by pidfd")


def _database(place: Place) -> Finding:
    name = "database"
    if place.status is None:
        return Finding(name, False, "the server does not answer", "mend the first finding")
    kind = place.status["database"]
    if not place.status["writable"]:
        return Finding(name, False, f"{kind} cannot be written", "free space or mend the disk; it goes on by itself")
    return Finding(name, True, f"{kind} is writable, and answers wait until it is durable")


def _keys(place: Place) -> Finding:
    name = "key files"
    folder = place.state_dir / "server" / "keys"
    if not folder.is_dir():
        return Finding(
            name, False, f"{folder} is not there", "start the server with `aims up`, or name its --state-dir"
        )
    for path, allowed in ((folder, 0o700), *((one, 0o600) for one in sorted(folder.iterdir()))):
        status = path.lstat()
        mode = stat.S_IMODE(status.st_mode)
        if mode & ~allowed:
            return Finding(name, False, f"{path} has mode {mode:04o}", f"chmod {allowed:04o} {path}")
        if status.st_uid != folder.lstat().st_uid:
            return Finding(
                name, False, f"{path} belongs to uid {status.st_uid}", f"chown {folder.lstat().st_uid} {path}"
            )
    return Finding(name, True, f"{folder} is private")


def _node(place: Place) -> Finding:
    name = "node"
    path = place.run_dir / "workload.sock"
    if not path.exists():
        return Finding(name, False, f"{path} is not there", "start the node with `aims up` or `aims node run`")
    code = asyncio.run(_workload_api(path))
    if code == "sdk.denied":  # it knows its entries, and this command is none of them
        return Finding(name, True, f"{path} answers, joined, and its stream is alive")
    if code == "":
        return Finding(name, True, f"{path} answers, and this command is itself a workload")
    return Finding(
        name, False, f"{path}: {code}", "look at the node's log: it has not joined, or its stream to the server is cut"
    )


async def _workload_api(path: Path) -> str:
    from aims.sdk.errors import SdkError
    from aims.sdk.workload_client import WorkloadClient

    async with WorkloadClient(f"unix://{path}") as client:
        try:
            await client.fetch_x509(PROBE_SECONDS)
        except SdkError as error:
            return error.code
    return ""


CHECKS: Final[tuple[Callable[[Place], Finding], ...]] = (_sockets, _clock, _kernel, _database, _keys, _node)
