"""The guard around grpclib: what may connect, what a connection may hold, and in which order a call is judged.

A call: 1. headers (``grpc_call.read_headers``), before anything else the security header; 2. the caller, by the
kernel's word; 3. the request message, its length first; 4. the answers. Nothing of a refused call is kept.

On top of what h2 does, a connection is bounded so: 100 calls at once, frames and headers of 16 KiB, 64 KiB of unread
data; a client that does not read is not read from, so that acknowledgements of floods cannot pile up; frames of types
that HTTP/2 tells us to ignore, and empty ones, cost nothing. The transport is asyncio's public ``get_extra_info``; of
grpclib only the names without an underscore are used.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from traceback import format_tb
from typing import Any, Generic

from google.protobuf.message import Message
from grpclib.config import Configuration
from grpclib.protocol import AbstractHandler, Connection, EventsProcessor, H2Protocol, Stream
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from aims.errors import AimsError
from aims.node.connection_limits import ConnectionLimits, Seat, Seats
from aims.node.grpc_call import Call, CallLimits, ClientGoneError, Headers, read_headers
from aims.node.http2_frames import FrameLengths
from aims.node.identities import C, PeerOf
from aims.node.workload_errors import WorkloadApiError
from aims.proto.workload_service import Method

_log = logging.getLogger(__name__)

Answers = Callable[[C, Any], AsyncGenerator[Message, None]]
"""Serves one method: caller and request message in, answers out; one answer for a unary method.

