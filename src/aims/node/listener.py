"""Opening and closing the node's listening unix socket.

A socket that a dead node left behind is removed; one that somebody serves, or anything that is no socket, is not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aims.node.workload_errors import WorkloadApiError

MAX_PATH_OCTETS = 100  # sun_path has 108 with its NUL; some clients are stricter
OWNER_ONLY, GROUP, EVERYBODY = 0o600, 0o660, 0o666
_BACKLOG = 128
_PROBE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound, listening socket and the file that it made."""

    socket: socket.socket
    path: Path
    made: tuple[int, int, int]

    def unlink(self) -> None:
        """Remove the file, if it is still the one that was made here."""
        with contextlib.suppress(FileNotFoundError):
            found = self.path.lstat()
            if _mark(found) == self.made:
                self.path.unlink()


def open_listener(path: Path, mode: int = EVERYBODY) -> Listener:
    """Listen on ``path`` with the permissions ``mode`` (0600, 0660 or 0666).

    Permission to connect is not permission to get anything: callers are recognised by the kernel's word. The socket
    takes no connection before it has its mode. Two nodes that start at once cannot remove each other's socket.

    Raises:
        WorkloadApiError: ``socket_path_relative``, ``socket_path_too_long``, ``socket_path_taken``,
            ``socket_folder_missing``, ``socket_folder_unsafe``, ``socket_in_use``.
    """
    if mode not in {OWNER_ONLY, GROUP, EVERYBODY}:
        raise ValueError(f"mode {mode:o}")
    if not path.is_absolute():
        raise WorkloadApiError("socket_path_relative", str(path))
    if len(os.fsencode(path)) > MAX_PATH_OCTETS:
        raise WorkloadApiError("socket_path_too_long", str(path))
    with _sole_opener(path.parent):
        _clear(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.setblocking(False)
            listening.bind(os.fspath(path))
            path.chmod(mode)
            made = _mark(path.lstat())
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
    return Listener(listening, path, made)


def _mark(found: os.stat_result) -> tuple[int, int, int]:
    """Tell files of one path apart; the time too, because a freed inode number is given to the next file."""
    return found.st_dev, found.st_ino, found.st_ctime_ns


@contextlib.contextmanager
def _sole_opener(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, after seeing that nobody else can put another socket in the place of ours."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise WorkloadApiError("socket_folder_missing", str(folder)) from error
    try:
        found = os.fstat(descriptor)
        others_write = bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) and not found.st_mode & stat.S_ISVTX
        if others_write or found.st_uid not in {os.geteuid(), 0}:
            raise WorkloadApiError("socket_folder_unsafe", str(folder))
        try:  # not waiting: whoever may read the folder could hold this lock for ever
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkloadApiError("socket_in_use", f"{folder}: another process opens a socket here") from error
        yield
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise WorkloadApiError("socket_path_taken", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                path.unlink()
                return
            raise WorkloadApiError("socket_in_use", f"{path}: {error.strerror}") from error
    raise WorkloadApiError("socket_in_use", str(path))
