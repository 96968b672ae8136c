"""A small agent: it calls tools of MCP servers with its own identity, and says what it saw.

Start it as a registered agent: ``aims run --as NAME -- python -m aims.samples.agent``. Commands on standard input, each
answered by one line::

    {"do": "call", "url": "https://localhost:8450/mcp", "tool": "whoami", "arguments": {}}
    {"do": "whoami"}
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

        async def call(url: str, tool: str = "whoami", arguments: dict[str, Any] | None = None) -> Any:
            async with connect(me, url) as tools:
                result = await tools.call_tool(tool, arguments or {})
                return result.structured_content

        async def whoami() -> str:
            return str(me.spiffe_id)

        say({"ready": str(me.spiffe_id)})
        await obey({"call": call, "whoami": whoami})


if __name__ == "__main__":
    asyncio.run(main())
