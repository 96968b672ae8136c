"""Length-prefixed gRPC messages, read with a limit.

grpclib believes the four octets of length and gathers that much memory. Here the prefix is judged first: a message
that is too long is refused before one of its octets is asked for, and HTTP/2 flow control holds the sender back.
"""

from __future__ import annotations

import enum

from grpclib.protocol import Stream

PREFIX = 5  # one octet of flags, four of length (gRPC over HTTP/2)


class FrameFault(enum.Enum):
    """Why a message was not read."""

    TRUNCATED = "the stream ended inside a message"
    COMPRESSED = "compressed messages are not accepted"
    TOO_LARGE = "the message is larger than the limit"


class FrameRefusedError(Exception):
    """A message that was not read; whoever reads turns it into an error of its own layer."""

    def __init__(self, fault: FrameFault) -> None:
        super().__init__(fault.value)
        self.fault = fault


def frame(message: bytes) -> bytes:
    """Put the prefix of an uncompressed message before it."""
    return b"\x00" + len(message).to_bytes(4, "big") + message


async def read_frame(stream: Stream, limit: int) -> bytes | None:
    """Read one message of at most ``limit`` octets; None if the other side ended the stream between messages.

    Raises ``FrameRefusedError``; what follows on the stream is then unread and means nothing.
    """
    prefix = await _read(stream, PREFIX)
    if prefix is None:
        return None
    if prefix[0] != 0:
        raise FrameRefusedError(FrameFault.COMPRESSED)
    length = int.from_bytes(prefix[1:], "big")
    if length > limit:
        raise FrameRefusedError(FrameFault.TOO_LARGE)
    if length == 0:
        return b""
    message = await _read(stream, length)
    if message is None:
        raise FrameRefusedError(FrameFault.TRUNCATED)
    return message


async def _read(stream: Stream, size: int) -> bytes | None:
    try:
        octets: bytes = await stream.recv_data(size)
    except AssertionError as error:  # grpclib's word for an end in the middle
        raise FrameRefusedError(FrameFault.TRUNCATED) from error
    return octets or None
