"""An agent that works with rights: it asks for tokens, hands parts of them on, takes them up and uses them.

Start it as a registered agent: ``aims run --as NAME -- python -m aims.samples.clerk``. Commands on standard input, each
answered by one line; ``keep`` is the name under which a token stays in this process::

    {"do": "token", "resource": URL, "scope": "refund", "keep": "mine"}
    {"do": "delegate", "of": "mine", "to": "spiffe://.../agents/b", "scope": "refund"}    gives the text to hand over
    {"do": "exchange", "text": ..., "resource": URL, "scope": "refund", "keep": "mine"}
    {"do": "call", "of": "mine", "url": URL, "tool": "refund", "arguments": {"amount": 5}}
    {"do": "present", "text": ..., "url": URL}    somebody's token with a proof by the own key
    {"do": "ask", "resource": URL, "scope": "refund", "redirect_uri": URI}    where to send a person
    {"do": "redeem", "answer": URL, "keep": "mine"}    what the person's browser came back with
    {"do": "transact", "of": "mine", "purpose": "pay", "details": {...}, "keep": "payment"}
    {"do": "post", "url": URL, "body": {...}, "with": "payment"}    as ``carry`` "txn", or hostile: "bearer", "nothing"
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import httpx2

import aims
from aims.jose.door import decode
from aims.samples.lines import obey, say
from aims.sdk.authorization_code import PersonAsked
from aims.sdk.httpx2 import KnowingTransport
from aims.sdk.tokens import Token

if TYPE_CHECKING:
    from mcp import Client

SHOWN = ("sub", "client_id", "aud", "scope", "act", "may_act", "grant_id")


class Clerk:
    """The commands of one process."""

    def __init__(self, me: aims.Identity) -> None:
        self._me = me
        self._kept: dict[str, Token] = {}
        self._transactions: dict[str, str] = {}
        self._asked: PersonAsked | None = None

    async def token(self, resource: str, scope: str, keep: str = "last") -> dict[str, Any]:
        return self._keep(keep, await self._me.token(resource=resource, scope=scope))

    async def delegate(self, to: str, scope: str, of: str = "last") -> dict[str, Any]:
        made = await self._me.delegate(self._kept[of], to=to, scope=scope)
        return {"text": made.text, **_shown(made.text)}

    async def exchange(self, text: str, resource: str, scope: str, keep: str = "last") -> dict[str, Any]:
        return self._keep(keep, await self._me.exchange(text, resource=resource, scope=scope))

    async def hand_on(self, text: str, to: str, scope: str) -> dict[str, Any]:
        made = await self._me.delegate(text, to=to, scope=scope)
        return {"text": made.text, **_shown(made.text)}

    async def call(self, url: str, tool: str, arguments: dict[str, Any] | None = None, of: str = "last") -> Any:
        async with _connect(self._me, url, self._kept[of]) as tools:
            return (await tools.call_tool(tool, arguments or {})).structured_content

    async def present(self, text: str, url: str, tool: str = "whoami") -> Any:
        mine = next(iter(self._kept.values()))
        stolen = Token(text=text, audience=url, scopes=mine.scopes, expires=mine.expires, key=mine.key)
        async with _connect(self._me, url, stolen) as tools:
            return (await tools.call_tool(tool, {})).structured_content

    async def ask(self, resource: str, scope: str, redirect_uri: str) -> dict[str, Any]:
        self._asked = await self._me.ask_person(resource=resource, scope=scope, redirect_uri=redirect_uri)
        return {"url": self._asked.url}

    async def redeem(self, answer: str, keep: str = "last") -> dict[str, Any]:
        if self._asked is None:
            return {"refused": "nobody was asked"}
        return self._keep(keep, await self._me.redeem(self._asked, answer))

    async def transact(
        self, purpose: str, details: dict[str, Any], of: str = "last", keep: str = "txn"
    ) -> dict[str, Any]:
        text = await self._me.transaction(self._kept[of], purpose=purpose, details=details)
        self._transactions[keep] = text
        claims = decode(text, 16 * 1024)[1]
        return {name: claims[name] for name in ("sub", "scope", "tctx", "req_wl", "txn") if name in claims}

    async def post(self, url: str, body: dict[str, Any], using: str = "txn", carry: str = "txn") -> dict[str, Any]:
        text = self._transactions[using]
        options: dict[str, Any] = {"txn_token": text} if carry == "txn" else {}
        if carry == "bearer":
            # What a thief of the token would do: no proof, the token in the place of a credential.
            transport = KnowingTransport(lambda where: self._me.ssl_context(url=where))
            async with httpx2.AsyncClient(transport=transport, trust_env=False) as http:
                answer = await http.post(url, json=body, headers={"authorization": f"Bearer {text}"})
        else:
            async with self._me.client(**options) as http:
                answer = await http.post(url, json=body)
        told = answer.json() if answer.content.startswith(b"{") else {}
        return {"status": answer.status_code, "code": told.get("error"), **told}

    async def text(self, of: str = "last") -> dict[str, Any]:
        return {"text": self._kept[of].text}

    def _keep(self, name: str, token: Token) -> dict[str, Any]:
        self._kept[name] = token
        return _shown(token.text)


def _connect(me: aims.Identity, url: str, token: Token) -> AbstractAsyncContextManager[Client]:
    # The MCP SDK takes a second to load, and most clerks never call a tool.
    from aims.sdk.mcp import connect

    return connect(me, url, token=token)


def _shown(text: str) -> dict[str, Any]:
    claims = decode(text, 16 * 1024)[1]
    return {name: claims[name] for name in SHOWN if name in claims} | {"seconds": claims["exp"] - claims["iat"]}


async def main() -> None:
    """Do as told until standard input ends."""
    async with aims.Identity() as me:
        clerk = Clerk(me)
        names = (
            "token",
            "delegate",
            "exchange",
            "hand_on",
            "call",
            "present",
            "text",
            "ask",
            "redeem",
            "transact",
            "post",
        )
        say({"ready": str(me.spiffe_id)})
        await obey({name: getattr(clerk, name) for name in names})


if __name__ == "__main__":
    asyncio.run(main())
