"""The baton of a SQLite file: whoever writes holds it, so that processes of one host take turns and none starves."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from aims.storage.engine import Location


@contextmanager
def baton(location: Location) -> Iterator[None]:
    """Hold the baton for one transaction; PostgreSQL needs none and this does nothing there."""
    if location.backend != "sqlite":
        yield
        return
    descriptor = os.open(
        location.path.with_name(location.path.name + "-baton"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
