"""A small agent: it calls tools of MCP servers with its own identity, and says what it saw.

Start it as a registered agent: ``aims run --as NAME -- python -m aims.samples.agent``. Commands on standard input, each
answered by one line::

    {"do": "call", "url": "https://localhost:8450/mcp", "tool": "whoami", "arguments": {}}
    {"do": "call", "url": "https://localhost:8450/mcp-oauth", "tool": "refund", "arguments": {...}, "scope": "refund"}
    {"do": "whoami"}

With ``scope`` the agent asks for an access token first, and presents that.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aims
from aims.samples.lines import obey, say
from aims.sdk.mcp import connect


async def main() -> None:
    """Do as told until standard input ends."""
    async with aims.Identity() as me:

        async def call(url: str, tool: str = "whoami", arguments: dict[str, Any] | None = None, scope: str = "") -> Any:
            token = await me.token(resource=url, scope=scope) if scope else None
            async with connect(me, url, token=token) as tools:
                result = await tools.call_tool(tool, arguments or {})
                return result.structured_content

        async def whoami() -> str:
            return str(me.spiffe_id)

        say({"ready": str(me.spiffe_id)})
        await obey({"call": call, "whoami": whoami})


if __name__ == "__main__":
    asyncio.run(main())
