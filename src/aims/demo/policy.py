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
