"""The lengths of HTTP/2 frames, judged before h2 sees the octets.

h2 gathers a frame of any declared length (up to 16 MiB) and compares it with the allowed one only when it is whole.
"""

from __future__ import annotations

MAX_FRAME_OCTETS = 16_384  # RFC 9113 6.5.2: the initial value, which we never raise
_PREFACE_OCTETS = 24
_HEADER_OCTETS = 9


class FrameLengths:
    """Follows the octets that a client sends, from the first one on, and keeps no more than a frame's header."""

    __slots__ = ("_header", "_skip")

    def __init__(self) -> None:
        self._skip = _PREFACE_OCTETS
        self._header = b""

    def allow(self, data: bytes) -> bool:
        """Take the next octets; False as soon as a frame is longer than ``MAX_FRAME_OCTETS``."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
            else:
                step = _HEADER_OCTETS - len(self._header)
                self._header += data[at : at + step]
                if len(self._header) == _HEADER_OCTETS:
                    self._skip = int.from_bytes(self._header[:3], "big")
                    self._header = b""
                    if self._skip > MAX_FRAME_OCTETS:
                        return False
            at += step
        return True
