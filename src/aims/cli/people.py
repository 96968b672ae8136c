"""``aims person create|list|link``: people who may consent to what agents do in their name."""

from __future__ import annotations

from aims.cli.agent_life import person
from aims.cli.output import Output, show
from aims.cli.registry import RunDir, Why, call, table

__all__ = ["person"]


@person.command(name="create")
def create(name: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Make a person known by a name; records and tokens carry an opaque identifier instead."""
    answer = call(run_dir, reason, "POST", "/admin/v1/people", {"name": name})
    show(answer, output, f"{answer['name']} is {answer['id']}")


@person.command(name="list")
def list_people(*, run_dir: RunDir = None, output: Output = "text") -> None:
    """List the people."""
    rows = call(run_dir, "", "GET", "/admin/v1/people")
    show(rows, output, table(rows, "name", "id"))


@person.command(name="link")
def link(name: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Make a login link for a person: good once, in the browser that opens it first."""
    answer = call(run_dir, reason, "POST", "/admin/v1/people/link", {"name": name})
    show(answer, output, answer["url"])
