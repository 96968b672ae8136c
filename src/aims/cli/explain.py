"""``aims explain``: turn a refusal's code, a token or an identifier into sentences."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from pathlib import Path

import aims
from aims.cli.administrator import RunDir, call
from aims.cli.errors import CliError
from aims.cli.output import Output, show
from aims.errors import Reason, catalogue


def explain(what: str, *, run_dir: RunDir = None, output: Output = "text") -> None:
    """Explain a refusal's code (`authentication.wpt_aud`, `wpt_aud` or the line with it), a token, or a SPIFFE ID."""
    if what.startswith("spiffe://"):
        _identifier(what, run_dir, output)
    elif what.count(".") == 2 and len(what) > 80:
        _token(what, output)
    else:
        _code(_code_in(what), output)


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


def _code(what: str, output: Output) -> None:
    known = reasons()
    found = {code: reason for code, reason in known.items() if what in {code, code.partition(".")[2]}}
    if not found:
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


def _token(text: str, output: Output) -> None:
    from aims.jose.door import decode

    header, claims = decode(text, 64 * 1024)
    kind = str(header.get("typ", "JWT"))
    lines = [f"a token of type {kind}; nothing in it was verified"]
    lines += [
        f"  {name}  {claims[name]}" for name in ("iss", "sub", "client_id", "aud", "scope", "exp") if name in claims
    ]
    show({"typ": kind, "header": header, "claims": claims, "verified": False}, output, "\n".join(lines))


def _identifier(text: str, run_dir: Path | None, output: Output) -> None:
    from aims.identifiers import SpiffeId

    wanted = str(SpiffeId.parse(text))
    workloads = call(run_dir, "explain", "GET", "agents")
    entries = call(run_dir, "explain", "GET", "entries")
    nodes = call(run_dir, "explain", "GET", "nodes")
    for node in nodes:
        if node["spiffe_id"] == wanted:
            show(node, output, f"{wanted}\n  a node, {node['state']}")
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
    show(workload | {"entries": mine}, output, "\n".join(lines))
