"""``aims resource``: the protected resources of the policy in force, one row each."""

from __future__ import annotations

import json
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from aims.cli.administrator import RunDir, Why, call
from aims.cli.errors import CliError
from aims.cli.output import Output, show, table

app = App(name="resource", help="The tools and services that agents may call: URL, expected identity, call profile.")

Profile = Literal["wimse", "wimse-method-bound", "oauth-bound"]
_TABLES = "tables.toml"


@app.command
def add(
    name: str,
    *,
    url: Annotated[str, Parameter(name="--url", help="where callers reach it, for example https://localhost:9000/mcp")],
    service: Annotated[str, Parameter(name="--service", help="the registered service that stands there")],
    profile: Annotated[Profile, Parameter(name="--profile", help="what a call must carry")] = "wimse",
    scope: Annotated[list[str] | None, Parameter(name="--scope", help="scope of its tokens, may be repeated")] = None,
    reason: Why = "",
    run_dir: RunDir = None,
    output: Output = "text",
) -> None:
    """Add a resource to the policy in force: one row, checked as a whole, one recorded change."""
    if not url.startswith("https://"):
        raise CliError("argument", f"--url {url!r} must begin with https://")
    require_service(call(run_dir, "", "GET", "agents"), service)
    bundle = call(run_dir, "", "GET", "policy")
    if any(known["name"] == name for known in rows(bundle["files"][_TABLES])):
        raise CliError(
            "argument", f"there is a resource {name} already; take it away first: aims resource remove {name}"
        )
    row = {
        "name": name,
        "url": url,
        "peer": f"/services/{service}",
        "profile": profile,
        "audiences": [url],
        "scopes": scope or [],
    }
    # A basic string of TOML with only printable ASCII in it is written as JSON writes it.
    if not all(str(value).isascii() and str(value).isprintable() for value in row.values()):
        raise CliError("argument", "only printable ASCII characters")
    lines = ["", "[[resources]]", *(f"{key} = {json.dumps(value)}" for key, value in row.items()), ""]
    answer = _replace(run_dir, reason, bundle, bundle["files"][_TABLES] + "\n".join(lines))
    show(answer | row, output, f"{url} is {name}: {profile}, served by the service {service}")


@app.command
def remove(name: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Take a resource out of the policy in force: callers know it no more."""
    bundle = call(run_dir, "", "GET", "policy")
    answer = _replace(run_dir, reason, bundle, without(bundle["files"][_TABLES], name))
    show(answer, output, f"{name} is removed")


@app.command(name="list")
def list_resources(*, run_dir: RunDir = None, output: Output = "text") -> None:
    """List the resources of the policy in force."""
    bundle = call(run_dir, "", "GET", "policy")
    found = rows(bundle["files"][_TABLES])
    show(found, output, table(found, "name", "url", "peer", "profile", "scopes"))


def require_service(workloads: list[dict[str, Any]], name: str) -> None:
    """Refuse a service that nobody registered, or that was registered as an agent.

    Raises: CliError ``argument``.
    """
    kinds = {row["kind"] for row in workloads if row["name"] == name and row["state"] != "retired"}
    if "service" in kinds:
        return
    register = f"aims agent register {name} --service --owner TEAM -- CMD"
    if kinds:
        raise CliError("argument", f"{name} is registered as an agent; register a service: {register}")
    raise CliError("argument", f"no service {name} is registered: see `aims agent list`, or {register}")


def rows(tables: str) -> list[dict[str, Any]]:
    """Return the rows of the table of resources."""
    found: list[dict[str, Any]] = tomllib.loads(tables).get("resources", [])
    return found


def without(tables: str, name: str) -> str:
    """Return the text of the tables without one resource; every other line stays as people wrote it.

    Raises: CliError ``unknown``; ``argument`` where the row is written in a way that only an editor can take out.
    """
    before = tomllib.loads(tables)
    if all(row["name"] != name for row in rows(tables)):
        raise CliError("unknown", f"no resource {name}: see `aims resource list`")
    after = {**before, "resources": [row for row in before["resources"] if row["name"] != name]}
    lines = tables.splitlines(keepends=True)
    heads = [at for at, line in enumerate(lines) if line.startswith("[")] + [len(lines)]
    for start, end in pairwise(heads):
        if lines[start].partition("#")[0].strip() != "[[resources]]":
            continue
        last = end
        while not lines[last - 1].strip() or lines[last - 1].lstrip().startswith("#"):
            last -= 1  # what stands above the next row belongs to that
        text = "".join(lines[:start] + lines[last:])
        try:
            if {"resources": [], **tomllib.loads(text)} == after:
                return text
        except tomllib.TOMLDecodeError:
            continue
    raise CliError(
        "argument", f"the row {name} cannot be taken out by itself: edit {_TABLES} and load the policy again"
    )


def _replace(run_dir: Path | None, reason: str, bundle: dict[str, Any], tables: str) -> dict[str, Any]:
    from aims.policy.bundle import Bundle

    files = {**bundle["files"], _TABLES: tables}
    Bundle.from_files({each: text.encode("utf-8") for each, text in files.items()})
    body = {"files": files, "before": bundle["version"]}
    answer: dict[str, Any] = call(run_dir, reason, "POST", "policy", body)
    return answer
