"""Whether a process was started by this host's node, or descends from one that was.

Links of the parent chain are read from /proc one after the other, so a process that wants to leave the chain can.
Between programs of one uid this stops accidents, not attacks; see the threat page, T2 and T6.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Final

MOST_LINKS: Final = 64
NODE_PID_FILE: Final = "node.pid"


def launched_by_node(pid: int, run_dir: Path, proc: Path = Path("/proc")) -> bool:
    """Walk from ``pid`` to its ancestors; True when the node that serves ``run_dir`` is one of them.

    What cannot be read counts as launched: a peer that is gone, or hides its parent, administers nothing.
    """
    try:
        node = _node_pid(run_dir / NODE_PID_FILE)
    except (OSError, ValueError):
        return True
    if node is None:
        return False
    for _ in range(MOST_LINKS):
        parent = _parent(pid, proc)
        if parent is None or parent == node:
            return True
        if parent <= 1:
            return False
        pid = parent
    return True


def _node_pid(path: Path) -> int | None:
    """Read the node's pid; None without a node. The node holds a lock on the file as long as it lives."""
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read(20))
            return None
    except FileNotFoundError:
        return None


def _parent(pid: int, proc: Path) -> int | None:
    try:
        status = (proc / str(pid) / "stat").read_bytes()
        # The program's name stands in parentheses and may itself hold any byte; fields go on after the last one.
        return int(status.rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None
