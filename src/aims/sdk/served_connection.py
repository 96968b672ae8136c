"""The HTTP/1.1 connection of a service under the SDK, with the bounds that uvicorn lacks.

A request, head and body, has `REQUEST_SECONDS` from its first octet (the first one of a connection: from the
handshake), and its line and headers have bounds. The answer may last: nothing here ends a stream. A connection is
*waiting* while no request of it is in progress; where there are too many, those that have waited longest end, so
whoever says nothing keeps nobody out.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

MOST_HEADERS: Final = 64
MOST_HEADER_OCTETS: Final = 32 * 1024
MOST_URL_OCTETS: Final = 8 * 1024
REQUEST_SECONDS: Final = 15.0
MOST_CONNECTIONS: Final = 384
"""Below the 1024 descriptors that a process usually has, so that handshakes and the application find some too."""

_MADE_FREE: Final = 16
"""Waiting connections that end together when the process is out of descriptors: one would be taken again at once."""

_OPEN: Final = frozenset({h11.IDLE, h11.SEND_RESPONSE})


class Crowd:
    """The connections of one service that wait, the one that has waited longest first."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[ServedConnection, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, connection: ServedConnection) -> None:
        """Count a connection among those that wait; one that does already keeps its place."""
        self._waiting.setdefault(connection)

    def leave(self, connection: ServedConnection) -> None:
        """Count it no more; harmless if it was not counted."""
        self._waiting.pop(connection, None)

    def end_oldest(self, count: int = 1) -> None:
        """Abort those that have waited longest."""
        for connection in list(self._waiting)[:count]:
            self.leave(connection)
            connection.transport.abort()

    def make_room(self) -> None:
        """Give descriptors back to a process that has none left."""
        self.end_oldest(_MADE_FREE)


class ServedConnection(H11Protocol):
    """uvicorn's protocol with limits on line, headers, time and number."""

    def __init__(self, *, crowd: Crowd, **given: Any) -> None:
        super().__init__(**given)
        self.conn = self._parser = _Parser(h11.SERVER, max_incomplete_event_size=MOST_HEADER_OCTETS + MOST_URL_OCTETS)
        self._crowd = crowd
        self._refused = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn itself
        if len(self.connections) >= MOST_CONNECTIONS:
            self._crowd.end_oldest()
        super().connection_made(transport)
        self._crowd.enter(self)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.leave(self)
        self._request_arrived()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Take what has arrived, and see where that leaves the request; uvicorn stops its own clock for any octet."""
        super().handle_events()
        state = self.conn.their_state
        if self._refused or state is h11.SEND_BODY or (state is h11.IDLE and self.conn.trailing_data[0]):
            self._expect_request()
        else:
            self._request_arrived()
            if state is h11.IDLE and self.timeout_keep_alive_task is None and not self.transport.is_closing():
                # the rest of a request that was answered before its end: uvicorn forgets such a connection
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        self._count()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._count()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's own words, whatever the refusal
        """Answer what is no request, or one out of bounds, if no answer has begun; the connection ends either way."""
        self._refused = True
        status = self._parser.refusal
        if self.conn.our_state in _OPEN:
            line = b"HTTP/1.1 %d %b\r\n" % (status, STATUS_PHRASES.get(status, b""))
            self.transport.write(line + b"content-length: 0\r\nconnection: close\r\n\r\n")
        if self._in_progress:
            # whatever the application still says has no place behind this answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    @property
    def _in_progress(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request, other than uvicorn declares
        return cycle is not None and not cycle.response_complete

    def _count(self) -> None:
        if self._in_progress or self.transport.is_closing():
            self._crowd.leave(self)
        else:
            self._crowd.enter(self)

    def _expect_request(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self._late)

    def _request_arrived(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        asked = self._in_progress and self.cycle.waiting_for_100_continue
        if not self._refused and (self.flow.read_paused or asked):
            self._expect_request()  # it is the application that has not read yet
        else:
            self.transport.abort()


class _Parser(h11.Connection):
    """h11 with bounds on whole requests too: it limits only what is incomplete. ``refusal`` is the status to answer."""

    refusal = 400

    def next_event(self) -> Any:
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                _check(event)
        except h11.RemoteProtocolError as error:
            self.refusal = error.error_status_hint
            raise
        return event


def _check(request: h11.Request) -> None:
    if len(request.target) > MOST_URL_OCTETS:
        raise h11.RemoteProtocolError("URL too long", error_status_hint=414)
    octets = sum(len(name) + len(value) for name, value in request.headers)
    if octets > MOST_HEADER_OCTETS or len(request.headers) > MOST_HEADERS:
        raise h11.RemoteProtocolError("headers too long", error_status_hint=431)
