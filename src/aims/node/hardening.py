"""What the node does to its own process before it holds a key."""

from __future__ import annotations

import ctypes
import os
import resource

PR_SET_DUMPABLE = 4


def harden() -> None:
    """Refuse core files, and other processes of the same uid a look at memory, environment and descriptors.

    It does not survive ``exec``, so it says nothing about the agents that this node starts; and it is no defence
    against root, nor against whoever replaces the node's files. Call it first thing at the start of the node.

    Raises: OSError.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
