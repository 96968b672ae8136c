"""Who may supervise: one process per data folder, and one sequencer per PostgreSQL database."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import psycopg

from aims.storage.engine import Location, connect_postgresql
from aims.storage.errors import StorageError

_LEADER_LOCK = 0x61696D735F6C6561  # "aims_lea"


class SupervisorLock:
    """Held by the supervisor as long as it lives; the kernel takes it back when the process ends, however it ends."""

    def __init__(self, location: Location, folder: Path) -> None:
        """Take the lock of the folder and, on SQLite, of the file.

        Raises ``StorageError``: ``locked`` (another supervisor lives), ``read_only``.
        """
        self._held: list[int] = []
        paths = [folder / "supervisor.lock"]
        if location.backend == "sqlite":
            paths.append(location.path.with_name(location.path.name + "-supervisor"))
        try:
            for path in paths:
                self._take(path)
        except BaseException:
            self.release()
            raise

    def _take(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError("read_only", f"{path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise StorageError("locked", f"{path} is held by process {holder or 'unknown'}") from error
        self._held.append(descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        """Give the lock back; the files stay, because removing them would let two processes hold two files."""
        while self._held:
            os.close(self._held.pop())


class LeaderLock:
    """One of the supervisors of a PostgreSQL database: a session advisory lock on a connection of its own."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def acquire(self) -> bool:
        """Try to become the leader, or see that this process still is. Raises ``StorageError`` ``unreachable``.

        A leader calls this before each piece of its work: a lost connection means that the lock is lost too.
        """
        try:
            if self._connection is None or self._connection.closed:
                self._connection = connect_postgresql(self._location, name="aims-leader")
            row = self._connection.execute(
                "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
                " AND classid = %(high)s AND objid = %(low)s) OR pg_try_advisory_lock(%(key)s)",
                {"high": _LEADER_LOCK >> 32, "low": _LEADER_LOCK & 0xFFFFFFFF, "key": _LEADER_LOCK},
            ).fetchone()
        except psycopg.Error as error:
            self.release()
            raise StorageError("unreachable", str(error)) from error
        return bool(row and row[0])

    def release(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
