"""The HTTP/1.1 connection of every listener: bounds that uvicorn lacks, and who is at the other end.

uvicorn neither limits headers nor shows an application its TLS or unix peer, so this subclass of its httptools
protocol does both. What it learns of the peer stands in the scope for ``peer_of`` to find, as a ``UnixPeer`` or the
connection's ``ssl.SSLObject``; nothing that a client sends can put it there.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from aims.clock import SystemClock
from aims.credentials.x509_svid import X509Svid
from aims.tls import TlsError, peer

MOST_HEADERS: Final = 64
MOST_HEADER_OCTETS: Final = 32 * 1024
MOST_URL_OCTETS: Final = 8 * 1024
REQUEST_SECONDS: Final = 15.0
PEER: Final = "aims.peer"

_UCRED = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class UnixPeer:
    """Who connected to a unix socket, as the kernel noted it at ``connect()``."""

    pid: int
    uid: int
    gid: int


def unix_peer(connection: socket.socket) -> UnixPeer:
    """Read SO_PEERCRED of a connected unix socket."""
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return UnixPeer(pid, uid, gid)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits on line, headers and time, and with the peer in the scope."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn itself
        super().connection_made(transport)
        self._peer: object = transport.get_extra_info("ssl_object")
        connection = transport.get_extra_info("socket")
        if self._peer is None and connection is not None and connection.family == socket.AF_UNIX:
            # asyncio hides the options of its sockets behind a wrapper; the descriptor is the same connection.
            with socket.socket(fileno=connection.fileno()) as view:
                try:
                    self._peer = unix_peer(view)
                finally:
                    view.detach()
        self._end = self._at_end_of_certificate()
        self._octets = 0
        self._in_head = self._begun = False
        self._unfinished = 0
        self._refused = False
        self._deadline: asyncio.TimerHandle | None = None
        self._expect_request()

    def end_unless(self, accepts: Callable[[Any], bool]) -> None:
        """Abort the connection of a TLS peer who is not accepted any more."""
        if not accepts(self._peer):
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which shows a header only once it is whole and skips empty lines in silence."""
        # uvicorn stops its own clock for any octet, also for those that begin no request.
        self._expect_request()
        in_head, self._begun = self._in_head, False
        super().data_received(data)
        if in_head and self._in_head and not self._begun and not self._refused:
            self._unfinished += len(data)
            if self._unfinished > MOST_HEADER_OCTETS + MOST_URL_OCTETS:
                self._answer_and_close("431 Request Header Fields Too Large")

    def connection_lost(self, exc: Exception | None) -> None:
        self._request_arrived()
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._octets = self._unfinished = 0
        self._in_head = self._begun = True
        self._expect_request()
        self.scope["extensions"] = {PEER: {"is": self._peer}}

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MOST_URL_OCTETS:
            self._refuse("414 URI Too Long")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._octets += len(name) + len(value)
        if self._octets > MOST_HEADER_OCTETS or len(self.headers) > MOST_HEADERS:
            self._refuse("431 Request Header Fields Too Large")

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._request_arrived()
        super().on_message_complete()

    def _at_end_of_certificate(self) -> asyncio.TimerHandle | None:
        """A connection lives no longer than the certificate that it was opened with: the handshake looks only once."""
        try:
            ends = peer(self._peer, X509Svid).not_after
        except TlsError:
            return None
        return self.loop.call_later(max(0.0, ends - SystemClock().now()), self.transport.abort)

    def _expect_request(self) -> None:
        # A connection that sends its request a byte an hour holds a slot for ever; idle ones are uvicorn's business.
        if self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _request_arrived(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def send_400_response(self, msg: str) -> None:
        if not self._refused:  # our own answer is out already; this is uvicorn's reaction to the ended parser
            super().send_400_response(msg)

    def _refuse(self, status: str) -> None:
        self._answer_and_close(status)
        raise _RefusedError

    def _answer_and_close(self, status: str) -> None:
        self._refused = True
        self.transport.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode("ascii"))
        self.transport.close()


class _RefusedError(Exception):
    """Ends the parser's callback chain; the parser wraps it into its own error."""


def peer_of(scope: Any) -> object:
    """Return the ``UnixPeer`` or SSL object of the connection a request came over, or None."""
    return scope.get("extensions", {}).get(PEER, {}).get("is")
