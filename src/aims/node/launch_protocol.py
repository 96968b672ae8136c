"""What `aims run` and the node say to each other on ``launch.sock``.

One packet of SOCK_SEQPACKET is one message: MessagePack, an array whose first item names the kind, so that no member
can be given twice and none be left over. The first packet is a ``Start`` with exactly four descriptors: standard
input, output and error, and the current folder. After it the client sends ``Signal``, the node one ``Started`` (with
a pidfd) or ``Refused`` and at last one ``Ended``. Whoever closes leaves.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Final

import msgspec

from aims.errors import AimsError
from aims.node.errors import NodeError

MAX_PACKET: Final = 256 * 1024
MAX_REPLY: Final = 64 * 1024
MAX_ITEMS: Final = 32 * 1024
DESCRIPTORS: Final = 4
VERSION: Final = 1

FORWARDED: Final = frozenset(
    {
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGCONT,
        signal.SIGTSTP,
        signal.SIGWINCH,
    }
)

REFUSED: Final = 125
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127

_EXIT_CODES: Final = {
    "program_not_found": NOT_FOUND,
    "program_not_executable": NOT_EXECUTABLE,
    "program_unsupported": NOT_EXECUTABLE,
}


class Start(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="start"):
    """Start ``argv`` as the agent ``name``; octets, because the system's arguments need not be text.

    ``terminal`` is the place (0, 1 or 2) of the descriptor that shall be the controlling terminal, or -1.
    """

    version: int
    name: str
    argv: tuple[bytes, ...]
    environment: tuple[tuple[bytes, bytes], ...]
    umask: int
    terminal: int


class Signal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="signal"):
    """Deliver one of ``FORWARDED``."""

    number: int


class Started(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="started"):
    """The program is about to run; a pidfd of it comes along. ``dropped``: names of variables that it does not see.

    A ``Refused`` may still follow: the last step, the execution itself, can fail.
    """

    pid: int
    instance: str
    posture: str
    dropped: tuple[str, ...]


class Refused(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="refused"):
    """Nothing runs. ``code``, ``sentence`` and ``hint`` as in the error tree; ``differs``: what is not as approved."""

    code: str
    sentence: str
    hint: str
    differs: tuple[str, ...]
    exit_code: int


class Ended(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag="ended"):
    """The program ended: by itself with ``status``, or by the signal ``signal`` (else 0)."""

    status: int
    signal: int


_REQUEST: Final[msgspec.msgpack.Decoder[Start | Signal]] = msgspec.msgpack.Decoder(Start | Signal)
_REPLY: Final[msgspec.msgpack.Decoder[Started | Refused | Ended]] = msgspec.msgpack.Decoder(Started | Refused | Ended)
_ENCODER = msgspec.msgpack.Encoder()


def encode(message: Start | Signal | Started | Refused | Ended) -> bytes:
    """Return the packet.

    Raises: NodeError ``request_too_large``.
    """
    packet = _ENCODER.encode(message)
    if len(packet) > MAX_PACKET:
        raise NodeError("request_too_large", f"{len(packet)} octets")
    return packet


def parse_request(packet: bytes) -> Start | Signal:
    """Read what a client says.

    Raises: NodeError ``request_malformed``, ``request_too_large``.
    """
    if len(packet) > MAX_PACKET:
        raise NodeError("request_too_large")
    try:
        message = _REQUEST.decode(packet)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NodeError("request_malformed", str(error)) from error
    if isinstance(message, Start):
        _check(message)
    elif message.number not in FORWARDED:
        raise NodeError("request_malformed", f"signal {message.number}")
    return message


def parse_reply(packet: bytes) -> Started | Refused | Ended:
    """Read what the node says.

    Raises: NodeError ``request_malformed``.
    """
    try:
        return _REPLY.decode(packet)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NodeError("request_malformed", str(error)) from error


def variables(start: Start) -> dict[str, str]:
    """Return the environment of a request as the system's text."""
    return {os.fsdecode(name): os.fsdecode(value) for name, value in start.environment}


def started(pid: int, instance: str, posture: str, dropped: Sequence[str]) -> Started:
    """Return the message for a launch; at most 200 dropped names of 200 characters are told."""
    names = tuple(name.encode("ascii", "backslashreplace").decode("ascii")[:200] for name in dropped[:200])
    return Started(pid=pid, instance=instance, posture=posture, dropped=names)


def refusal(error: AimsError) -> Refused:
    """Return the message for an error.

    Its private detail stays here, except the names of what differs from the profile and of the file that cannot be
    read: whoever may launch the agent may know them.
    """
    differs = error.detail.split("\n") if error.reason in {"launch_mismatch", "code_unreadable"} else []
    return Refused(
        code=error.code,
        sentence=error.sentence,
        hint=error.hint,
        differs=tuple(name.encode("ascii", "backslashreplace").decode("ascii")[:1024] for name in differs[:16] if name),
        exit_code=_EXIT_CODES.get(error.reason, REFUSED),
    )


def _check(start: Start) -> None:
    if start.version != VERSION:
        raise NodeError("request_malformed", f"version {start.version}")
    if not 1 <= len(start.name) <= 255 or not start.name.isprintable():
        raise NodeError("request_malformed", "the name")
    if not start.argv or len(start.argv) + len(start.environment) > MAX_ITEMS:
        raise NodeError("request_malformed", "no arguments, or too many items")
    if any(b"\0" in argument for argument in start.argv):
        raise NodeError("request_malformed", "a zero octet in an argument")
    names = [name for name, _ in start.environment]
    if len(set(names)) != len(names):
        raise NodeError("request_malformed", "a variable is given twice")
    if any(not name or b"=" in name or b"\0" in name + value for name, value in start.environment):
        raise NodeError("request_malformed", "a variable that cannot exist")
    if not 0 <= start.umask <= 0o777 or not -1 <= start.terminal <= 2:
        raise NodeError("request_malformed", "umask or terminal")
