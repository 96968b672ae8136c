"""Serving an ASGI application over TLS with this process's own X509-SVID, under uvicorn.

    async with aims.Identity() as me:
        await serve(Middleware(app, me), me, port=8450)

The certificate rotates without a restart. Clients are not asked for one: they prove themselves in each request.
Requests are bounded in size and time, answers are not: a stream may last.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, Protocol, runtime_checkable
from urllib.parse import urlsplit

import uvicorn

from aims.identifiers import SpiffeId
from aims.sdk.errors import SdkError
from aims.sdk.node_state import Settings
from aims.sdk.open_calls import App
from aims.sdk.served_connection import Crowd, ServedConnection
from aims.tls.acceptor import Acceptor, Handshakes

KEEP_ALIVE_SECONDS: Final = 30
END_SECONDS: Final = 5


class PortInUseError(SdkError, OSError):
    """Somebody listens on the port already: ``sdk.port_in_use``."""

    def __init__(self, host: str, port: int) -> None:
        SdkError.__init__(self, "port_in_use", f"{host}:{port}")
        self.errno = errno.EADDRINUSE


class Shown(Protocol):
    """What serving needs of an `aims.Identity`."""

    def server_context(self) -> ssl.SSLContext:
        """Return the TLS context to serve with."""
        ...


@runtime_checkable
class Known(Protocol):
    """What an `aims.Identity` knows of itself."""

    @property
    def spiffe_id(self) -> SpiffeId: ...
    @property
    def settings(self) -> Settings: ...


def listening(port: int, host: str = "127.0.0.1", *, shared: bool = False) -> socket.socket:
    """Return a listening socket; with ``shared`` several processes of this user may listen on the same port.

    Raises: PortInUseError, other OSError.
    """
    # The protocol is named because asyncio switches Nagle's algorithm off only then.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            opened.bind((host, port))
            opened.listen(512)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise PortInUseError(host, port) from None
        opened.setblocking(False)
    except BaseException:
        opened.close()
        raise
    return opened


async def serve(
    app: App,
    identity: Shown,
    *,
    port: int,
    host: str = "127.0.0.1",
    shared: bool = False,
    ready: Callable[[int], None] | None = None,
) -> None:
    """Serve ``app`` until the process is told to end (SIGTERM, SIGINT); ``ready`` is called with the port in use.

    Without ``ready`` one line on standard error says where, and names the resources of the policy that are there.
    ``shared`` is that of `listening`: each process must have been launched by itself, for a child has no identity.

    Raises: PortInUseError, other OSError, SdkError as `aims.Identity.server_context`.
    """
    context = identity.server_context()
    with listening(port, host, shared=shared) as opened:
        server = _Server(
            context,
            uvicorn.Config(
                app,
                http=ServedConnection,
                ws="none",
                ssl_context_factory=lambda *_: context,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=END_SECONDS,
            ),
        )
        announce = ready or (lambda at: _announce(identity, at))
        server.ready = lambda: announce(opened.getsockname()[1])
        await server.serve(sockets=[opened])


def _announce(identity: Shown, port: int) -> None:
    try:
        if not isinstance(identity, Known):
            return
        own = identity.settings.of_peer(identity.spiffe_id)
    except SdkError:  # without the node's settings nothing is known of resources; the middleware says so
        return
    here = [row.url for row in own if urlsplit(row.url).port == port]
    found = ", ".join(here) or f"port {port}, where the policy has no resource of this service: aims resource list"
    sys.stderr.write(f"{identity.spiffe_id} serves {found}\n")


class _Server(uvicorn.Server):
    """uvicorn whose connections come from our own acceptor, and which ends quietly on Ctrl-C."""

    ready: Callable[[], None] | None = None

    def __init__(self, context: ssl.SSLContext, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._context = context
        self._crowd = Crowd()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig != signal.SIGINT:
            super().handle_exit(sig, frame)
            return
        # uvicorn would raise the signal again once it has ended, and Ctrl-C would end in pages of tracebacks
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        handshakes = Handshakes(self._protocol, self._context, make_room=self._crowd.make_room)
        acceptors: Any = [Acceptor(opened, handshakes) for opened in sockets or ()]
        self.servers = acceptors
        if self.ready is not None and not self.should_exit:
            self.ready()

    def _protocol(self) -> asyncio.Protocol:
        return ServedConnection(
            crowd=self._crowd, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
