"""MCP with the official SDK: a server whose tools know their caller, and a client that proves itself.

    server = MCPServer("refunds")

    @server.tool()
    def refund(amount: int) -> str:
        return f"{current().subject} gets {amount}"

    async with aims.Identity() as me:
        await serve(guarded(server, me), me, port=8450)

and, in the agent::

    async with aims.Identity() as me, connect(me, "https://localhost:8450/mcp") as tools:
        await tools.call_tool("refund", {"amount": 5})

Every HTTP request is authenticated by itself. A session belongs to the agent, subject and grant of its first request;
for any other it does not exist (404).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken

from aims.errors import AimsError
from aims.sdk.asgi import Middleware, Service
from aims.sdk.caller import SCOPE_KEY, Caller, current
from aims.sdk.errors import CallRefusedError
from aims.sdk.httpx2 import refusal
from aims.sdk.open_calls import App, Receive, Scope, Send

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

    from aims.sdk.identity import Identity
    from aims.sdk.tokens import Token

__all__ = ["connect", "current", "guarded"]

PATH: Final = "/mcp"
STREAM_SECONDS: Final = 300.0
MAX_REFUSAL: Final = 8192  # octets


def guarded(
    server: MCPServer[Any],
    identity: Service,
    *,
    paths: Sequence[str] = (PATH,),
    open_paths: Collection[str] = (),
    lone: bool = False,
    **options: Any,
) -> App:
    """Return the server as an ASGI application behind the middleware, at each of ``paths``.

    ``open_paths`` and ``lone`` are those of `Middleware`, ``options`` those of `MCPServer.streamable_http_app`.
    """
    app = server.streamable_http_app(streamable_http_path=PATH, **options)
    return Middleware(_Owned(cast("App", app), paths), identity, open_paths=open_paths, lone=lone)


@asynccontextmanager
async def connect(
    me: Identity, url: str, *, token: Token | None = None, **options: Any
) -> AsyncGenerator[Client, None]:
    """Connect to the MCP server at ``url``, whose SPIFFE ID the resource map names; ``options`` are the client's.

    A resource that takes access tokens needs ``token``, from `aims.Identity.token` or ``exchange``.

    Raises:
        SdkError: as `aims.Identity.client`; ``peer_unreachable``; ``peer_refused`` for an impostor;
            `CallRefusedError` when the server's middleware refuses, now or in the middle.
    """
    seen: list[CallRefusedError] = []

    async def note(response: httpx2.Response) -> None:
        if response.status_code >= 400 and int(response.headers.get("content-length", MAX_REFUSAL)) < MAX_REFUSAL:
            await response.aread()
            refused = refusal(response)
            if refused is not None:
                seen[:] = [refused]

    timeout = httpx2.Timeout(30.0, connect=5.0, read=STREAM_SECONDS)
    try:
        async with (
            me.client(token=token, timeout=timeout, event_hooks={"response": [note]}) as http,
            Client(streamable_http_client(url, http_client=http), **options) as client,
        ):
            yield client
    except (BaseExceptionGroup, MCPError) as error:
        found = _plain(error, seen)
        # What says by itself what to do gets no chain of tracebacks of the libraries in between.
        raise found from (None if isinstance(found, AimsError) else error)


def _plain(error: BaseException, seen: list[CallRefusedError]) -> BaseException:
    """Take the one cause out of the groups that the transport wraps it in."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return seen[0] if seen and isinstance(error, MCPError) else error


class _Owned:
    """Tells the MCP server who owns a session, in the words that it compares, and joins several paths into its one."""

    __slots__ = ("_app", "_paths")

    def __init__(self, app: App, paths: Sequence[str]) -> None:
        self._app = app
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope.get(SCOPE_KEY)
        if isinstance(caller, Caller):
            scope = {**scope, "user": _user(caller)}
            if scope["path"] in self._paths:
                scope.update(path=PATH, raw_path=PATH.encode("ascii"))
        await self._app(scope, receive, send)


def _user(caller: Caller) -> AuthenticatedUser:
    agent, subject, grant = caller.session
    token = AccessToken(
        token="",
        client_id=agent,
        subject=subject,
        scopes=sorted(caller.scopes),
        claims=None if grant is None else {"iss": grant},
    )
    return AuthenticatedUser(token)
