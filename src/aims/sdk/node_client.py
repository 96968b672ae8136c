"""Client of agent.sock, the node's own door beside the Workload API (``aims.node.v1``)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from google.protobuf.message import Message
from grpclib.client import Channel, Stream
from grpclib.metadata import Deadline

from aims.authentication.liveness import MAX_STOPS
from aims.identifiers import IdentifierError, SpiffeId
from aims.proto import node_pb2 as pb
from aims.proto import node_service as service
from aims.sdk import node_state as read
from aims.sdk.errors import SdkError
from aims.sdk.grpc_call import BoundedStream, translated
from aims.sdk.node_state import Everything, Line, Settings

SOCKET_NAME: Final = "agent.sock"


class ClaimStream:
    """An open ``Claim`` call: one message out, one answer back."""

    __slots__ = ("_call", "complete_since")

    def __init__(self, call: Stream[Message, Message]) -> None:
        self._call = call
        self.complete_since: float | None = None

    async def send(self, ids: list[bytes]) -> None:
        """Ask for at most 1,024 ids to be spent. Raises: SdkError."""
        with translated():
            await self._call.send_message(pb.ClaimRequest(ids=b"".join(ids)))

    async def answer(self) -> pb.ClaimResponse:
        """Return the next answer. Raises: SdkError ``unavailable``, also as soon as the node ends the stream."""
        with translated():
            answer = await self._call.recv_message()
        if not isinstance(answer, pb.ClaimResponse):
            raise SdkError("unavailable", "the node ended the stream of claims")
        self.complete_since = answer.complete_since
        return answer


def fresh(answer: pb.ClaimResponse, count: int) -> list[bool] | None:
    """Read the bits of an answer about ``count`` ids; None when the node could not ask its window.

    Raises: SdkError ``response_invalid``.
    """
    if answer.unavailable:
        return None
    if len(answer.fresh) != -(-count // 8):
        raise SdkError("response_invalid", "bits of a claim")
    return [bool(answer.fresh[index // 8] & 0x80 >> index % 8) for index in range(count)]


class NodeClient:
    """Asks one node. Belongs to the event loop that first uses it.

    Every call raises ``SdkError``: ``denied``, ``unavailable``, ``deadline``, ``refused``, ``unsupported``, or about
    the response.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._channel: Channel | None = None

    def close(self) -> None:
        """Close the connection; calls in progress end with ``unavailable``."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    async def settings(self, seconds: float) -> tuple[SpiffeId, Settings]:
        """Return the identity that this process has by default, and the settings."""
        with translated():
            call = BoundedStream(self._open(), service.SETTINGS, Deadline.from_timeout(seconds))
            async with call:
                await call.send_message(pb.SettingsRequest(), end=True)
                answer = await call.recv_message()
                await call.recv_trailing_metadata()
        if not isinstance(answer, pb.SettingsResponse):
            raise SdkError("response_invalid", "no settings")
        try:
            return SpiffeId.parse_workload(answer.spiffe_id), read.settings(answer.settings)
        except IdentifierError as error:
            raise SdkError("response_invalid", error.code) from error

    async def watch(self) -> AsyncGenerator[Everything | Line, None]:
        """Yield the full state, then line after line, until the stream breaks: that raises."""
        stops: list[pb.Stop] = []
        with translated():
            async with BoundedStream(self._open(), service.WATCH, None) as call:
                await call.send_message(pb.WatchRequest(), end=True)
                while (message := await call.recv_message()) is not None:
                    assert isinstance(message, pb.WatchResponse)  # noqa: S101 -- the method's own response type
                    if message.WhichOneof("line") != "state":
                        yield read.line(message)
                        continue
                    stops += message.state.stops
                    if len(stops) > MAX_STOPS:
                        raise SdkError("response_invalid", "too many stops")
                    if not message.state.more:
                        yield read.everything(message.seq, stops, message.state.settings)
                        stops = []
                await call.recv_trailing_metadata()
        raise SdkError("unavailable", "the node ended the watch")

    @asynccontextmanager
    async def claims(self) -> AsyncGenerator[ClaimStream, None]:
        """Open a stream of claims."""
        with translated():
            async with BoundedStream(self._open(), service.CLAIM, None) as call:
                yield ClaimStream(call)
                await call.end()

    def _open(self) -> Channel:
        if self._channel is None:
            self._channel = Channel(path=str(self._path))
        return self._channel
