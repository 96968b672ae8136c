"""Stop: one signed event from another party, and the next call is refused; what cannot be heard of is not believed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any, Final

import msgspec

from aims.demo.processes import DemoError, Process
from aims.demo.proof import program, tool_url
from aims.demo.stage import Stage
from aims.demo.story import Chapter, Seen
from aims.demo.transmitter import ISSUER, Transmitter

SESSION_REVOKED: Final = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"
CREDENTIAL_COMPROMISE: Final = "https://schemas.openid.net/secevent/risc/event-type/credential-compromise"
PREPARED: Final = 40
BLIND_SECONDS: Final = 20.0
BACK_SECONDS: Final = 15.0

chapter: Final[Chapter[Stage]] = Chapter("Stop: one event, and the next call is refused")


def transmitter_of(stage: Stage) -> Transmitter:
    """The other party, made once."""
    if stage.transmitter is None:
        stage.transmitter = Transmitter(stage.addresses["public"], stage.public_ca)
    return stage.transmitter


def _agent(name: str) -> dict[str, str]:
    return {"format": "uri", "uri": f"spiffe://local.test/agents/{name}"}


async def _send(stage: Stage, headers: dict[str, str]) -> tuple[int, str]:
    """Present a good request that was made earlier, whoever carries it."""
    told = await stage.programs["mallory"].ask("send", url=tool_url(stage), headers=headers)
    answer: dict[str, Any] = told["answer"]
    return answer["status"], answer.get("code") or ""


async def _prepared(stage: Stage, count: int) -> list[dict[str, str]]:
    """Have the victim make requests that nobody has sent yet."""
    victim = stage.programs["victim"]
    return [(await victim.ask("leak", url=tool_url(stage)))["answer"] for _ in range(count)]


async def _until_refused(stage: Stage, requests: list[dict[str, str]]) -> tuple[int, str, float]:
    """Send prepared requests one after the other until the tool refuses one."""
    for headers in requests:
        status, code = await _send(stage, headers)
        if status != 200:
            return status, code, time.monotonic()
    raise DemoError(f"the tool accepted {len(requests)} requests more")


async def _fair(stage: Stage, name: str) -> str:
    """A request of the agent's own, now; retried while the node is giving it an identity again."""
    deadline = time.monotonic() + BACK_SECONDS
    while True:
        told = await stage.programs[name].ask("fair", url=tool_url(stage))
        answer = told.get("answer") or {"status": told.get("refused")}
        if answer["status"] == 200 or time.monotonic() > deadline:
            return str(answer["status"])
        await asyncio.sleep(0.1)


@chapter.step(
    "An administrator makes a transmitter known: issuer and keys; policy says of whom it may speak, and how strongly",
    "https://signals.example/security may suspend, at most",
)
async def known(stage: Stage) -> Seen:
    body = {"issuer": ISSUER, "jwks": transmitter_of(stage).key_set}
    await stage.administer("POST", "/admin/v1/transmitters", body)
    rows = await stage.administer("GET", "/admin/v1/transmitters")
    found = next(row for row in rows if row["issuer"] == ISSUER)
    return Seen(f"{found['issuer']} may {found['strongest']}, at most")


@chapter.step("A receiver of our own events is made known", "https://localhost:PORT/events takes session-revoked")
async def receiver(stage: Stage) -> Seen:
    port, public = stage.ports["receiver"], stage.addresses["public"]
    process = await Process.start(
        "receiver",
        program(
            *("receiver", "--port", str(port), "--audience", f"https://localhost:{port}"),
            *("--keys", f"{public}/signals/jwks", "--keys-ca", str(stage.public_ca)),
        ),
        log=stage.folder / "receiver.log",
    )
    stage.programs["receiver"] = process
    ready = msgspec.json.decode(await process.line())
    body = {
        "url": f"{ready['ready']}/events",
        "audience": ready["ready"],
        "private": True,
        "ca": ready["ca"],
    }
    answer = await stage.administer("POST", "/admin/v1/receiver", body)
    events = ", ".join(event.rpartition("/")[2] for event in answer["events"])
    return Seen(f"{answer['url'].replace(str(port), 'PORT')} takes {events}")


