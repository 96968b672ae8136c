"""Who may supervise: one process per data folder, and per SQLite file."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from aims.storage.engine import Location
from aims.storage.errors import StorageError


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
