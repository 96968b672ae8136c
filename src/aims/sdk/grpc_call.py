"""One call to a door of the node: messages read under limits, and every failure told as an ``SdkError``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from google.protobuf.message import DecodeError, Message
from grpclib.client import Channel, Stream
from grpclib.const import Cardinality, Status
from grpclib.encoding.proto import ProtoCodec
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.metadata import Deadline
from h2.exceptions import ProtocolError
from multidict import MultiDict

from aims.proto import workload_service as service
from aims.proto.framing import FrameFault, FrameRefusedError, read_frame
from aims.sdk.errors import SdkError

_REASONS: Final = {
    Status.PERMISSION_DENIED: "denied",
    Status.INVALID_ARGUMENT: "refused",
    Status.RESOURCE_EXHAUSTED: "refused",
    Status.UNIMPLEMENTED: "unsupported",
    Status.DEADLINE_EXCEEDED: "deadline",
}
_CARDINALITIES: Final = {
    (False, False): Cardinality.UNARY_UNARY,
    (False, True): Cardinality.UNARY_STREAM,
    (True, True): Cardinality.STREAM_STREAM,
}  # by whether the client sends several, and whether the server does


class BoundedStream(Stream[Message, Message]):
    """A call of grpclib that refuses a large message by its length instead of taking it into memory."""

    def __init__(self, channel: Channel, method: service.Method, deadline: Deadline | None) -> None:
        self._response = method.response
        super().__init__(
            channel,
            method.path,
            cast("Any", MultiDict([service.SECURITY_HEADER])),  # grpclib's own name for it is private
            _CARDINALITIES[method.asks, method.streams],
            method.request,
            method.response,
            codec=ProtoCodec(),
            status_details_codec=None,
            dispatch=channel.__dispatch__,
            deadline=deadline,
        )

    async def recv_message(self) -> Message | None:
        if not self._recv_initial_metadata_done:
            await self.recv_initial_metadata()
        with self._wrapper:
            octets = await read_frame(self._stream, service.CLIENT_MESSAGE_LIMIT)
        return None if octets is None else self._response.FromString(octets)


@contextmanager
def translated() -> Iterator[None]:
    """Raise ``SdkError`` for whatever a call can end with."""
    try:
        yield
    except GRPCError as error:
        raise SdkError(_REASONS.get(error.status, "unavailable"), error.message or error.status.name) from None
    except TimeoutError:
        raise SdkError("deadline") from None
    except (OSError, StreamTerminatedError, ProtocolError) as error:
        raise SdkError("unavailable", str(error)) from None
    except FrameRefusedError as error:
        reason = "response_too_large" if error.fault is FrameFault.TOO_LARGE else "response_invalid"
        raise SdkError(reason, error.fault.value) from error
    except DecodeError as error:
        raise SdkError("response_invalid", "protobuf") from error
