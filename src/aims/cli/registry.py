"""``aims owner|agent|entry|node``: what is registered, by whom, and where it may run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from aims.cli.administrator import RunDir, Why, call
from aims.cli.agent_life import register_on as register_life
from aims.cli.output import Output, show, table, warn

Command = Annotated[str, Parameter(allow_leading_hyphen=True, help="the command, after `--`")]

owner = App(name="owner", help="The people and teams that answer for agents.")
agent = App(name="agent", help="The agents of the trust domain.")
entry = App(name="entry", help="What an agent must show, and on which nodes, to be given its identity.")
node = App(name="node", help="The hosts on which agents run.")

node.command("aims.cli.node_run:run_node", name="run", help="Run this host's node in the foreground.")


register_life(agent)


@owner.command(name="register")
def register_owner(
    name: str,
    *,
    kind: Literal["person", "team"] = "team",
    contact: Annotated[str, Parameter(help="how the owner is reached; never recorded")] = "",
    reason: Why = "",
    run_dir: RunDir = None,
    output: Output = "text",
) -> None:
    """Register who answers for agents."""
    body = {"name": name, "kind": kind, "contact": contact}
    answer = call(run_dir, reason, "POST", "owners", body)
    show(answer, output, f"{answer['kind']} {answer['name']} is registered")


@owner.command(name="list")
def list_owners(*, run_dir: RunDir = None, output: Output = "text") -> None:
    """List the owners."""
    rows = call(run_dir, "", "GET", "owners")
    show(rows, output, table(rows, "name", "kind"))


@agent.command(name="register")
def register_agent(
    name: str,
    *command: Command,
    owner: Annotated[str, Parameter(name="--owner", help="who answers for it")],
    node: Annotated[list[str] | None, Parameter(name="--node", help="where it may run, may be repeated")] = None,
    root: Annotated[
        list[Path] | None, Parameter(name="--root", help="code beside the program and its environment")
    ] = None,
    launch_uid: Annotated[
        list[int] | None, Parameter(name="--launch-uid", help="who may start it [default: you]")
    ] = None,
    more_arguments: Annotated[bool, Parameter(name="--more-arguments", help="further arguments may follow")] = False,
    unmeasured: Annotated[
        bool, Parameter(name="--unmeasured", help="approve any program: for development, and capped")
    ] = False,
    ttl: Annotated[
        int, Parameter(name="--ttl", help="seconds that its X509-SVID and WIT live [default: the policy's]")
    ] = 0,
    service: Annotated[bool, Parameter(name="--service", help="a service, not an agent")] = False,
    reason: Why = "",
    run_dir: RunDir = None,
    output: Output = "text",
) -> None:
    """Register an agent and approve its command: `aims agent register NAME --owner TEAM -- CMD`."""
    body = {
        "name": name,
        "kind": "service" if service else "agent",
        "owner": owner,
        "profile": _profile(command, root, more_arguments=more_arguments, unmeasured=unmeasured),
        "launch_uids": launch_uid or [os.getuid()],
        "nodes": node or ["local"],
        "x509_ttl": ttl,
    }
    answer = call(run_dir, reason, "POST", "agents", body)
    show(answer, output, f"{answer['spiffe_id']} is registered\napproved: {answer['launch']}")


@agent.command(name="approve")
def approve_agent(
    name: str,
    *command: Command,
    root: Annotated[
        list[Path] | None, Parameter(name="--root", help="code beside the program and its environment")
    ] = None,
    more_arguments: Annotated[bool, Parameter(name="--more-arguments", help="further arguments may follow")] = False,
    reason: Why = "",
    run_dir: RunDir = None,
    output: Output = "text",
) -> None:
    """Approve another command for an agent, in place of the one that was approved."""
    body = {"name": name, "profile": _profile(command, root, more_arguments=more_arguments, unmeasured=False)}
    answer = call(run_dir, reason, "POST", "agents/approve", body)
    show(
        answer,
        output,
        f"{answer['spiffe_id']}\napproved: {answer['launch']}\n"
        "what runs under the old approval loses its identity: start it again",
    )


@agent.command(name="list")
def list_agents(*, run_dir: RunDir = None, output: Output = "text") -> None:
    """List agents and services, retired ones too."""
    rows = call(run_dir, "", "GET", "agents")
    show(rows, output, table(rows, "name", "kind", "state", "owner", "spiffe_id"))


@entry.command(name="list")
def list_entries(*, run_dir: RunDir = None, output: Output = "text") -> None:
    """List the entries."""
    rows = call(run_dir, "", "GET", "entries")
    show(rows, output, table(rows, "id", "spiffe_id", "nodes", "selectors"))


@entry.command(name="create")
def create_entry(
    name: str,
    *,
    selector: Annotated[list[str], Parameter(name="--selector", help="TYPE:VALUE, may be repeated")],
    node: Annotated[list[str] | None, Parameter(name="--node", help="node id, may be repeated")] = None,
    node_selector: Annotated[
        list[str] | None, Parameter(name="--node-selector", help="node:VALUE, may be repeated")
    ] = None,
    ttl: Annotated[int, Parameter(name="--ttl", help="seconds of X509-SVID and WIT")] = 0,
    jwt_ttl: Annotated[int, Parameter(name="--jwt-ttl", help="seconds of JWT-SVIDs")] = 0,
    hint: Annotated[str, Parameter(name="--hint", help="operator's hint in the Workload API")] = "",
    reason: Why = "",
    run_dir: RunDir = None,
    output: Output = "text",
) -> None:
    """Bind an agent or service to selectors and nodes."""
    body = {
        "name": name,
        "selectors": selector,
        "nodes": node or [],
        "node_selectors": node_selector or [],
        "x509_ttl": ttl,
        "jwt_ttl": jwt_ttl,
        "hint": hint,
    }
    answer = call(run_dir, reason, "POST", "entries", body)
    show(answer, output, f"entry {answer['id']} for {answer['spiffe_id']}")


@entry.command(name="delete")
def delete_entry(entry_id: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Delete an entry: nothing more is issued by it."""
    answer = call(run_dir, reason, "POST", "entries/delete", {"id": entry_id})
    show(answer, output, f"entry {answer['id']} of {answer['spiffe_id']} is deleted")


