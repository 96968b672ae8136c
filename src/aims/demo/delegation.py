"""Tokens: an agent hands a part of its right on; nobody gets more, nobody else gets it, and one stop ends the tree."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any, Final

from aims.demo.policy import change_row
from aims.demo.processes import aims, output_of
from aims.demo.proof import program
from aims.demo.stage import Stage
from aims.demo.stopping import CREDENTIAL_COMPROMISE, transmitter_of
from aims.demo.story import Chapter, Seen

CLERKS: Final = ("lead", "clerk-b", "clerk-c", "clerk-d", "clerk-e", "clerk-f")

chapter: Final[Chapter[Stage]] = Chapter("Tokens: less with every hop, and never without the chain")


def _url(stage: Stage) -> str:
    return f"https://localhost:{stage.ports['tool']}/mcp-oauth"


def _id(name: str) -> str:
    return f"spiffe://local.test/agents/{name}"


async def _ask(stage: Stage, who: str, do: str, **arguments: Any) -> tuple[dict[str, Any], str]:
    """Return the answer of a clerk, and the code where it was refused."""
    told = await stage.programs[who].ask(do, **arguments)
    answer = told.get("answer")
    refused = told.get("refused")
    return (answer if isinstance(answer, dict) else {}), (str(refused) if refused else "")


def _tree(claims: dict[str, Any]) -> str:
    """Draw who acts for whom: the subject, and each actor below the one it acts for."""
    actors = []
    act = claims.get("act")
    while act:
        actors.append(act["sub"].rpartition("/")[2])
        act = act.get("act")
    lines = [claims["sub"].rpartition("/")[2]]
    lines += [f"{'   ' * depth}└─ {name}" for depth, name in enumerate(reversed(actors))]
    return "\n".join(lines)


@chapter.step("Six agents that ask for rights start", f"agents {', '.join(CLERKS)}")
async def start(stage: Stage) -> Seen:
    said = await asyncio.gather(*(stage.launch(name, *program("clerk")) for name in CLERKS))
    names = [one["ready"].rpartition("/")[2] for one in said]
    return Seen(f"agents {', '.join(names)}")


@chapter.step("The lead asks for a token of its own right", "scope `read refund` for 300 s, at most, bound to its key")
async def own(stage: Stage) -> Seen:
    claims, refused = await _ask(stage, "lead", "token", resource=_url(stage), scope="refund read", keep="own")
    if refused:
        return Seen(refused)
    scope = " ".join(sorted(claims["scope"].split()))
    return Seen(
        f"scope `{scope}` for {claims['seconds']} s, at most, bound to its key", (f"grant {claims['grant_id']}",)
    )


@chapter.step("It asks for a scope above the ceiling of agents", "authorization.scope_ceiling")
async def above(stage: Stage) -> Seen:
    claims, refused = await _ask(stage, "lead", "token", resource=_url(stage), scope="close", keep="more")
    return Seen(refused or f"scope {claims['scope']}")


@chapter.step("The tool takes the token with the lead's proof", "refunded 5 by lead")
async def used(stage: Stage) -> Seen:
    answer, refused = await _ask(
        stage, "lead", "call", url=_url(stage), tool="refund", arguments={"amount": 5}, of="own"
    )
    return Seen(refused or f"refunded {answer['refunded']} by {answer['by'].rpartition('/')[2]}")


@chapter.step("The same token with the proof of another agent", "authorization.token_binding")
async def stolen(stage: Stage) -> Seen:
    text, _ = await _ask(stage, "lead", "text", of="own")
    await _ask(stage, "clerk-f", "token", resource=_url(stage), scope="read", keep="own")
    answer, refused = await _ask(stage, "clerk-f", "present", text=text["text"], url=_url(stage))
    return Seen(refused or str(answer))


@chapter.step("Under `shared-uid` the shipped policy lets nobody delegate", "authorization.delegation_posture")
async def capped(stage: Stage) -> Seen:
    claims, refused = await _ask(stage, "lead", "delegate", of="own", to=_id("clerk-b"), scope="refund")
    return Seen(refused or _tree(claims))


@chapter.step("An administrator allows it here: one row, one recorded change", "policy.changed by an administrator")
async def allowed(stage: Stage) -> Seen:
    change_row(stage.policy_dir, "postures", "shared-uid", delegation=True)
    status, text = await output_of(
        aims(
            "policy", "apply", str(stage.policy_dir), "--run-dir", str(stage.run_dir), "--reason", "the story delegates"
        )
    )
    record = await stage.record(lambda one: (one.get("cause") or {}).get("reason") == "the story delegates")
    who = "an administrator" if record["cause"].get("admin") else "nobody"
    return Seen(f"{record['type']} by {who}" if status == 0 else text, (text,))


@chapter.step("The lead hands `refund` to clerk B, and B takes it up for the tool", "B for lead: scope refund")
async def delegated(stage: Stage) -> Seen:
    handed, refused = await _ask(stage, "lead", "delegate", of="own", to=_id("clerk-b"), scope="refund")
    if refused:
        return Seen(refused)
    stage.handed["clerk-b"] = handed["text"]
    claims, refused = await _ask(
        stage, "clerk-b", "exchange", text=handed["text"], resource=_url(stage), scope="refund", keep="for-lead"
    )
    return Seen(refused or f"B for lead: scope {claims['scope']}", (_tree(claims),) if claims else ())


@chapter.step("The tool sees the chain", "refunded 3 by clerk-b for lead")
async def chained(stage: Stage) -> Seen:
    answer, refused = await _ask(
        stage, "clerk-b", "call", url=_url(stage), tool="refund", arguments={"amount": 3}, of="for-lead"
    )
    if refused:
        return Seen(refused)
    return Seen(
        f"refunded {answer['refunded']} by {answer['by'].rpartition('/')[2]} for {answer['for'].rpartition('/')[2]}"
    )


@chapter.step("B asks for more than it was handed", "authorization.scope_parent")
async def widened(stage: Stage) -> Seen:
    claims, refused = await _ask(
        stage,
        "clerk-b",
        "exchange",
        text=stage.handed["clerk-b"],
        resource=_url(stage),
        scope="refund read",
        keep="more",
    )
    return Seen(refused or f"scope {claims['scope']}")


@chapter.step("C presents what was handed to B", "authorization.subject_presenter")
async def other_presenter(stage: Stage) -> Seen:
    claims, refused = await _ask(
        stage, "clerk-c", "exchange", text=stage.handed["clerk-b"], resource=_url(stage), scope="refund", keep="x"
    )
    return Seen(refused or f"scope {claims['scope']}")


@chapter.step("A WIT is presented as if it were an access token", "authorization.subject_token")
async def other_kind(stage: Stage) -> Seen:
    leaked = await stage.programs["mallory"].ask("leak", url=f"https://localhost:{stage.ports['tool']}/mcp")
    wit = leaked["answer"]["workload-identity-token"]
    claims, refused = await _ask(stage, "clerk-b", "exchange", text=wit, resource=_url(stage), scope="refund", keep="x")
    return Seen(refused or f"scope {claims['scope']}")


@chapter.step("The tool is shown a token that was meant for B, merely forwarded", "authorization.token_passthrough")
async def forwarded(stage: Stage) -> Seen:
    answer, refused = await _ask(stage, "clerk-b", "present", text=stage.handed["clerk-b"], url=_url(stage))
    return Seen(refused or str(answer))


@chapter.step(
    "It is handed on, hop by hop, to E: four actors; a fifth is refused", "E: 4 actors; F: authorization.chain_too_long"
)
async def too_long(stage: Stage) -> Seen:
    names = ("clerk-b", "clerk-c", "clerk-d", "clerk-e", "clerk-f")
    claims: dict[str, Any] = {}
    for giver, taker in pairwise(names):
        handed, refused = await _ask(stage, giver, "hand_on", text=stage.handed[giver], to=_id(taker), scope="refund")
        if refused:
            return Seen(f"{giver} to {taker}: {refused}")
        stage.handed[taker] = handed["text"]
        got, refused = await _ask(
            stage, taker, "exchange", text=handed["text"], resource=_url(stage), scope="refund", keep="chain"
        )
        if refused:
            return Seen(f"E: {_tree(claims).count('└─')} actors; F: {refused}", (_tree(claims),))
        claims = got
    return Seen(f"F: {_tree(claims).count('└─')} actors", (_tree(claims),))


@chapter.step(
    "One event stops the lead, and with it everything below",
    "202; B: authentication.stopped; E: authentication.stopped",
)
async def tree_ends(stage: Stage) -> Seen:
    status, _, _ = await transmitter_of(stage).push(
        CREDENTIAL_COMPROMISE, {"format": "uri", "uri": _id("lead")}, credential_type="x509"
    )
    seen = [str(status)]
    for name, kept in (("clerk-b", "for-lead"), ("clerk-e", "chain")):
        answer, refused = await _ask(stage, name, "call", url=_url(stage), tool="whoami", of=kept)
        seen.append(f"{name[-1].upper()}: {refused or answer}")
    return Seen("; ".join(seen))
