"""``aims person``: people who may consent to what agents do in their name, and the end of it."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from aims.cli.administrator import RunDir, Why, call
from aims.cli.agent_life import remedy
from aims.cli.output import Output, show, table

person = App(name="person", help="People: who may consent to what agents do, and the end of it.")


@person.command(name="create")
def create(name: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Make a person known by a name; records and tokens carry an opaque identifier instead."""
    answer = call(run_dir, reason, "POST", "people", {"name": name})
    show(answer, output, f"{answer['name']} is {answer['id']}")


@person.command(name="list")
def list_people(*, run_dir: RunDir = None, output: Output = "text") -> None:
    """List the people."""
    rows = call(run_dir, "", "GET", "people")
    show(rows, output, table(rows, "name", "id"))


@person.command(name="link")
def link(name: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Make a login link for a person: good once, in the browser that opens it first."""
    answer = call(run_dir, reason, "POST", "people/link", {"name": name})
    show(answer, output, answer["url"])


@person.command(name="stop")
def stop_person(who: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Stop everything that is done in this person's name."""
    remedy(run_dir, reason, "people/stop", {"person": who}, output)


@person.command(name="resume")
def resume_person(who: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Let agents act for this person again, by new consent."""
    remedy(run_dir, reason, "people/resume", {"person": who}, output)


@person.command(name="map")
def map_person(
    issuer: str,
    sub: str,
    *,
    person: Annotated[str, Parameter(name="--person", help="who is meant [default: somebody new]")] = "",
    at: Annotated[str, Parameter(name="--iss", help="issuer of the account [default: the transmitter]")] = "",
    reason: Why = "",
    run_dir: RunDir = None,
    output: Output = "text",
) -> None:
    """Say who is meant when a transmitter speaks of the account SUB."""
    subject = {"format": "iss_sub", "iss": at or issuer, "sub": sub}
    body = {"issuer": issuer, "subject": subject, "person": person}
    answer = call(run_dir, reason, "POST", "people/map", body)
    show(answer, output, f"{answer['person']} is meant")
