"""Proof: a real MCP tool answers an attested agent and names it; what is stolen, replayed or misdirected is refused."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

from aims.demo.stage import Stage
from aims.demo.story import Chapter, Seen

chapter: Final[Chapter[Stage]] = Chapter("Proof: possession on every call")


def program(module: str, *arguments: str) -> tuple[str, ...]:
    """The command of one of the samples."""
    # -P: nothing is imported from the folder that the story happens to be told in.
    return (sys.executable, "-P", "-m", f"aims.samples.{module}", *arguments)


def tool_url(stage: Stage, port: str = "tool") -> str:
    """The address of the story's tool, or of the place where an impostor stands."""
    return f"https://localhost:{stage.ports[port]}/mcp"


async def _attack(stage: Stage, do: str, *, who: str = "mallory", **arguments: Any) -> Seen:
    """Have a program do something hostile and say what came back."""
    told = await stage.programs[who].ask(do, url=tool_url(stage), **arguments)
    answer = told.get("answer", told)
    words = [str(answer.get("status", told.get("refused")))]
    if answer.get("code"):
        words.append(answer["code"])
    return Seen(" ".join(words), (answer["hint"],) if answer.get("hint") else ())


@chapter.step(
    "A tool (an MCP server) and three programs start under their own identities",
    "spiffe://local.test/services/refunds, and agents assistant, victim, mallory",
)
async def start(stage: Stage) -> Seen:
    agents = (("assistant", "agent"), ("victim", "attacker"), ("mallory", "attacker"))
    tool, *said = await asyncio.gather(
        stage.launch("refunds", *program("tool", "--port", str(stage.ports["tool"])), service=True),
        *(stage.launch(name, *program(module)) for name, module in agents),
    )
    names = [one["ready"].rpartition("/")[2] for one in said]
    return Seen(f"{tool['ready']}, and agents {', '.join(names)}")


@chapter.step(
    "The assistant calls `whoami` with its WIT and a proof for this one request",
    "the tool names spiffe://local.test/agents/assistant",
)
async def call(stage: Stage) -> Seen:
    told = await stage.programs["assistant"].ask("call", url=tool_url(stage), tool="whoami")
    answer = told["answer"]
    return Seen(f"the tool names {answer['agent']}", (f"profile {answer['profile']}",))


@chapter.step("A second agent makes the same request as itself", "200")
async def fair(stage: Stage) -> Seen:
    return await _attack(stage, "fair")


@chapter.step("The same with a WIT that it stole, and a key of its own", "401 authentication.wpt_signature")
async def stolen(stage: Stage) -> Seen:
    leaked = await stage.programs["victim"].ask("leak", url=tool_url(stage))
    return await _attack(stage, "stolen_wit", wit=leaked["answer"]["workload-identity-token"])


@chapter.step("The same with the WIT and no proof", "401 authentication.authorization_count")
async def no_proof(stage: Stage) -> Seen:
    return await _attack(stage, "no_proof")


@chapter.step("The same with the WIT as a bearer token", "401 authentication.authorization_scheme")
async def bearer(stage: Stage) -> Seen:
    return await _attack(stage, "bearer")


@chapter.step("The same request a second time", "401 authentication.wpt_replay")
async def replay(stage: Stage) -> Seen:
    return await _attack(stage, "replay")


@chapter.step("The same with a proof that was made for another service", "401 authentication.wpt_aud")
async def wrong_audience(stage: Stage) -> Seen:
    return await _attack(stage, "wrong_audience")


@chapter.step("The same with a proof that was made for another method", "401 authentication.wpt_htm")
async def other_method(stage: Stage) -> Seen:
    return await _attack(stage, "other_method")


@chapter.step("The same with a proof that was made for another URL of the tool", "401 authentication.wpt_htu")
async def other_url(stage: Stage) -> Seen:
    return await _attack(stage, "other_url", audience=tool_url(stage))


@chapter.step("The same with a proof of ten minutes ago", "401 authentication.wpt_expired")
async def expired(stage: Stage) -> Seen:
    return await _attack(stage, "expired")


@chapter.step(
    "An impostor with a valid certificate of this domain stands at the tool's address",
    "sdk.peer_refused, and the impostor saw no request",
)
async def impostor(stage: Stage) -> Seen:
    await stage.launch("impostor", *program("tool", "--port", str(stage.ports["impostor"])), service=True)
    told = await stage.programs["assistant"].ask("call", url=tool_url(stage, "impostor"), tool="whoami")
    await stage.programs["impostor"].end()
    lines = (stage.folder / "impostor.log").read_text("utf-8", "replace")
    saw = "a request" if "whoami" in lines or "POST" in lines else "no request"
    return Seen(f"{told.get('refused', told)}, and the impostor saw {saw}")
