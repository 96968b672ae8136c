"""How commands speak: text for people, one JSON document for programs, errors with their code and what to do."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from aims.errors import AimsError

Output = Annotated[Literal["text", "json"], Parameter(name="--output", help="text, or one JSON document")]

REFUSED = 1
USAGE = 2


def say(text: str) -> None:
    """Print a line on standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show(value: object, output: Output, text: str) -> None:
    """Print ``value`` as JSON or ``text``, as the caller asked."""
    say(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() if output == "json" else text)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    sys.stderr.write(f"aims: warning: {text}\n")


def complain(error: AimsError) -> int:
    """Print an error of ours on standard error and return the exit status."""
    lines = [f"aims: {error.code}: {error.sentence}"]
    if error.detail:
        lines.append(f"      {error.detail}")
    if error.hint:
        lines.append(f" fix: {error.hint}")
    sys.stderr.write("\n".join(lines) + "\n")
    return REFUSED


def table(rows: list[dict[str, Any]], *columns: str) -> str:
    """Columns wide enough for their longest cell; lists as words."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    head = [column.replace("_", " ") for column in columns]
    widths = [max(len(line[at]) for line in [head, *cells]) for at in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *cells]]
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value if value is not None else "-")
