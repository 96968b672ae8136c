"""The launches that a node vouches for, and how it knows them again.

A launch is known by its pidfd. Since Linux 6.9 a pidfd has an inode of its own for each process, so equal inodes are
the same process. Before, its pid must be equal while the node has not reaped it, because until then nobody else can
get that pid.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from aims.attestation import Selector, Separation
from aims.identifiers import SpiffeId
from aims.node import peer as kernel
from aims.node.errors import NodeError
from aims.node.measure import Executable, Measured


@dataclass(frozen=True, slots=True)
class Exit:
    """How a launch ended: by itself with ``status``, or by ``signal`` (else 0)."""

    status: int
    signal: int


class Launch:
    """One process that the node started.

    ``instance`` is constant for its life. ``selectors`` hold ``launch:…`` and ``unix:…``. ``vouched`` says whether it
    has passed its first check after exec. ``ended`` is resolved when it was reaped; its pidfd is closed then.
    """

    __slots__ = (
        "ended",
        "gid",
        "instance",
        "measured",
        "name",
        "pid",
        "pidfd",
        "posture",
        "process",
        "selectors",
        "spiffe_id",
        "uid",
        "vouched",
    )

    def __init__(
        self,
        *,
        instance: str,
        name: str,
        spiffe_id: SpiffeId,
        process: subprocess.Popen[bytes],
        uid: int,
        gid: int,
        posture: Separation,
        selectors: frozenset[Selector],
        measured: Measured,
    ) -> None:
        self.instance = instance
        self.name = name
        self.spiffe_id = spiffe_id
        self.process = process
        self.pid = process.pid
        # safe: only the node reaps its children, so this pid is still the child's
        self.pidfd = os.pidfd_open(process.pid)
        self.uid = uid
        self.gid = gid
        self.posture = posture
        self.selectors = selectors
        self.measured = measured
        self.vouched = False
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    def alive(self) -> bool:
        """Tell whether the process still runs; ask after all reading and before each answer."""
        return self.pidfd >= 0 and kernel.alive(self.pidfd)

    def check_executable(self) -> None:
        """Check that the process still executes the measured file.

        Before the first credential its change time counts as well, so a file that was written between measuring and
        exec is found; later not, because an upgrade changes the links of the file that still runs.

        Raises: NodeError ``launch_ended``, ``exe_changed``, ``exe_unreadable``.
        """
        if not self.alive():
            raise NodeError("launch_ended", self.instance)
        try:
            found = Executable.of(kernel.executable(self.pid))
        except NodeError as error:
            if error.reason == "exe_unreadable" and self.alive():
                raise
            raise NodeError("launch_ended", self.instance) from error
        if not self.alive():
            raise NodeError("launch_ended", self.instance)
        measured = self.measured.executable
        if not (found.same_file(measured) if self.vouched else found == measured):
            raise NodeError("exe_changed", self.instance)

    def send(self, number: int) -> None:
        """Send a signal to the process; nothing happens if it has ended."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                return

    def send_group(self, number: int) -> None:
        """Send a signal to the group that the process leads; only before it was reaped its number is surely its own."""
        if self.pidfd >= 0:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                return

    def reap(self) -> Exit:
        """Take the exit status and close the pidfd; only after the pidfd became readable."""
        found = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        os.close(self.pidfd)
        self.pidfd = -1
        if found is None:  # pragma: no cover - only with WNOHANG
            return Exit(status=1, signal=0)
        by_itself = found.si_code == os.CLD_EXITED
        # the object would otherwise reap for itself, and warn
        self.process.returncode = found.si_status if by_itself else -found.si_status
        return Exit(status=found.si_status, signal=0) if by_itself else Exit(status=0, signal=found.si_status)

    def __repr__(self) -> str:
        return f"Launch({self.instance}, name={self.name!r}, pid={self.pid})"


class Launches:
    """The table of launches that have not been reaped."""

    __slots__ = ("_pidfs", "_rows")

    def __init__(self, *, pidfs: bool | None = None) -> None:
        self._pidfs = kernel.pidfs() if pidfs is None else pidfs
        self._rows: dict[int, Launch] = {}

    def add(self, launch: Launch) -> None:
        """Enter a launch; before its program runs, so that no connection comes before its row."""
        self._rows[self._key(launch.pidfd)] = launch

    def remove(self, launch: Launch) -> None:
        """Take a launch out; before it is reaped, because then its pid can be another's."""
        del self._rows[self._key(launch.pidfd)]

    def find(self, pidfd: int) -> Launch | None:
        """Return the launch whose process ``pidfd`` is, if it is alive."""
        try:
            launch = self._rows.get(self._key(pidfd))
        except (NodeError, OSError):
            return None
        return launch if launch is not None and launch.alive() else None

    def pids(self) -> frozenset[int]:
        """Return the pids of all launches."""
        return frozenset(launch.pid for launch in self)

    def _key(self, pidfd: int) -> int:
        return os.fstat(pidfd).st_ino if self._pidfs else kernel.pid_in(pidfd)

    def __iter__(self) -> Iterator[Launch]:
        return iter(tuple(self._rows.values()))

    def __len__(self) -> int:
        return len(self._rows)
