"""The policy that the story plays under: the shipped bundle, and the rows of its own tools."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from aims.policy.bundle import TABLES, Bundle


def write_policy(folder: Path, ports: Mapping[str, int]) -> None:
    """Write the bundle into a new folder; ``ports`` fills the addresses of the story's own rows."""
    folder.mkdir(mode=0o700)
    for name, octets in Bundle.shipped().files.items():
        (folder / name).write_bytes(octets)
    own = files("aims.demo").joinpath("tables.toml").read_text("utf-8")
    for name, port in ports.items():
        own = own.replace(f"{{{name}}}", str(port))
    with (folder / TABLES).open("a", encoding="utf-8") as file:
        file.write(own)


def change_row(folder: Path, table: str, name: str, **columns: bool | int) -> None:
    """Change columns of one row of ``tables.toml``, and nothing else of the file."""
    path = folder / TABLES
    head, row, rest = _row(path.read_text("utf-8"), table, name)
    lines = [line for line in row if line.partition("=")[0].strip() not in columns]
    lines += [f"{column} = {str(value).lower()}" for column, value in columns.items()]
    path.write_text("\n".join([*head, *lines, *rest]), "utf-8")


def _row(text: str, table: str, name: str) -> tuple[list[str], list[str], list[str]]:
    """Split the lines into those before, of and after the row."""
    lines = text.split("\n")
    begin = next(
        at for at, line in enumerate(lines) if line == f"[[{table}]]" and f'name = "{name}"' in lines[at + 1 : at + 10]
    )
    end = next((at for at in range(begin + 1, len(lines)) if not lines[at].strip()), len(lines))
    return lines[:begin], lines[begin:end], lines[end:]
