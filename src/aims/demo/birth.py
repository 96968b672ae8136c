"""Birth: two agents get their identities from the node that started them; a twin that it did not start gets none."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from aims.demo.processes import Process, output_of
from aims.demo.stage import OWNER, Stage, launched
from aims.demo.story import Chapter, Seen

SHORT_LIFE: Final = 12

chapter: Final[Chapter[Stage]] = Chapter("Birth: the node starts what it vouches for")


def own_command() -> str:
    """The installed ``aims`` program of this environment: what the agents of this chapter run."""
    return str(Path(sys.executable).with_name("aims"))


@chapter.step("An owner and two agents are registered, each with the command that may run as it", "active, active")
async def registered(stage: Stage) -> Seen:
    await stage.administer("POST", "/admin/v1/owners", {"name": OWNER, "contact": "demo@local.test"})
    command = (own_command(), "svid")
    first = await stage.register("researcher", *command, options=("--more-arguments", "--ttl", str(SHORT_LIFE)))
    second = await stage.register("writer", *command, options=("--more-arguments",))
    return Seen(f"{first['state']}, {second['state']}", (f"both: {first['launch']}",))


async def _born(stage: Stage, name: str) -> Seen:
    status, text = await output_of(launched(stage, name, own_command(), "svid", "fetch", "--output", "json"))
    if status:
        return Seen(f"exit {status}", (text,))
    found = [msgspec.json.decode(line) for line in text.splitlines()]
    ids = {one["spiffe_id"] for one in found}
    record = await stage.record(
        lambda record: record["type"] == "credential.issue" and (record.get("agent") or {}).get("id") in ids
    )
    notes = (
        f"instance {found[0]['instance']}",
        f"posture {record['posture']['level']} by {record['posture']['attestor']}",
    )
    return Seen(f"{', '.join(one['kind'] for one in found)} of {' and '.join(sorted(ids))}", notes)


@chapter.step("aims run --as researcher", "x509-svid, wit, jwt-svid of spiffe://local.test/agents/researcher")
async def researcher(stage: Stage) -> Seen:
    return await _born(stage, "researcher")


@chapter.step("aims run --as writer", "x509-svid, wit, jwt-svid of spiffe://local.test/agents/writer")
async def writer(stage: Stage) -> Seen:
    return await _born(stage, "writer")


@chapter.step("The same program of the same user, not started by the node", "exit 1: sdk.denied")
async def twin(stage: Stage) -> Seen:
    socket = f"unix://{stage.run_dir / 'workload.sock'}"
    status, text = await output_of((own_command(), "svid", "fetch", "--socket", socket))
    return Seen(f"exit {status}: {_code(text)}", (text.splitlines()[0],))


@chapter.step("aims run --as researcher with a program that nobody approved", "exit 125: node.launch_mismatch")
async def other_program(stage: Stage) -> Seen:
    status, text = await output_of(launched(stage, "researcher", own_command(), "--version"))
    return Seen(f"exit {status}: {_code(text)}", (text.splitlines()[0],))


@chapter.step(
    "A command of `aims agent list` that was started as an agent; the same in a shell of the administrator",
    "exit 1: server.admin_from_agent; exit 0",
)
async def insider(stage: Stage) -> Seen:
    command = (own_command(), "agent", "list", "--run-dir", str(stage.run_dir))
    await stage.register("insider", *command)
    status, text = await output_of(launched(stage, "insider", *command))
    twin_status, _ = await output_of(command)
    return Seen(f"exit {status}: {_code(text)}; exit {twin_status}", (text.splitlines()[0],))


@chapter.step("A program whose files nobody measured gets its WIT for a quarter of an hour", "wit for 900 s at most")
async def unmeasured(stage: Stage) -> Seen:
    body = {"name": "sketch", "owner": OWNER, "launch_uids": [os.getuid()], "nodes": ["local"]}
    await stage.administer("POST", "/admin/v1/agents", body)
    status, text = await output_of(launched(stage, "sketch", own_command(), "svid", "fetch", "--output", "json"))
    if status:
        return Seen(f"exit {status}", (text,))
    wit = next(one for one in map(msgspec.json.decode, text.splitlines()) if one["kind"] == "wit")
    left = wit["expires"] - time.time()
    return Seen("wit for 900 s at most" if 600 < left <= 900 else f"wit for {left:.0f} s")


@chapter.step(
    f"A certificate that lives {SHORT_LIFE} s is replaced on an open stream",
    "two serials, one instance, one connection",
)
async def rotation(stage: Stage) -> Seen:
    process = await Process.start(
        "aims svid watch",
        launched(stage, "researcher", own_command(), "svid", "watch", "--count", "2", "--output", "json"),
        log=stage.folder / "rotation.log",
    )
    try:
        states = [msgspec.json.decode(await process.line()) for _ in range(2)]
    finally:
        await process.end()
    serials = len({state["serial"] for state in states})
    instances = len({state["instance"] for state in states})
    words = {1: "one", 2: "two"}
    kept = "one connection" if all(state["kind"] == "x509-svid" for state in states) else "interrupted"
    serial, instance = ("serial" if serials == 1 else "serials"), ("instance" if instances == 1 else "instances")
    return Seen(
        f"{words[serials]} {serial}, {words[instances]} {instance}, {kept}",
        (f"the second ends {states[1]['expires'] - states[0]['expires']} s after the first",),
    )


def _code(text: str) -> str:
    """The stable code in what a command of ours printed."""
    words = text.replace(":", " ").split()
    return next((word for word in words if "." in word and word.replace(".", "").replace("_", "").isalpha()), text)
