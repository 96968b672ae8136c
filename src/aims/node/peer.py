"""Who is on the other end of a unix socket, as the kernel says.

Peer credentials and the peer's pidfd are those of the process that called ``connect()``. A socket that was inherited
or passed on keeps its first owner: whoever holds it speaks as that process.

A pid can be used again, a pidfd cannot. So everything that is read from ``/proc`` by pid counts only if the process
was still alive, by its pidfd, after the reading.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Collection
from types import TracebackType
from typing import Self

from aims.attestation import UnixEvidence
from aims.node.errors import NodeError

SO_PEERPIDFD = 77
"""Linux 6.5; the socket module of Python 3.11 has no name for it."""

MAX_DEPTH = 1024

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


class Peer:
    """The process that connected: ``pid``, ``uid`` and ``gid`` at ``connect()``, and ``pidfd``, owned by this value."""

    __slots__ = ("gid", "pid", "pidfd", "uid")

    def __init__(self, *, pid: int, uid: int, gid: int, pidfd: int) -> None:
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self.pidfd = pidfd

    def alive(self) -> bool:
        """Tell whether the process still runs; a closed peer never does."""
        return self.pidfd >= 0 and alive(self.pidfd)

    def executable(self) -> os.stat_result:
        """Return the identity of the running executable.

        Raises: NodeError ``peer_gone``, ``exe_unreadable``.
        """
        found = executable(self.pid)
        if not self.alive():
            raise NodeError("peer_gone", f"pid {self.pid}")
        return found

    def evidence(self) -> UnixEvidence:
        """Return uid, gid, pid and the path of the executable.

        The path is empty where it may not be read: it is a convenience, never an identity.

        Raises: NodeError ``peer_gone``.
        """
        path: str | None = None
        try:
            path = os.readlink(f"/proc/{self.pid}/exe")  # noqa: PTH115 - a magic link, whose text is wanted
        except OSError:
            path = None
        if not self.alive():
            raise NodeError("peer_gone", f"pid {self.pid}")
        if path is not None and not path.startswith("/"):
            path = None
        return UnixEvidence(pid=self.pid, uid=self.uid, gid=self.gid, path=path)

    def descends_from(self, pids: Collection[int]) -> bool:
        """Tell whether the process is one of ``pids`` or below one of them.

        This helps against accidents only. The chain of parents is read link by link while it changes, and a process
        whose parent ended hangs below another: who wants to leave the chain can.

        Raises: NodeError ``peer_gone``.
        """
        pid, found = self.pid, False
        for _ in range(MAX_DEPTH):
            if pid in pids:
                found = True
                break
            parent = parent_of(pid)
            if parent is None or parent <= 1:
                break
            pid = parent
        if not self.alive():
            raise NodeError("peer_gone", f"pid {self.pid}")
        return found

    def close(self) -> None:
        """Give the pidfd back; may be called again."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Peer(pid={self.pid}, uid={self.uid}, gid={self.gid})"


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel for the peer of a connected unix socket; the caller closes what it gets.

    Raises: NodeError ``kernel_too_old`` (no SO_PEERPIDFD), ``peer_unknown`` (pid 0), ``peer_gone``.
    """
    # 1. credentials of connect()
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    if pid <= 0:
        raise NodeError("peer_unknown", f"pid {pid} uid {uid}")
    # 2. the pidfd of the same process
    try:
        (pidfd,) = struct.unpack("i", connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4))
    except OSError as error:
        if error.errno in {errno.ENOPROTOOPT, errno.EOPNOTSUPP}:
            raise NodeError("kernel_too_old") from error
        raise NodeError("peer_gone", f"pid {pid}: {error.strerror}") from error
    peer = Peer(pid=pid, uid=uid, gid=gid, pidfd=pidfd)
    # 3. a pidfd of somebody who has ended already names nobody
    if not peer.alive():
        peer.close()
        raise NodeError("peer_gone", f"pid {pid}")
    return peer


def alive(pidfd: int) -> bool:
    """Tell whether the process of a pidfd has not ended (a zombie has)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


def executable(pid: int) -> os.stat_result:
    """Return the identity of the file that ``pid`` executes, through the magic link and not by its path.

    The caller checks afterwards that the process is still the one it means.

    Raises: NodeError ``peer_gone``, ``exe_unreadable``.
    """
    try:
        return os.stat(f"/proc/{pid}/exe")  # noqa: PTH116 - pathlib would hide that this is a magic link
    except PermissionError as error:
        raise NodeError("exe_unreadable", f"pid {pid}") from error
    except OSError as error:
        raise NodeError("peer_gone", f"pid {pid}") from error


def parent_of(pid: int) -> int | None:
    """Return the parent's pid, or None where the process is gone or hidden."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - /proc is no place for path arithmetic
            fields = file.read(4096).rpartition(b")")[2].split()
        return int(fields[1])
    except (OSError, IndexError, ValueError):
        return None


def pid_in(pidfd: int) -> int:
    """Return the pid that fdinfo gives for a pidfd: -1 when the process was reaped, 0 outside of our namespace.

    Raises: NodeError ``peer_gone`` where there is no such line.
    """
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:  # noqa: PTH123 - as above
            for line in file:
                name, _, value = line.partition(b":")
                if name == b"Pid":
                    return int(value)
    except (OSError, ValueError) as error:
        raise NodeError("peer_gone", "fdinfo") from error
    raise NodeError("peer_gone", "fdinfo has no Pid")


def pidfs() -> bool:
    """Tell whether pidfds have inodes of their own (Linux 6.9), so that equal inodes mean the same process.

    Before, all of them share the one inode of anonymous files.
    """
    mine, other = os.pidfd_open(os.getpid()), select.epoll()
    try:
        return not os.path.samestat(os.fstat(mine), os.fstat(other.fileno()))
    finally:
        other.close()
        os.close(mine)