@chapter.step(
    "It says that the assistant's session is revoked, of which it may not speak",
    "400 access_denied; the assistant: 200",
)
async def out_of_authority(stage: Stage) -> Seen:
    status, code, _ = await transmitter_of(stage).push(SESSION_REVOKED, _agent("assistant"))
    told = await stage.programs["assistant"].ask("call", url=tool_url(stage), tool="whoami")
    return Seen(f"{status} {code}; the assistant: {200 if 'answer' in told else told['refused']}")


@chapter.step(
    "It says the same of the victim, of which it may: requests made before are refused",
    "202; 401 authentication.stopped",
)
async def revoked(stage: Stage) -> Seen:
    requests = await _prepared(stage, PREPARED)
    before, _ = await _send(stage, requests.pop())
    status, _, sent = await transmitter_of(stage).push(SESSION_REVOKED, _agent("victim"))
    answered = time.monotonic()
    refused, code, at = await _until_refused(stage, requests)
    notes = (
        f"a request just before: {before}",
        f"time to stop: {(at - sent) * 1000:.0f} ms from the event on, {(at - answered) * 1000:.0f} ms from its 202 on",
    )
    return Seen(f"{status}; {refused} {code}", notes)


@chapter.step("The victim itself goes on: the node has measured it again, and its credentials are new", "200")
async def fresh(stage: Stage) -> Seen:
    return Seen(await _fair(stage, "victim"))


@chapter.step(
    "It says that the victim's credentials are compromised: the agent is suspended", "202; 401 authentication.stopped"
)
async def compromised(stage: Stage) -> Seen:
    requests = await _prepared(stage, PREPARED)
    status, _, sent = await transmitter_of(stage).push(CREDENTIAL_COMPROMISE, _agent("victim"), credential_type="x509")
    refused, code, at = await _until_refused(stage, requests)
    stage.kept = requests[-1]
    return Seen(f"{status}; {refused} {code}", (f"time to stop: {(at - sent) * 1000:.0f} ms",))


@chapter.step("The record of it names the event and who sent it", f"{CREDENTIAL_COMPROMISE} by {ISSUER}")
async def recorded(stage: Stage) -> Seen:
    record = await stage.record(lambda one: (one.get("cause") or {}).get("event") == CREDENTIAL_COMPROMISE)
    cause = record["cause"]
    return Seen(f"{cause.get('event')} by {cause.get('set_iss')}", (f"{record['type']} {record['resource']}",))


@chapter.step(
    "Another party that asked to hear of our stops was told, and has verified who told it",
    "session-revoked of spiffe://local.test/agents/victim, signed by our signals issuer",
)
async def passed_on(stage: Stage) -> Seen:
    told: dict[str, Any] = {}
    while "victim" not in str(told.get("subject")):
        told = msgspec.json.decode(await stage.programs["receiver"].line())
    ours = told["issuer"] == f"{stage.addresses['public']}/signals"
    event = told["event"].rpartition("/")[2]
    who = "our signals issuer" if ours else told["issuer"]
    return Seen(f"{event} of spiffe://local.test/agents/victim, signed by {who}", (told["subject"],))


@chapter.step(
    "An administrator resumes it: what it was given before stays dead, what it is given now works",
    "before: 401 authentication.stopped; now: 200",
)
async def resumed(stage: Stage) -> Seen:
    await stage.administer("POST", "/admin/v1/agents/resume", {"name": "victim"})
    now = await _fair(stage, "victim")
    status, code = await _send(stage, stage.kept or {})
    return Seen(f"before: {status} {code}; now: {now}")


@chapter.step(
    "The stream of stops is cut (the server is frozen): the tool lets nobody in",
    "503 authentication.state_unknown; thawed: 200",
)
async def blind(stage: Stage) -> Seen:
    requests = await _prepared(stage, PREPARED)
    workers = stage.running().children("aims.server.worker")
    begun = time.monotonic()
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    try:
        status, code = 200, ""
        while status == 200 and requests and time.monotonic() - begun < BLIND_SECONDS:
            await asyncio.sleep(0.5)
            status, code = await asyncio.wait_for(_send(stage, requests.pop()), BLIND_SECONDS)
        took = time.monotonic() - begun
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
    return Seen(
        f"{status} {code}; thawed: {await _fair(stage, 'mallory')}", (f"after {took:.1f} s without a heartbeat",)
    )
