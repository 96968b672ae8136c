"""``aims policy``: ask the policy in force, show it, put another in force."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from aims.cli.administrator import RunDir, Why, call
from aims.cli.errors import CliError
from aims.cli.output import REFUSED, Output, show

app = App(name="policy", help="Ask the policy what it decides and why; change it.")

Kind = Literal["Agent", "Node", "Person", "Operator", "Resource"]


@app.command
def check(
    principal: Annotated[str, Parameter(help="TYPE:ID, for example Agent:spiffe://local.test/agents/a")],
    action: Literal["issue", "token", "exchange", "transact", "call", "stop", "administer"],
    resource: Annotated[str, Parameter(help="TYPE:ID")],
    *,
    principal_fact: Annotated[list[str] | None, Parameter(help="NAME=VALUE, may be repeated")] = None,
    resource_fact: Annotated[list[str] | None, Parameter(help="NAME=VALUE, may be repeated")] = None,
    fact: Annotated[list[str] | None, Parameter(help="NAME=VALUE of the context, may be repeated")] = None,
    run_dir: RunDir = None,
    output: Output = "text",
) -> int:
    """Decide a question; the question and its answer are recorded. Exit status 1 when the answer is deny."""
    question = {
        "principal": _party(principal, principal_fact),
        "action": action,
        "resource": _party(resource, resource_fact),
        "context": _facts(fact),
    }
    answer = call(run_dir, "", "POST", "policy/check", question)
    show(answer, output, f"{answer['effect']}  {answer['code']}\n{answer['explanation']}\npolicy {answer['policy']}")
    return 0 if answer["effect"] == "permit" else REFUSED


@app.command(name="show")
def show_policy(
    *,
    folder: Annotated[
        Path | None, Parameter(name="--folder", help="write the bundle's files into this new folder")
    ] = None,
    run_dir: RunDir = None,
    output: Output = "text",
) -> None:
    """Show the policy in force; with --folder, as files that `aims policy apply` takes back."""
    answer = call(run_dir, "", "GET", "policy")
    if folder is not None:
        folder.mkdir(mode=0o700, parents=True)
        for name, text in answer["files"].items():
            (folder / name).write_text(text, "utf-8")
        show(answer, output, f"policy {answer['version']} is in {folder}")
        return
    show(answer, output, "\n".join(f"# {name}\n{text}" for name, text in answer["files"].items()))


@app.command(name="apply")
def apply_policy(
    folder: Path,
    *,
    reason: Why = "",
    run_dir: RunDir = None,
    output: Output = "text",
) -> None:
    """Put the policy of a folder in force at once, as one recorded change."""
    from aims.policy.bundle import Bundle

    bundle = Bundle.from_folder(folder)
    files = {name: octets.decode("utf-8") for name, octets in bundle.files.items()}
    before = call(run_dir, reason, "GET", "status")["policy"]
    answer = call(run_dir, reason, "POST", "policy", {"files": files, "before": before})
    show(answer, output, f"policy {answer['version']} is in force")


def _party(text: str, facts: list[str] | None) -> dict[str, object]:
    kind, colon, name = text.partition(":")
    if not colon:
        raise CliError("argument", f"{text!r} is not TYPE:ID")
    return {"type": kind, "id": name, "attributes": _facts(facts)}


def _facts(texts: list[str] | None) -> dict[str, object]:
    facts: dict[str, object] = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not sign or name in facts:
            raise CliError("argument", f"{text!r} is not NAME=VALUE, or {name!r} stands twice")
        facts[name] = _value(value)
    return facts


def _value(text: str) -> object:
    """true, false and whole numbers are what they look like, [a,b] is a set, the rest is text."""
    if text in {"true", "false"}:
        return text == "true"
    if text.removeprefix("-").isdecimal():
        return int(text)
    if text.startswith("[") and text.endswith("]"):
        return [part for part in text[1:-1].split(",") if part]
    return text