A method that ``asks`` is given the request messages as an asynchronous generator instead, and ends with it.
"""

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_MAX_HEADER_OCTETS = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardLimits:
    """Bounds of a server, in seconds where nothing else is said."""

    call: CallLimits = field(default_factory=CallLimits)
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    calls_per_connection: int = 100
    handshake_seconds: float = 5.0  # until the first request
    idle_seconds: float = 300.0  # between calls


class GuardedServer(Generic[C]):
    """Serves the methods of ``answers`` on one listening socket. Belongs to one event loop."""

    def __init__(
        self, answers: Mapping[Method, Answers[C]], peer_of: PeerOf[C], limits: GuardLimits | None = None
    ) -> None:
        self._answers = answers
        self._methods = {method.path: method for method in answers}
        self._peer_of = peer_of
        self._limits = limits or GuardLimits()
        self._seats = Seats(self._limits.connections)
        self._connections: set[_Connection[C]] = set()
        self._server: asyncio.Server | None = None
        self._stopping = False

    async def start(self, listening: socket.socket) -> None:
        """Begin to accept; ``listening`` is bound, listening and not blocking."""
        self._server = await asyncio.get_running_loop().create_unix_server(self._accept, sock=listening)

    async def stop(self, grace: float = 2.0) -> None:
        """Accept no more, end every call with UNAVAILABLE, then close; at most ``grace`` seconds for polite clients."""
        self._stopping = True
        if self._server is not None:
            self._server.close()
        tasks = {task for connection in self._connections for task in connection.calls.tasks}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        closing = [connection.closed for connection in self._connections]
        for connection in list(self._connections):
            connection.hang_up()
        if closing:
            _, late = await asyncio.wait(closing, timeout=grace)
            if late:
                for connection in list(self._connections):
                    connection.abort()
                await asyncio.wait(late, timeout=grace)
        if self._server is not None:
            await self._server.wait_closed()

    def _accept(self) -> _Connection[C]:
        return _Connection(self._limits, self._serve, self._seats, self._connections, self._peer_of)

    async def _serve(self, connection: _Connection[C], stream: Stream, headers: Headers) -> None:
        call = Call(stream, self._limits.call)
        try:
            error = await self._outcome(connection, call, headers)
        except ClientGoneError:
            return
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            error = WorkloadApiError("api_stopping")
        except Exception as failure:  # noqa: BLE001 -- a defect of ours, not the client's; it ends this call alone
            # Without the exception's text: protobuf quotes the value that it refuses, which may be a key.
            where = "".join(format_tb(failure.__traceback__))
            _log.error("a call of the Workload API failed: %s\n%s", type(failure).__name__, where)
            error = WorkloadApiError("state_invalid")
        await call.finish(error)

    async def _outcome(self, connection: _Connection[C], call: Call, headers: Headers) -> AimsError | None:
        try:
            # 1
            opening = read_headers(headers, self._methods)
            if self._stopping:
                return WorkloadApiError("api_stopping")
            async with _deadline(opening.timeout, "deadline"):
                # 2
                caller = connection.caller()
                if opening.method.asks:
                    # 3 and 4, message by message
                    await self._converse(call, opening.method, caller)
                else:
                    # 3
                    request = await call.read(opening.method)
                    # 4
                    await self._answer(call, opening.method, caller, request)
        except AimsError as error:
            _log.info("call refused: %s", error)
            return error
        return None

    async def _converse(self, call: Call, method: Method, caller: C) -> None:
        async with (
            contextlib.aclosing(call.requests(method)) as requests,
            contextlib.aclosing(self._answers[method](caller, requests)) as answers,
        ):
            async for answer in answers:
                await call.send(answer)

    async def _answer(self, call: Call, method: Method, caller: C, request: Message) -> None:
        async with contextlib.aclosing(self._answers[method](caller, request)) as answers:
            async with _deadline(self._limits.call.answer_seconds, "not_ready"):
                first = await anext(answers, None)
            if first is None:
                raise WorkloadApiError("state_invalid", f"{method.name} gave no answer")
            await call.send(first)
            if method.streams:
                async for answer in answers:
                    await call.send(answer)
                # Streams never end with OK: clients take that as the end of their watch.
                raise WorkloadApiError("not_ready", "the source of states ended")


@contextlib.asynccontextmanager
async def _deadline(seconds: float | None, reason: str) -> AsyncGenerator[None, None]:
    timeout = asyncio.timeout(seconds)
    try:
        async with timeout:
            yield
    except TimeoutError as error:
        if not timeout.expired():
            raise
        raise WorkloadApiError(reason) from error


class _Calls(AbstractHandler):
    """The calls of one connection; grpclib tells of new and of cancelled ones."""

    def __init__(self, limit: int, serve: Callable[[Stream, Headers], Any], changed: Callable[[], None]) -> None:
        self._limit = limit
        self._serve = serve
        self._changed = changed
        self._tasks: dict[Stream, asyncio.Task[None]] = {}

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return list(self._tasks.values())

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def accept(self, stream: Stream, headers: Any, release_stream: Callable[[], None]) -> None:
        # A call that the client has cancelled counts until its task is done, so that opening and cancelling in a
        # loop (HTTP/2 rapid reset) gets no further than holding calls open.
        if len(self._tasks) >= self._limit:
            if stream.closable:
                stream.reset_nowait(ErrorCodes.REFUSED_STREAM)
            release_stream()
            return
        task = asyncio.get_running_loop().create_task(self._serve(stream, headers))
        self._tasks[stream] = task
        task.add_done_callback(lambda _: self._done(stream, release_stream))
        self._changed()

    def _done(self, stream: Stream, release_stream: Callable[[], None]) -> None:
        task = self._tasks.pop(stream)
        release_stream()
        self._changed()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a call of the Workload API could not be ended", exc_info=error)

    def cancel(self, stream: Stream) -> None:
        task = self._tasks.get(stream)
        if task is not None:
            task.cancel()

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()


class _Connection(H2Protocol, Generic[C]):
    """One client connection, from accept to close."""

    def __init__(
        self,
        limits: GuardLimits,
        serve: Callable[[_Connection[C], Stream, Headers], Any],
        seats: Seats,
        register: set[_Connection[C]],
        peer_of: PeerOf[C],
    ) -> None:
        self.calls = _Calls(
            limits.calls_per_connection, lambda stream, headers: serve(self, stream, headers), self._calls_changed
        )
        # Header values stay octets: decoding them would let a client raise UnicodeDecodeError inside h2.
        h2_config = H2Configuration(client_side=False, header_encoding=None, validate_inbound_headers=False)
        super().__init__(self.calls, Configuration().__for_server__(), h2_config)
        self._frames = FrameLengths()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._limits = limits
        self._seats = seats
        self._register = register
        self._peer_of = peer_of
        self._transport: asyncio.Transport | None = None
        self._seat: Seat | None = None
        self._caller: C | None = None
        self._timer: asyncio.TimerHandle | None = None

    def caller(self) -> C:
        """Recognise who connected; once it has succeeded, the same value for the life of the connection."""
        if self._caller is None:
            try:
                with self._duplicate() as sock:
                    self._caller = self._peer_of(sock)
            except OSError as error:
                raise WorkloadApiError("not_ready", f"the caller cannot be recognised: {error.strerror}") from error
        return self._caller

    def hang_up(self, code: int = ErrorCodes.NO_ERROR) -> None:
        """Say goodbye (GOAWAY) and close once what was written has left, or when the client does not take it."""
        if self._transport is None or self._transport.is_closing():
            return
        self._arm(self._limits.handshake_seconds, self.abort)
        self.h2.close_connection(code)
        self._transport.write(self.h2.data_to_send())
        self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- narrows the type that asyncio promises
        self._transport = transport
        self._register.add(self)
        pid, uid, _ = _CREDENTIALS.unpack(
            transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        self._seat = Seat(uid=uid, pid=pid, idle=lambda: not self.calls, evict=self.abort)
        self._start(transport)
        if not self._seats.take(self._seat):
            _log.warning("connection refused: uid %d, pid %d has too many", uid, pid)
            transport.abort()
            return
        self._arm(self._limits.handshake_seconds)

    def _start(self, transport: asyncio.Transport) -> None:
        self.h2 = H2Connection(config=self.h2_config)
        self.h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: self._limits.calls_per_connection,
                SettingCodes.MAX_HEADER_LIST_SIZE: _MAX_HEADER_OCTETS,
            },
        )
        self.h2.decoder.max_header_list_size = _MAX_HEADER_OCTETS
        self.h2.initiate_connection()
        self.connection = Connection(self.h2, transport, config=self.config)
        self.connection.flush()
        self.processor = EventsProcessor(self.calls, self.connection)

    def data_received(self, data: bytes) -> None:
        if not self._frames.allow(data):
            self.hang_up(ErrorCodes.FRAME_SIZE_ERROR)
            return
        try:
            events = self.connection.feed(data)
        except ProtocolError as error:
            self.hang_up(error.error_code)
            return
        self.connection.flush()
        for event in events:
            if isinstance(event, DataReceived) and not event.flow_controlled_length:
                continue  # grpclib takes an empty frame for the end, and keeps it
            if self.connection.is_closing():
                return
            if type(event) in self.processor.processors:
                self.processor.process(event)
        if not self.connection.is_closing():
            self.connection.flush()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._seat is not None:
            self._seats.leave(self._seat)
        self._register.discard(self)
        super().connection_lost(exc)
        if self._caller is not None:
            # The calls were cancelled just now and run once more to clean up; what they know of the caller goes last.
            asyncio.get_running_loop().create_task(self._release(self._caller, self.calls.tasks))
        if not self.closed.done():
            self.closed.set_result(None)

    # own

    async def _release(self, caller: C, tasks: list[asyncio.Task[None]]) -> None:
        if tasks:
            await asyncio.wait(tasks)
        caller.close()

    def _duplicate(self) -> socket.socket:
        if self._transport is None or self._transport.is_closing():
            raise OSError("the connection is closed")
        descriptor = os.dup(self._transport.get_extra_info("socket").fileno())
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=descriptor)

    def _calls_changed(self) -> None:
        if self.calls:
            self._arm(None)
        else:
            self._arm(self._limits.idle_seconds)

    def _arm(self, seconds: float | None, then: Callable[[], None] | None = None) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if seconds is None else loop.call_later(seconds, then or self.hang_up)
