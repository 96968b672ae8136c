"""An MCP server whose tools know who called them, and for whom.

Start it as a registered service: ``aims run --as tool -- python -m aims.samples.tool``. It prints one line of JSON when
it listens and one for each call of a tool.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from mcp.server.mcpserver import MCPServer

import aims
from aims.sdk.mcp import current, guarded
from aims.sdk.serving import serve

PATHS = ["/mcp", "/mcp-bound", "/mcp-oauth"]

server = MCPServer("refunds")


@server.tool()
def whoami() -> dict[str, Any]:
    """Say who called, and for whom."""
    caller = current()
    return _told(
        {
            "agent": caller.agent,
            "subject": caller.subject,
            "actors": list(caller.actors),
            "scopes": sorted(caller.scopes),
            "profile": caller.profile,
        }
    )


@server.tool()
def refund(amount: int) -> dict[str, Any]:
    """Pay ``amount`` back."""
    caller = current()
    return _told({"refunded": amount, "by": caller.agent, "for": caller.subject})


def _told(answer: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(answer), flush=True)  # noqa: T201  the program's output
    return answer


async def main(port: int, *, shared: bool = False) -> None:
    """Serve the tools until the process is told to end."""
    async with aims.Identity() as me:

        def ready(bound: int) -> None:
            _told({"ready": str(me.spiffe_id), "port": bound})

        await serve(guarded(server, me, paths=PATHS), me, port=port, shared=shared, ready=ready)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8450)
    parser.add_argument("--shared-port", action="store_true", help="let several instances listen on the port")
    options = parser.parse_args()
    asyncio.run(main(options.port, shared=options.shared_port))
