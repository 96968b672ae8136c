"""Person and transaction: a person allows, an approved action travels inside, and the person takes it back."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from aims.demo.browser import Browser, Page
from aims.demo.proof import program
from aims.demo.stage import Stage
from aims.demo.story import Chapter, Seen
from aims.demo.transmitter import Transmitter
from aims.server.admin_client import RefusedError

IDP: Final = "https://idp.example"
DISABLED: Final = "https://schemas.openid.net/secevent/risc/event-type/account-disabled"
ENABLED: Final = "https://schemas.openid.net/secevent/risc/event-type/account-enabled"
REDIRECT: Final = "http://127.0.0.1/callback"
HEARD_WITHIN: Final = 25
"""Turns of 0.2 s."""
PAYMENT: Final = {"amount": 7, "account": "DE-4711"}

chapter: Final[Chapter[Stage]] = Chapter(
    "Person and transaction: allowed by somebody, for exactly this, until taken back"
)


def _tool(stage: Stage) -> str:
    return f"https://localhost:{stage.ports['tool']}/mcp-oauth"


def _ledger(stage: Stage) -> str:
    return f"https://localhost:{stage.ports['inner']}/payments"


async def _ask(stage: Stage, do: str, **arguments: Any) -> tuple[dict[str, Any], str]:
    told = await stage.programs["errand"].ask(do, **arguments)
    answer = told.get("answer")
    refused = told.get("refused") or (told.get("error") and str(told))
    return (answer if isinstance(answer, dict) else {}), (str(refused) if refused else "")


async def _consent(stage: Stage) -> tuple[Page, str]:
    """Have the agent ask, and show the person the page; return it and its address."""
    asked, refused = await _ask(stage, "ask", resource=_tool(stage), scope="refund", redirect_uri=REDIRECT)
    if refused:
        return Page(0, refused), ""
    return await stage.browser.go(asked["url"]), asked["url"]


async def _approve(stage: Stage, page: Page, address: str) -> tuple[dict[str, Any], str]:
    """Approve what a page asks, and have the agent redeem the answer."""
    if page.status != 200:
        return {}, page.code or f"{page.status} {page.text[:80]}"
    back = await stage.browser.submit(address, "/oauth/consent", page.fields() | {"decision": "approve"})
    return await _ask(stage, "redeem", answer=back.location, keep="hers")


async def _refund(stage: Stage, of: str = "hers") -> str:
    answer, refused = await _ask(stage, "call", url=_tool(stage), tool="refund", arguments={"amount": 7}, of=of)
    if refused:
        return refused
    whom = "the person" if answer["for"].startswith("person:") else answer["for"].rpartition("/")[2]
    return f"refunded {answer['refunded']} by {answer['by'].rpartition('/')[2]} for {whom}"


@chapter.step("An agent that runs errands and an inner service start", "agent errand, service ledger")
async def start(stage: Stage) -> Seen:
    first = await stage.launch("errand", *program("clerk"))
    caller = "spiffe://local.test/agents/errand"
    second = await stage.launch(
        "ledger", *program("ledger", "--port", str(stage.ports["inner"]), "--caller", caller), service=True
    )
    await stage.administer("POST", "/admin/v1/clients/redirects", {"agent": "errand", "redirect_uris": [REDIRECT]})
    return Seen(f"agent {first['ready'].rpartition('/')[2]}, service {second['ready'].rpartition('/')[2]}")


@chapter.step("A person opens the login link that an administrator made for her", "Log in as Ada; then logged in")
async def login(stage: Stage) -> Seen:
    stage.browser = Browser(stage.public_ca)
    person = await stage.administer("POST", "/admin/v1/people", {"name": "Ada"})
    stage.person = person["id"]
    link = await stage.administer("POST", "/admin/v1/people/link", {"name": "Ada"})
    stage.link = link["url"]
    page = await stage.browser.go(link["url"])
    title = "Log in as Ada" if "Log in as Ada" in page.words else page.words[:80]
    back = await stage.browser.submit(link["url"], "/login", page.fields())
    return Seen(f"{title}; then {'logged in' if back.status == 303 else back.code}")


@chapter.step("The same link in another browser", "authorization.link_unknown")
async def link_again(stage: Stage) -> Seen:
    page = await Browser(stage.public_ca).go(stage.link)
    return Seen(page.code or f"{page.status} {page.words[:60]}")


@chapter.step(
    "The agent asks for `refund`; she reads who asks, who answers for it, for what, and until when",
    "errand, demo-team, refund: all on the page",
)
async def words(stage: Stage) -> Seen:
    stage.consent = page, _ = await _consent(stage)
    missing = [word for word in ("errand", "demo-team", "refund", "Until") if word not in page.words]
    return Seen(
        "errand, demo-team, refund: all on the page" if not missing else f"missing {missing}: {page.words[:200]}"
    )


@chapter.step(
    "She approves; the agent gets a token in her name, with itself as the actor", "her, acted for by errand: refund"
)
async def approved(stage: Stage) -> Seen:
    claims, refused = await _approve(stage, *stage.consent)
    if refused:
        return Seen(refused)
    whom = "her" if claims["sub"] == stage.person else claims["sub"]
    actor = claims["act"]["sub"].rpartition("/")[2]
    return Seen(f"{whom}, acted for by {actor}: {claims['scope']}", (f"grant {claims['grant_id']}",))


@chapter.step("The tool sees the person in the chain", "refunded 7 by errand for the person")
async def seen_by_tool(stage: Stage) -> Seen:
    return Seen(await _refund(stage))


async def _pay(stage: Stage, *, body: dict[str, Any] = PAYMENT, purpose: str = "pay", carry: str = "txn") -> Seen:
    """A fresh transaction for PAYMENT, presented with ``body``."""
    made, refused = await _ask(stage, "transact", of="hers", purpose=purpose, details=PAYMENT, keep="txn")
    if refused:
        return Seen(refused)
    answer, refused = await _ask(stage, "post", url=_ledger(stage), body=body, using="txn", carry=carry)
    if refused:
        return Seen(refused)
    if answer["status"] == 200:
        whom = "her" if answer["for"] == stage.person else answer["for"]
        return Seen(f"paid {answer['paid']} for {whom}", (f"txn {made['txn']}, tctx {json.dumps(made['tctx'])}",))
    return Seen(f"{answer['status']} {answer['code']}")


@chapter.step("A Txn-Token carries the approved payment to the inner service", "paid 7 for her")
async def paid(stage: Stage) -> Seen:
    return await _pay(stage)


@chapter.step("The same transaction a second time", "403 authorization.txn_used")
async def twice(stage: Stage) -> Seen:
    answer, refused = await _ask(stage, "post", url=_ledger(stage), body=PAYMENT, using="txn")
    return Seen(refused or f"{answer['status']} {answer['code']}")


@chapter.step("A new one, but the request says another amount", "403 authorization.txn_facts")
async def changed(stage: Stage) -> Seen:
    return await _pay(stage, body={**PAYMENT, "amount": 700})


@chapter.step("A new one for another purpose, with the same facts", "403 authorization.txn_purpose")
async def other_purpose(stage: Stage) -> Seen:
    return await _pay(stage, purpose="quote")


@chapter.step("A new one as a bearer token", "400 authentication.wit_header_count")
async def bearer(stage: Stage) -> Seen:
    return await _pay(stage, carry="bearer")


@chapter.step("A payment above what the purpose allows", "authorization.txn_details")
async def too_much(stage: Stage) -> Seen:
    made, refused = await _ask(
        stage, "transact", of="hers", purpose="pay", details={**PAYMENT, "amount": 501}, keep="more"
    )
    return Seen(refused or str(made))


@chapter.step(
    "Her identity provider says that her account is disabled: what is done in her name ends, and only that",
    "202; for her: authentication.stopped; for itself: refunded 7 by errand for errand",
)
async def disabled(stage: Stage) -> Seen:
    idp = Transmitter(stage.addresses["public"], stage.public_ca, issuer=IDP)
    stage.provider = idp
    await stage.administer("POST", "/admin/v1/transmitters", {"issuer": IDP, "jwks": idp.key_set})
    subject = {"format": "iss_sub", "iss": IDP, "sub": "ada"}
    mapped = {"issuer": IDP, "subject": subject, "person": stage.person}
    await stage.administer("POST", "/admin/v1/people/map", mapped)
    await _ask(stage, "token", resource=_tool(stage), scope="refund", keep="own")
    status, code, _ = await idp.push(DISABLED, subject)
    return Seen(
        f"{status}{code and ' ' + code}; for her: {await _refund(stage)}; for itself: {await _refund(stage, 'own')}"
    )


@chapter.step(
    "It says that the account is enabled: what was given stays dead, and she may allow anew",
    "202; refunded 7 by errand for the person",
)
async def enabled(stage: Stage) -> Seen:
    provider = stage.provider
    if provider is None:
        return Seen("no provider")
    # Events have whole seconds, and within one the stop counts.
    await asyncio.sleep(1.1)
    status, code, _ = await provider.push(ENABLED, {"format": "iss_sub", "iss": IDP, "sub": "ada"})
    refused = ""
    # The answer came from one worker; the others hear of it through the change feed.
    for _ in range(HEARD_WITHIN):
        try:
            await _log_in_again(stage)
        except RefusedError as error:
            refused = str(error)
        else:
            _, refused = await _approve(stage, *await _consent(stage))
        if "person_stopped" not in refused:
            break
        await asyncio.sleep(0.2)
    return Seen(f"{status}{code and ' ' + code}; {refused or await _refund(stage)}")


async def _log_in_again(stage: Stage) -> None:
    link = await stage.administer("POST", "/admin/v1/people/link", {"name": "Ada"})
    page = await stage.browser.go(link["url"])
    await stage.browser.submit(link["url"], "/login", page.fields())


@chapter.step("She withdraws it on the page of her grants", "withdrawn; then authentication.stopped")
async def withdrawn(stage: Stage) -> Seen:
    address = f"{stage.addresses['public']}/grants"
    page = await stage.browser.go(address)
    back = await stage.browser.submit(address, "/grants/withdraw", page.fields())
    done = "withdrawn" if back.status == 303 else back.code
    return Seen(f"{done}; then {await _refund(stage)}")