@node.command(name="list")
def list_nodes(*, run_dir: RunDir = None, output: Output = "text") -> None:
    """List the nodes."""
    rows = call(run_dir, "", "GET", "nodes")
    show(rows, output, table(rows, "id", "state", "spiffe_id", "last_seen"))


@node.command(name="token")
def node_token(
    name: str,
    *,
    file: Annotated[
        Path | None, Parameter(name="--file", help="write the token to this file (mode 0600), not to the terminal")
    ] = None,
    lifetime: Annotated[int, Parameter(name="--lifetime", help="seconds [default: the policy's]")] = 0,
    selector: Annotated[
        list[str] | None, Parameter(name="--selector", help="node:VALUE that the token binds to the node")
    ] = None,
    reason: Why = "",
    run_dir: RunDir = None,
) -> None:
    """Make a join token: good once, for this node id. Give it to `aims node run` in a file or on standard input."""
    body = {"node": name, "lifetime": lifetime, "selectors": selector or []}
    answer = call(run_dir, reason, "POST", "nodes/token", body)
    if file is None:
        show(answer["token"], "text", answer["token"])
        return
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(answer["token"] + "\n")


@node.command(name="ban")
def ban_node(name: str, *, reason: Why = "", run_dir: RunDir = None, output: Output = "text") -> None:
    """Ban a node for good: its identities end, and nothing more is issued on it."""
    answer = call(run_dir, reason, "POST", "nodes/ban", {"node": name})
    show(answer, output, f"{answer['spiffe_id']} is banned")


def _profile(
    command: tuple[str, ...], roots: list[Path] | None, *, more_arguments: bool, unmeasured: bool
) -> str | None:
    from aims.cli.errors import CliError

    if bool(command) == unmeasured:
        raise CliError("argument", "name the command after `--`, or say --unmeasured")
    if unmeasured:
        return None
    from aims.cli.run_client import MAX_NAMED, beside, measure_for_registration

    profile = measure_for_registration(command, Path.cwd(), roots or (), more_arguments=more_arguments)
    if names := beside(profile, Path.cwd()):
        warn(
            f"not measured, though the program can import it: {', '.join(names[:MAX_NAMED])}; "
            "a change there goes unnoticed. If it is the program's code, name its folder: --root ."
        )
    return profile.canonical().decode("utf-8")
