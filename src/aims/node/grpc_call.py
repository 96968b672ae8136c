"""One gRPC call on the server side: its request read under limits, its answers sent, its end given a status.

Works on grpclib's HTTP/2 stream directly. grpclib's own request handler is not used: it reads requests of any size,
decodes whatever metadata the client sends, and writes a traceback for each malformed request.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError, Message
from grpclib.const import Status
from grpclib.metadata import encode_grpc_message
from grpclib.protocol import Stream
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

from aims.errors import AimsError
from aims.node.workload_errors import WorkloadApiError
from aims.proto.framing import FrameFault, FrameRefusedError, frame, read_frame
from aims.proto.workload_service import CLIENT_MESSAGE_LIMIT, SECURITY_HEADER, Method

Headers = Iterable[tuple[bytes, bytes]]

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CONTENT_TYPES = frozenset({b"application/grpc", b"application/grpc+proto"})
_FAULTS: Final = {
    FrameFault.TRUNCATED: "call_malformed",
    FrameFault.COMPRESSED: "call_compressed",
    FrameFault.TOO_LARGE: "call_too_large",
}
# Where an error of these layers comes up, the node cannot answer now; the caller has done nothing wrong.
_TRANSIENT_LAYERS = frozenset({"fetch", "storage", "keys", "server"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Bounds of one call, in octets and seconds."""

    request_octets: int = 64 * 1024
    response_octets: int = CLIENT_MESSAGE_LIMIT
    request_seconds: float = 10.0  # until the request message is complete
    answer_seconds: float = 30.0  # until the first (or only) answer is ready
    send_seconds: float = 30.0  # until the client has taken one answer


@dataclass(frozen=True, slots=True)
class Opening:
    """What the headers of a well-formed request say; ``timeout`` in seconds, None without a deadline."""

    method: Method
    timeout: float | None


def status_of(error: AimsError) -> Status:
    """Return the gRPC status of an error: its reason's own, or else the one that its layer stands for."""
    named = Status.__members__.get(error.standard)
    if named is not None:
        return named
    return Status.UNAVAILABLE if error.layer in _TRANSIENT_LAYERS else Status.PERMISSION_DENIED


def message_of(error: AimsError) -> str:
    """Return what the client is told: code, sentence and hint, and the cause's code; never the private detail."""
    told = f"{error.code}: {error.sentence}"
    if isinstance(error.__cause__, AimsError):
        told += f" {error.__cause__.code}: {error.__cause__.sentence}"
    return f"{told} {error.hint}" if error.hint else told


def read_headers(headers: Headers, methods: Mapping[str, Method]) -> Opening:
    """Judge the headers of a request to one of ``methods``, which are keyed by path.

    1. the security header, exactly once and octet for octet; 2. POST and gRPC; 3. a known method; 4. the deadline.
    Raises ``WorkloadApiError`` for the first that fails. All other metadata is ignored.
    """
    fields: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        fields.setdefault(name, []).append(value)
    # 1
    expected_name, expected_value = (part.encode("ascii") for part in SECURITY_HEADER)
    if fields.get(expected_name) != [expected_value]:
        raise WorkloadApiError("security_header")
    # 2
    content_type = fields.get(b"content-type", [])
    if fields.get(b":method") != [b"POST"] or len(content_type) != 1 or content_type[0] not in _CONTENT_TYPES:
        raise WorkloadApiError("call_malformed", "not a gRPC request")
    # 3
    path = fields.get(b":path", [])
    if len(path) != 1:
        raise WorkloadApiError("call_malformed", "path")
    method = methods.get(path[0].decode("latin-1"))
    if method is None:
        raise WorkloadApiError("unknown_method")
    # 4
    timeouts = fields.get(b"grpc-timeout", [])
    if not timeouts:
        return Opening(method, None)
    matched = _TIMEOUT.fullmatch(timeouts[0]) if len(timeouts) == 1 else None
    if matched is None:
        raise WorkloadApiError("call_malformed", "grpc-timeout")
    return Opening(method, int(matched[1]) * _UNITS[matched[2]])


class ClientGoneError(Exception):
    """The client has left, or did not take an answer in time; nothing more can be sent."""


class Call:
    """The server's end of one call. Every way out goes through ``finish``, once."""

    __slots__ = ("_limits", "_opened", "_stream")

    def __init__(self, stream: Stream, limits: CallLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._opened = False

    async def read(self, method: Method) -> Message:
        """Read the one request message; what follows it is never read.

        Raises ``WorkloadApiError``: ``call_malformed``, ``call_too_large``, ``call_compressed``, ``call_slow``.
        """
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                request = await self._next(method)
        except TimeoutError as error:
            raise WorkloadApiError("call_slow") from error
        if request is None:
            raise WorkloadApiError("call_malformed", "no message")
        return request

    async def requests(self, method: Method) -> AsyncGenerator[Message, None]:
        """Yield request messages until the client has sent the last; it may be silent for as long as it likes.

        Raises ``WorkloadApiError``: ``call_malformed``, ``call_too_large``, ``call_compressed``.
        """
        while (request := await self._next(method)) is not None:
            yield request

    async def _next(self, method: Method) -> Message | None:
        try:
            octets = await read_frame(self._stream, self._limits.request_octets)
            return None if octets is None else method.request.FromString(octets)
        except FrameRefusedError as error:
            raise WorkloadApiError(_FAULTS[error.fault]) from error
        except DecodeError as error:
            raise WorkloadApiError("call_malformed", "protobuf") from error

    async def send(self, message: Message) -> None:
        """Send one answer.

        Raises:
            WorkloadApiError: ``response_too_large``; nothing has been sent then.
            ClientGoneError: the client has left, or did not take the answer in time.
        """
        octets = message.SerializeToString()
        if len(octets) > self._limits.response_octets:
            raise WorkloadApiError("response_too_large", f"{len(octets)} octets")
        try:
            async with asyncio.timeout(self._limits.send_seconds):
                if not self._opened:
                    await self._stream.send_headers(_response_headers())
                    self._opened = True
                await self._stream.send_data(frame(octets))
        except TimeoutError as error:
            self._reset(ErrorCodes.CANCEL)
            raise ClientGoneError("the client does not read") from error
        except ProtocolError as error:
            raise ClientGoneError("the stream is closed") from error

    async def finish(self, error: AimsError | None) -> None:
        """End the call: OK after the one answer of a unary method, otherwise with the status of ``error``."""
        trailers = [] if self._opened else _response_headers()
        if error is None:
            trailers.append(("grpc-status", str(Status.OK.value)))
        else:
            trailers.append(("grpc-status", str(status_of(error).value)))
            trailers.append(("grpc-message", encode_grpc_message(message_of(error))))
        try:
            async with asyncio.timeout(self._limits.send_seconds):
                await self._stream.send_headers(trailers, end_stream=True)
        except (ProtocolError, TimeoutError):
            self._reset(ErrorCodes.CANCEL)
            return
        # The client may still be sending; it need not.
        self._reset(ErrorCodes.NO_ERROR)

    def _reset(self, code: ErrorCodes) -> None:
        if self._stream.closable:
            self._stream.reset_nowait(code)


def _response_headers() -> list[tuple[str, str]]:
    return [(":status", "200"), ("content-type", "application/grpc"), ("grpc-accept-encoding", "identity")]
