"""Folders above measured code that are moved: the kernel tells, and it is not forgotten when they are put back.

A fingerprint notices what happens to a code root and to all below it. When a folder *above* a root is renamed, nothing
in the root is touched: somebody could put another tree in its place for the moment in which a program reads it, and
then the measured one back. The change time of such a folder says nothing, for everybody who makes a file in it changes
it. So each is watched with inotify from before the code is read until the launch ends.

From top to bottom: once a folder is watched, the names below it lead where they led, or its move is told.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from aims.node.errors import NodeError

_DELETE_SELF, _MOVE_SELF, _UNMOUNT, _OVERFLOW, _IGNORED = 0x400, 0x800, 0x2000, 0x4000, 0x8000
_ONLYDIR, _DONT_FOLLOW, _EXCL_UNLINK = 0x1000000, 0x2000000, 0x4000000
_MASK: Final = _MOVE_SELF | _DELETE_SELF | _ONLYDIR | _DONT_FOLLOW | _EXCL_UNLINK
_GONE: Final = _MOVE_SELF | _DELETE_SELF | _UNMOUNT | _IGNORED
_EVENT = struct.Struct("iIII")  # struct inotify_event: wd, mask, cookie, length of the name behind it
_READ: Final = 64 * 1024
_ELSEWHERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})

_LIBC = ctypes.CDLL(None, use_errno=True)


class Watch:
    """The folders above some code roots. ``moved`` says whether one of them was moved since; ``release`` ends it."""

    __slots__ = ("_moved", "_moves", "numbers")

    def __init__(self, moves: Moves) -> None:
        self._moves = moves
        self._moved = False
        self.numbers: set[int] = set()

    @property
    def moved(self) -> bool:
        """Whether a folder was moved, removed or unmounted since the watch began, or that cannot be told."""
        self._moves.drain()
        return self._moved

    def hit(self) -> None:
        """Remember for good that a folder was moved."""
        self._moved = True

    def release(self) -> None:
        """Watch no more; may be called again."""
        self._moves.release(self)


class Moves:
    """One inotify instance for all launches of a node. For any thread."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._watches: dict[int, set[Watch]] = {}
        self._lock = threading.Lock()

    def watch(self, roots: Iterable[str]) -> Watch:
        """Watch every folder above the ``roots`` (real paths); do so before they are read.

        Raises: NodeError ``code_unwatched`` when the system gives no more watches, ``code_changing``.
        """
        above = sorted({str(folder) for root in roots for folder in Path(root).parents} - {"/"})
        watch = Watch(self)
        with self._lock:
            self._open()
            # what happened before is not about this watch
            self._read()
            try:
                for folder in above:
                    number = self._add(folder)
                    if number is None:
                        continue
                    watch.numbers.add(number)
                    self._watches.setdefault(number, set()).add(watch)
            except BaseException:
                self._forget(watch)
                raise
        return watch

    def drain(self) -> None:
        """Take in what the kernel has told."""
        with self._lock:
            self._read()

    def fileno(self) -> int:
        """Return the descriptor, readable when there is something to `drain`. Raises: NodeError ``code_unwatched``."""
        with self._lock:
            self._open()
        return self._descriptor

    def release(self, watch: Watch) -> None:
        """End a watch."""
        with self._lock:
            self._forget(watch)

    def close(self) -> None:
        """Give the descriptor back; what was watched counts as moved."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
            self._lose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open(self) -> None:
        if self._descriptor < 0:
            self._descriptor = _called(_LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")

    def _add(self, folder: str) -> int | None:
        number = _LIBC.inotify_add_watch(self._descriptor, os.fsencode(folder), _MASK)
        error = ctypes.get_errno()
        if number < 0 and error in _ELSEWHERE:
            raise NodeError("code_changing", folder)
        if number < 0 and error == errno.EACCES and _only_root_moves(folder):
            return None  # a folder that may be passed and not be read, such as some /home
        return _called(number, folder)

    def _forget(self, watch: Watch) -> None:
        for number in watch.numbers:
            others = self._watches.get(number)
            if others is None:
                continue
            others.discard(watch)
            if not others:
                del self._watches[number]
                # EINVAL where the kernel has dropped it by itself
                _LIBC.inotify_rm_watch(self._descriptor, number)
        watch.numbers.clear()

    def _read(self) -> None:
        while self._descriptor >= 0:
            try:
                octets = os.read(self._descriptor, _READ)
            except BlockingIOError:
                return
            offset = 0
            while offset < len(octets):
                number, mask, _, length = _EVENT.unpack_from(octets, offset)
                offset += _EVENT.size + length
                self._take(number, mask)

    def _take(self, number: int, mask: int) -> None:
        if mask & _OVERFLOW:
            self._lose()
        if mask & _GONE:
            for watch in self._watches.get(number, ()):
                watch.hit()
        if mask & _IGNORED:
            self._watches.pop(number, None)

    def _lose(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.hit()


def _only_root_moves(folder: str) -> bool:
    parent = os.lstat(os.path.dirname(folder))  # noqa: PTH120 - text in, text out
    return parent.st_uid == 0 and not parent.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _called(answer: int, what: str) -> int:
    if answer < 0:
        raise NodeError("code_unwatched", f"{what}: {os.strerror(ctypes.get_errno())}")
    return answer
