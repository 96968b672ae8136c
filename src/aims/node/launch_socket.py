"""``launch.sock``: one packet with four descriptors in, small packets out."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import socket
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from aims.node.connection_limits import Seat
from aims.node.errors import NodeError
from aims.node.launch_protocol import (
    DESCRIPTORS,
    MAX_PACKET,
    Ended,
    Refused,
    Signal,
    Start,
    Started,
    encode,
    parse_request,
    refusal,
)

MAX_PATH_OCTETS = 100
PATIENCE = 5.0
"""Seconds from connecting to the request."""

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_O_PATH = os.O_PATH
_STDIO_KINDS = frozenset({stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR})


def bind(path: Path, mode: int = 0o600) -> socket.socket:
    """Bind a SOCK_SEQPACKET socket that only the given mode reaches; a dead one of that name is replaced.

    The caller holds the lock of the folder, so nobody else listens there.

    Raises: NodeError ``socket_path``; OSError.
    """
    if len(os.fsencode(path)) > MAX_PATH_OCTETS:
        raise NodeError("socket_path", str(path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
        listener.bind(os.fspath(path))
        # nobody can connect before listen()
        path.chmod(mode)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


class Waiting:
    """A connection that has not yet led to a launch, and its seat, which it may lose for as long as it is silent."""

    def __init__(self, connection: socket.socket) -> None:
        pid, uid, _ = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        self.connection = connection
        self.silent = True
        self.task: asyncio.Task[None] | None = None
        self.seat = Seat(uid=uid, pid=pid, idle=self._idle, evict=self._evict)

    def _idle(self) -> bool:
        if not self.silent:
            return False
        # what has been sent and not been read yet is no silence
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        return not poll.poll(0)

    def _evict(self) -> None:
        reply(self.connection, refusal(NodeError("request_slow", "others were waiting")))
        if self.task is not None:
            self.task.cancel()


class Descriptors:
    """The descriptors that came with a request; closes what it owns."""

    __slots__ = ("_all",)

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._all = list(descriptors)

    @property
    def stdio(self) -> tuple[int, int, int]:
        """Standard input, output and error."""
        return self._all[0], self._all[1], self._all[2]

    @property
    def folder(self) -> int:
        """The current folder; it may be open for its path alone."""
        return self._all[3]

    def check(self, terminal: int) -> None:
        """Refuse anything but three streams and a folder; ``terminal`` must be one.

        Raises: NodeError ``descriptors``.
        """
        if len(self._all) != DESCRIPTORS:
            raise NodeError("descriptors", f"{len(self._all)} of {DESCRIPTORS}")
        for place, descriptor in enumerate(self.stdio):
            kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
            if kind not in _STDIO_KINDS or fcntl.fcntl(descriptor, fcntl.F_GETFL) & _O_PATH:
                raise NodeError("descriptors", f"descriptor {place} is no stream")
        if not stat.S_ISDIR(os.fstat(self.folder).st_mode):
            raise NodeError("descriptors", "the last descriptor is no folder")
        if terminal >= 0 and not os.isatty(self._all[terminal]):
            raise NodeError("descriptors", f"descriptor {terminal} is no terminal")

    def close(self) -> None:
        """Close all; may be called again."""
        while self._all:
            os.close(self._all.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


async def receive_start(connection: socket.socket) -> tuple[Start, Descriptors] | None:
    """Wait for the request; None when the client left. The caller closes the descriptors.

    Raises: NodeError ``request_slow``, ``request_too_large``, ``request_malformed``, ``descriptors``.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            await _readable(connection)
    except TimeoutError as error:
        raise NodeError("request_slow") from error
    try:
        # room for more than are allowed, so that too many are told from a message that was cut
        packet, descriptors, flags, _ = socket.recv_fds(
            connection, MAX_PACKET + 1, DESCRIPTORS * 4, socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionError:
        return None
    if not packet and not descriptors:
        return None
    owned = Descriptors(descriptors)
    try:
        return _parse(packet, flags, owned), owned
    except BaseException:
        owned.close()
        raise


def _parse(packet: bytes, flags: int, owned: Descriptors) -> Start:
    if len(packet) > MAX_PACKET or flags & socket.MSG_TRUNC:
        raise NodeError("request_too_large", f"{len(packet)} octets or more")
    if flags & socket.MSG_CTRUNC:
        raise NodeError("descriptors", "more than fit")
    start = parse_request(packet)
    if not isinstance(start, Start):
        raise NodeError("request_malformed", "a signal before a start")
    owned.check(start.terminal)
    return start


async def receive_signal(connection: socket.socket) -> Signal | None:
    """Wait for a signal to deliver; None when the client left or says something else.

    Descriptors that come along are never taken in: the kernel closes what was not asked for.
    """
    try:
        packet = await asyncio.get_running_loop().sock_recv(connection, MAX_PACKET)
        message = parse_request(packet) if packet else None
    except (OSError, NodeError):
        return None
    return message if isinstance(message, Signal) else None


def left(connection: socket.socket) -> bool:
    """Tell whether the client is gone; asks the kernel and reads nothing. For any thread."""
    poll = select.poll()
    try:
        poll.register(connection, 0)
    except ValueError:  # it was closed here
        return True
    return bool(poll.poll(0))


def reply(connection: socket.socket, message: Started | Refused | Ended, descriptors: Sequence[int] = ()) -> bool:
    """Send a small packet without waiting; False when the client is gone or does not read."""
    try:
        socket.send_fds(connection, [encode(message)], list(descriptors))
    except OSError:
        return False
    return True


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, wake)
    try:
        await ready
    finally:
        loop.remove_reader(connection)
