"""An agent that works with rights: it asks for tokens, hands parts of them on, takes them up and uses them.

Start it as a registered agent: ``aims run --as NAME -- python -m aims.samples.clerk``. Commands on standard input, each
answered by one line; ``keep`` is the name under which a token stays in this process::

    {"do": "token", "resource": URL, "scope": "refund", "keep": "mine"}
    {"do": "delegate", "of": "mine", "to": "spiffe://.../agents/b", "scope": "refund"}    gives the text to hand over
    {"do": "exchange", "text": ..., "resource": URL, "scope": "refund", "keep": "mine"}
    {"do": "call", "of": "mine", "url": URL, "tool": "refund", "arguments": {"amount": 5}}
    {"do": "present", "text": ..., "url": URL}    somebody's token with a proof by the own key
"""

from __future__ import annotations

import asyncio
from typing import Any

import aims
from aims.jose.door import decode
from aims.samples.lines import obey, say
from aims.sdk.mcp import connect
from aims.sdk.tokens import Token

SHOWN = ("sub", "client_id", "aud", "scope", "act", "may_act", "grant_id")


class Clerk:
    """The commands of one process."""

    def __init__(self, me: aims.Identity) -> None:
        self._me = me
        self._kept: dict[str, Token] = {}

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
        async with connect(self._me, url, token=self._kept[of]) as tools:
            return (await tools.call_tool(tool, arguments or {})).structured_content

    async def present(self, text: str, url: str, tool: str = "whoami") -> Any:
        mine = next(iter(self._kept.values()))
        stolen = Token(text=text, audience=url, scopes=mine.scopes, expires=mine.expires, key=mine.key)
        async with connect(self._me, url, token=stolen) as tools:
            return (await tools.call_tool(tool, {})).structured_content

    async def text(self, of: str = "last") -> dict[str, Any]:
        return {"text": self._kept[of].text}

    def _keep(self, name: str, token: Token) -> dict[str, Any]:
        self._kept[name] = token
        return _shown(token.text)


def _shown(text: str) -> dict[str, Any]:
    claims = decode(text, 16 * 1024)[1]
    return {name: claims[name] for name in SHOWN if name in claims} | {"seconds": claims["exp"] - claims["iat"]}


async def main() -> None:
    """Do as told until standard input ends."""
    async with aims.Identity() as me:
        clerk = Clerk(me)
        names = ("token", "delegate", "exchange", "hand_on", "call", "present", "text")
        say({"ready": str(me.spiffe_id)})
        await obey({name: getattr(clerk, name) for name in names})


if __name__ == "__main__":
    asyncio.run(main())
