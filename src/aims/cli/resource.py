"""``aims resource``: the protected resources of the policy in force, one row each."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from cyclopts import App, Parameter

from aims.cli.errors import CliError
from aims.cli.output import Output, show
from aims.cli.registry import RunDir, Why, call, table

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
    from aims.policy.bundle import Bundle

    bundle = call(run_dir, reason, "GET", "/admin/v1/policy")
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
    files = dict(bundle["files"])
    files[_TABLES] += "\n".join(lines)
    Bundle.from_files({each: text.encode("utf-8") for each, text in files.items()})
    answer = call(run_dir, reason, "POST", "/admin/v1/policy", {"files": files, "before": bundle["version"]})
    show(answer | row, output, f"{url} is {name}: {profile}, served by the service {service}")


@app.command(name="list")
def list_resources(*, run_dir: RunDir = None, output: Output = "text") -> None:
    """List the resources of the policy in force."""
    import tomllib

    bundle = call(run_dir, "", "GET", "/admin/v1/policy")
    rows = tomllib.loads(bundle["files"][_TABLES]).get("resources", [])
    show(rows, output, table(rows, "name", "url", "peer", "profile", "scopes"))
