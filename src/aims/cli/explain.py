"""``aims explain``: turn a refusal's code, a token or an identifier into sentences."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any, Final

import aims
from aims.cli.administrator import RunDir, call
from aims.cli.errors import CliError
from aims.cli.output import Output, show
from aims.errors import AimsError, Reason, catalogue

MOST_OCTETS: Final = 16 * 1024
_IDENTIFIER: Final = re.compile(r"(?:person|agent):\S+|[A-Za-z0-9._-]+:[a-z0-9]{26}|[0-9a-z]{26}")
_AGAIN: Final = {
    "agent": "see `aims agent list`; after `aims agent resume` it asks for new credentials",
    "person": "after `aims person resume` the person has to consent anew",
    "grant": "it has to be given anew",
    "instance": "after `aims agent release` it asks for new credentials",
    "node": "a banned node stays banned; run the agent on another",
}


def explain(what: str, *, run_dir: RunDir = None, output: Output = "text") -> None:
    """Explain a refusal's code (`authentication.wpt_aud`, `wpt_aud` or the line with it), a token or an identifier.

    Tokens are verified, and both are held against all stops, by the server.
    """
    if what.startswith("spiffe://"):
        _identifier(what, run_dir, output)
    elif what.count(".") == 2 and len(what) > 80:
        _token(what, run_dir, output)
    elif _IDENTIFIER.fullmatch(what):
        _other(what, run_dir, output)
    else:
        _code(_code_in(what), run_dir, output)


def _code_in(text: str) -> str:
    """Take the first code out of a pasted line; anything else stays as it is, in lower case."""
    known = reasons()
    words = re.findall(r"[a-z0-9_]+\.[a-z0-9_]+", text.lower())
    return next((word for word in words if word in known), text.strip().lower())


def reasons() -> dict[str, Reason]:
    """Every reason of every layer that is installed, by code."""
    for module in pkgutil.walk_packages(aims.__path__, "aims."):
        if module.name.rpartition(".")[2].endswith("errors"):
            try:
                importlib.import_module(module.name)
            except ImportError:  # a room whose extra is not installed refuses nothing here
                continue
    return dict(catalogue())


def _code(what: str, run_dir: Path | None, output: Output) -> None:
    known = reasons()
    found = {code: reason for code, reason in known.items() if what in {code, code.partition(".")[2]}}
    if not found:
        # The names of nodes look like codes; whoever has no server asks for a code.
        try:
            _other(what, run_dir, output)
        except AimsError:
            pass
        else:
            return
        near = difflib.get_close_matches(what, [*known, *(code.partition(".")[2] for code in known)], 3)
        raise CliError("unknown", f"{what!r}" + (f"; near: {', '.join(near)}" if near else ""))
    lines = []
    for code, reason in sorted(found.items()):
        lines.append(f"{code}\n  what  {reason.sentence}")
        if reason.hint:
            lines.append(f"  fix   {reason.hint}")
        if reason.standard:
            lines.append(f"  wire  {reason.standard}")
    value = [
        {"code": code, "sentence": reason.sentence, "hint": reason.hint, "standard": reason.standard}
        for code, reason in sorted(found.items())
    ]
    show(value, output, "\n".join(lines))


def _token(text: str, run_dir: Path | None, output: Output) -> None:
    if len(text) > MOST_OCTETS:
        raise CliError("argument", f"a token of more than {MOST_OCTETS} characters")
    from aims.server.errors import ServerError

    try:
        answer = call(run_dir, "", "POST", "explain", {"what": text})
    except ServerError as error:
        if error.reason != "not_running":
            raise
        _unverified(text, output)
        return
    show(answer, output, "\n".join(_said(answer)))


def _unverified(text: str, output: Output) -> None:
    from aims.jose.door import decode

    header, claims = decode(text, MOST_OCTETS)
    kind = str(header.get("typ", "JWT"))
    lines = [
        f"a token of type {kind}; not verified: no server answers here (start it with `aims up`, or name --run-dir)",
        "this is what it says, which anybody can have written:",
    ]
    lines += [
        f"  {name}  {claims[name]}" for name in ("iss", "sub", "client_id", "aud", "scope", "exp") if name in claims
    ]
    show({"typ": kind, "header": header, "claims": claims, "verified": False}, output, "\n".join(lines))


def _said(answer: dict[str, Any]) -> list[str]:
    if not answer["verified"]:
        return [
            f"{answer['kind']}: not verified\n  why   {answer['code']}: {answer['why']}",
            f"  fix   {answer['hint']}",
        ]
    lines = [f"{answer['kind']} of {answer['subject']}: issued here, its signature verifies"]
    told = (("client", "given to"), ("audience", "for"), ("grant", "grant"))
    lines += [f"  {word}  {answer[member]}" for member, word in told if answer[member]]
    if answer["expired"]:
        lines.append("  it has expired: ask for a new one")
    if answer["stopped"]:
        lines.append("  it is stopped: every call with it is refused")
    elif not answer["expired"]:
        lines.append("  it is live: no stop ends it")
    return lines + _stops(answer["names"])


def _stops(names: list[dict[str, Any]]) -> list[str]:
    lines = []
    for name in names:
        stop = name["stop"]
        if stop is None:
            said = "no stop"
        elif stop["blocked"]:
            said = f"stopped by change {stop['seq']}, blocked: {_AGAIN[name['kind']]}"
        else:
            said = f"what was issued before change {stop['seq']} is dead" + (", this too" if name["ends"] else "")
        lines.append(f"  {name['kind']} {name['id']}: {said}")
    return lines


def _other(text: str, run_dir: Path | None, output: Output) -> None:
    answer = call(run_dir, "", "POST", "explain", {"what": text})
    if not answer["known"]:
        raise CliError("unknown", f"no {answer['kind']} {text}")
    state = f", {answer['state']}" if answer["state"] else ""
    show(answer, output, "\n".join([f"{text}\n  {answer['kind']}{state}", *_stops(answer["names"])]))


def _identifier(text: str, run_dir: Path | None, output: Output) -> None:
    from aims.identifiers import SpiffeId

    wanted = str(SpiffeId.parse(text))
    workloads = call(run_dir, "explain", "GET", "agents")
    entries = call(run_dir, "explain", "GET", "entries")
    nodes = call(run_dir, "explain", "GET", "nodes")
    names = call(run_dir, "explain", "POST", "explain", {"what": wanted})["names"]
    for node in nodes:
        if node["spiffe_id"] == wanted:
            show(node | {"names": names}, output, "\n".join([f"{wanted}\n  a node, {node['state']}", *_stops(names)]))
            return
    workload = next((one for one in workloads if one["spiffe_id"] == wanted), None)
    if workload is None:
        raise CliError("unknown", f"{wanted} is not registered here")
    mine = [entry for entry in entries if entry["spiffe_id"] == wanted]
    lines = [
        f"{wanted}\n  {workload['kind']} of {workload['owner']}, {workload['state']}, approved {workload['launch']}"
    ]
    lines += [f"  entry {one['id']} on {' '.join(one['nodes'])}: {' '.join(one['selectors'])}" for one in mine]
    if not mine:
        lines.append("  no entry: it is issued nowhere; bind it with `aims entry create`")
    show(workload | {"entries": mine, "names": names}, output, "\n".join(lines + _stops(names)))
