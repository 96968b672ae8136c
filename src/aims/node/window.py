"""The replay window that all processes of a host share, in a file-backed map beside the node's state.

The map is a hash table of 16-octet ids whose first four octets say until when they count. A write is in the kernel's
hands before the answer is given, so killing the node loses nothing. A crash of the machine may: then the boot id in the
header differs, and the window counts as new, as it does when the file is missing or damaged.

Layout: a header page, then sets of 128 slots. An id belongs to one set, chosen by a keyed hash so that nobody can aim
at a set. A full set refuses. All numbers are big-endian; times are Unix milliseconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aims.authentication.errors import AuthenticationError
from aims.authentication.replay import ID_OCTETS, MAX_STEP_BACK, kept
from aims.clock import Clock

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
DEFAULT_CAPACITY: Final = 262_144  # ids: 4 MiB, about 1,500 proofs of two minutes each second

_MAGIC = b"aims-replay-1\0\0\0"
_HEADER = struct.Struct(">16s16s16sQQQ")  # magic, salt, hash of the boot id, sets, complete since, highest time seen
_HIGH = struct.Struct(">Q")
_HIGH_AT = _HEADER.size - _HIGH.size
_PAGE = 4096
_SLOTS = 128
_SET_OCTETS = _SLOTS * ID_OCTETS
_EXPIRIES = struct.Struct(">" + "I12x" * _SLOTS)
_MODE = 0o600


class FileWindow:
    """A `ReplayWindow` in the file at ``path``, for one process at a time.

    ``capacity`` (rounded up to whole sets) counts for a new file only. ``random`` gives octets for the salt, ``boot``
    identifies the running of the machine.

    Raises:
        AuthenticationError: ``window_unavailable``: another process holds the file, it is no regular file of our own,
            or there is no room on the disk.
    """

    __slots__ = ("_clock", "_descriptor", "_high", "_map", "_random", "_salt", "_sets", "_since")

    _salt: bytes
    _sets: int
    _since: int
    _high: int

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        capacity: int = DEFAULT_CAPACITY,
        random: Callable[[int], bytes] = os.urandom,
        boot: bytes | None = None,
    ) -> None:
        self._clock = clock
        self._random = random
        running = hashlib.sha256(BOOT_ID.read_bytes() if boot is None else boot).digest()[:16]
        self._descriptor = _open(path)
        try:
            if not self._resume(running):
                self._begin(running, max(1, -(-capacity // _SLOTS)))
            self._map = mmap.mmap(self._descriptor, _PAGE + self._sets * _SET_OCTETS)
        except OSError as error:
            os.close(self._descriptor)
            raise AuthenticationError("window_unavailable", str(error)) from error

    @property
    def complete_since(self) -> float:
        return self._since / 1000

    async def claim(self, ids: list[bytes]) -> list[bool]:
        now = self._time()
        return [self._claim(id_, now) for id_ in ids]

    def close(self) -> None:
        """Leave the file to the next process. What was claimed stays claimed."""
        self._map.close()
        os.close(self._descriptor)

    def _resume(self, running: bytes) -> bool:
        head = os.pread(self._descriptor, _HEADER.size, 0)
        if len(head) != _HEADER.size:
            return False
        magic, self._salt, boot, self._sets, self._since, self._high = _HEADER.unpack(head)
        size = os.fstat(self._descriptor).st_size
        whole = self._sets > 0 and size == _PAGE + self._sets * _SET_OCTETS
        return bool(magic == _MAGIC and boot == running and whole)

    def _begin(self, running: bytes, sets: int) -> None:
        os.ftruncate(self._descriptor, 0)
        # Room is taken now: a map that finds the disk full later is killed by the kernel.
        os.posix_fallocate(self._descriptor, 0, _PAGE + sets * _SET_OCTETS)
        self._salt, self._sets = self._random(16), sets
        self._since = self._high = int(self._clock.now() * 1000) + 1
        head = _HEADER.pack(_MAGIC, self._salt, running, sets, self._since, self._high)
        os.pwrite(self._descriptor, head, 0)

    def _time(self) -> float:
        # Time only goes forward here, also over restarts: what was forgotten must not become acceptable again.
        now = int(self._clock.now() * 1000)
        if now < self._high - MAX_STEP_BACK * 1000:
            raise AuthenticationError("window_unavailable", "the clock went back")
        if now > self._high:
            self._high = now
            self._map[_HIGH_AT : _HIGH_AT + _HIGH.size] = _HIGH.pack(now)
        return self._high / 1000

    def _claim(self, id_: bytes, now: float) -> bool:
        if kept(id_, now) is None:
            return False
        number = int.from_bytes(hashlib.blake2b(id_, digest_size=8, key=self._salt).digest(), "big") % self._sets
        start = _PAGE + number * _SET_OCTETS
        slots = self._map[start : start + _SET_OCTETS]
        at = slots.find(id_)
        while at >= 0:
            if at % ID_OCTETS == 0:
                return False
            at = slots.find(id_, at + 1)
        # A slot is free when its time is over, and when a write that was cut short left a time that no id can have.
        for index, expires in enumerate(_EXPIRIES.unpack(slots)):
            if expires <= now or expires > now + 3600:
                begin = start + index * ID_OCTETS
                self._map[begin : begin + ID_OCTETS] = id_
                return True
        raise AuthenticationError("window_unavailable", "full")


def _open(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, _MODE)
    except OSError as error:
        raise AuthenticationError("window_unavailable", str(error)) from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        os.close(descriptor)
        raise AuthenticationError("window_unavailable", "not a private file of our own")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise AuthenticationError("window_unavailable", "another process holds the window") from error
    return descriptor
