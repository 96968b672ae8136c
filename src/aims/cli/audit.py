"""``aims audit``: read the log, and verify it with the program that shares no code with what wrote it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import App, Parameter

from aims.cli.errors import CliError
from aims.cli.output import Output, say
from aims.server.settings import VKEY_FILE, default_state_dir

app = App(name="audit", help="Read and verify the tamper-evident log.")

StateDir = Annotated[Path | None, Parameter(help="state folder of the server [default: $XDG_STATE_HOME/aims]")]


@app.command
def verify(
    log: Annotated[Path | None, Parameter(help="log folder [default: that of --state-dir]")] = None,
    *,
    vkey: Annotated[str, Parameter(help="verification key [default: the one beside the log]")] = "",
    remembered: Annotated[Path | None, Parameter(name="--from", help="a checkpoint remembered elsewhere")] = None,
    state_dir: StateDir = None,
    output: Output = "text",
) -> int:
    """Check that the files are what the signed checkpoint says (0 good, 1 changed, 2 incomplete, 3 cannot be said)."""
    from aims.audit import verify as program

    folder, key = _located(log, vkey, state_dir)
    arguments = [str(folder), "--vkey", key, "--output", output]
    return program.main([*arguments, *(("--from", str(remembered)) if remembered else ())])


@app.command
def tail(
    *,
    count: Annotated[int, Parameter(name="--count", help="how many of the newest records, at most")] = 20,
    log: Annotated[Path | None, Parameter(help="log folder")] = None,
    vkey: Annotated[str, Parameter(help="verification key")] = "",
    state_dir: StateDir = None,
    output: Output = "text",
) -> None:
    """Print the newest published records, oldest first; with --output json each as it was hashed."""
    from aims.audit.checkpoint import MAX_OCTETS, Checkpoint, VerifierKey
    from aims.audit.tiles import CHECKPOINT, LogFolder, TileReader

    if count < 1:
        raise CliError("file", "--count must be at least 1")
    path, key = _located(log, vkey, state_dir)
    folder = LogFolder(path)
    note = folder.read(CHECKPOINT, MAX_OCTETS)
    if note is None:
        raise CliError("file", f"{path}: no log yet: start `aims up`")
    size = Checkpoint.verified(note, VerifierKey.parse(key)).size
    for entry in TileReader(folder, size).entries(max(0, size - count)):
        say(entry.decode() if output == "json" else _line(msgspec.json.decode(entry)))


def _line(record: dict[str, object]) -> str:
    decision = record.get("decision")
    why = decision.get("reason", "") if isinstance(decision, dict) else ""
    agent = record.get("agent")
    who = agent.get("id", "") if isinstance(agent, dict) else ""
    parts = (record["seq"], record["type"], record["outcome"], who, record.get("action"), record.get("resource"), why)
    return "  ".join(str(part) for part in parts if part not in {None, ""})


def _located(log: Path | None, vkey: str, state_dir: Path | None) -> tuple[Path, str]:
    server = (state_dir or default_state_dir(os.environ)) / "server"
    if vkey:
        return log or server / "log", vkey
    path = (log.parent if log else server) / VKEY_FILE
    try:
        return log or server / "log", path.read_text("ascii").strip()
    except FileNotFoundError:
        raise CliError("file", f"{path}: no log yet: start `aims up`; or give --vkey") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CliError("file", f"{path}: {error}; or give --vkey") from error
