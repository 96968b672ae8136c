"""``node.pid``: tells the server of this host who the node is, so that what the node started administers nothing.

The node holds a lock on it for its life; without the lock the number means nothing.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from aims.node.errors import NodeError
from aims.node.state import take_lock

NAME: Final = "node.pid"
_ATTEMPTS: Final = 20
_PAUSE: Final = 0.05


def hold(run_dir: Path) -> int:
    """Write our pid and lock the file; the lock ends with the descriptor that is returned.

    Raises: NodeError ``node_running``, ``node_folder``.
    """
    for attempt in range(_ATTEMPTS):
        try:
            descriptor = take_lock(run_dir / NAME)
            break
        except NodeError as error:
            # whoever reads the number holds a shared lock for a moment
            if error.reason != "node_running" or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(_PAUSE)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
    return descriptor
