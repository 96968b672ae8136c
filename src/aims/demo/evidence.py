"""The last chapter: what was decided is on record, survives a kill, and cannot be changed unseen."""

from __future__ import annotations

import asyncio
import http.client
import shutil
import socket
from collections import Counter
from typing import Any, Final

import msgspec

from aims.demo.processes import aims, output_of
from aims.demo.stage import Stage
from aims.demo.story import Chapter, Seen
from aims.server.admin_client import AdminClient

DECISIONS: Final = 1000
EVERY_DENIED: Final = 5
EVERY_BROWSER: Final = 10

chapter: Final[Chapter[Stage]] = Chapter("Evidence: every decision on record, and nothing changed unseen")


def _question(role: str) -> dict[str, Any]:
    return {
        "principal": {"type": "Operator", "id": "uid:4711", "attributes": {"roles": [role]}},
        "action": "administer",
        "resource": {"type": "Resource", "id": "status", "attributes": {"kind": "admin-route", "writes": False}},
        "context": {"launched": False},
    }


def _decide(stage: Stage) -> tuple[Counter[str], list[str]]:
    """Ask the server again and again, and keep a ledger of the records that its answers promise."""
    seen: Counter[str] = Counter()
    ledger: list[str] = []
    with AdminClient(stage.run_dir / "admin.sock", "the story") as client:
        for number in range(DECISIONS):
            if number % EVERY_BROWSER == 0:
                seen[_as_a_browser(stage)] += 1
                continue
            role = "visitor" if number % EVERY_DENIED == 0 else "operator"
            answer = client.call("POST", "/admin/v1/policy/check", _question(role))
            seen[answer["effect"]] += 1
            ledger.append(answer["record"])
    return seen, ledger


def _as_a_browser(stage: Stage) -> str:
    """Send what a web page that was led to this socket would send."""
    connection = http.client.HTTPConnection("aims", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(str(stage.run_dir / "admin.sock"))
    try:
        connection.request("GET", "/admin/v1/status", headers={"Origin": "https://attacker.example"})
        error: str = msgspec.json.decode(connection.getresponse().read())["error"]
    finally:
        connection.close()
    return error


@chapter.step(
    f"{DECISIONS} decisions through the administrator's socket",
    "800 permit, 100 deny, 100 server.browser",
)
async def decide(stage: Stage) -> Seen:
    seen, stage.answered = await asyncio.to_thread(_decide, stage)
    return Seen(", ".join(f"{seen[name]} {name}" for name in ("permit", "deny", "server.browser")))


@chapter.step("kill -9 of the server and all its workers, then a new start", "killed by 9, ready again")
async def kill(stage: Stage) -> Seen:
    status = await stage.running().kill()
    lines = await stage.start_server()
    return Seen(f"killed by {-status}, {lines[-1]} again")


@chapter.step("Every answer has its record", "900 of 900, and 100 refusals of a browser")
async def on_record(stage: Stage) -> Seen:
    records = await stage.records()
    ids = {record["id"] for record in records}
    browser = sum(1 for record in records if (record.get("decision") or {}).get("reason") == "server.browser")
    found = sum(1 for name in stage.answered if name in ids)
    return Seen(f"{found} of {len(stage.answered)}, and {browser} refusals of a browser")


@chapter.step("aims audit verify", "exit 0: consistent, tail unwitnessed")
async def verify(stage: Stage) -> Seen:
    status, text = await output_of(aims("audit", "verify", "--state-dir", str(stage.state_dir)))
    first, _, rest = text.partition("\n")
    return Seen(f"exit {status}: {first}", (rest,))


@chapter.step("The same on a copy in which one record says `permit` where it said `deny`", "exit 1: names that record")
async def tampered(stage: Stage) -> Seen:
    copy = stage.folder / "tampered"
    shutil.copytree(stage.log_dir, copy)
    shutil.copy(stage.log_dir.parent / "log.vkey", stage.folder)
    bundle = copy / "tile" / "entries" / "000"
    octets = bundle.read_bytes()
    before = b'"effect":"deny"'
    at = octets.index(before)
    # A record of the same length, so that nothing but its content betrays it.
    bundle.write_bytes(octets[:at] + b'"effect":"perm"' + octets[at + len(before) :])
    victim = next(
        record["seq"] for record in await stage.records() if (record.get("decision") or {}).get("effect") == "deny"
    )
    status, text = await output_of(
        aims(
            "audit",
            "verify",
            str(copy),
            "--vkey",
            (stage.folder / "log.vkey").read_text("ascii").strip(),
            "--output",
            "json",
        )
    )
    verdict = msgspec.json.decode(text)
    named = (
        "names that record"
        if verdict["seq"] == victim and verdict["exact"]
        else f"names {verdict['seq']}, not {victim}"
    )
    return Seen(f"exit {status}: {named}", (f"{verdict['verdict']}: {verdict['message']}",))
