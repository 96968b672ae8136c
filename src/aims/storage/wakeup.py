"""Wake the feed readers of this host: one datagram socket per process in the data folder, one octet to each.

A datagram says only "read now"; whoever sends one in vain costs a read. Losing one costs at most the second until the
next read.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

_FOLDER = "feed"


class Wakeup:
    """The readers' bells. ``ring`` may be called from any thread, with or without a bell of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        """Make ``folder/feed``. Raises ``OSError``."""
        path = folder / _FOLDER
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._name = name
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._out.setblocking(False)
        self._bell: socket.socket | None = None

    def listen(self) -> socket.socket:
        """Hang up the bell of this process: a socket that becomes readable when somebody rings."""
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        bell.setblocking(False)
        bell.bind(self._address(self._name))
        self._bell = bell
        return bell

    def ring(self) -> None:
        """Wake every reader of this host, this process included; forget those that are gone."""
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 - a descriptor, no path
        except OSError:
            return  # out of memory or descriptors: the read of each second comes anyway
        for name in names:
            try:
                self._out.sendto(b"!", self._address(name))
            except ConnectionRefusedError:
                self._forget(name)
            except OSError:
                continue  # full: it will read anyway; gone: nobody to wake

    def close(self) -> None:
        if self._bell is not None:
            self._forget(self._name)
            self._bell.close()
        self._out.close()
        os.close(self._folder)

    def _address(self, name: str) -> str:
        # By descriptor, because the path of a socket may have 107 octets and a data folder more.
        return f"/proc/self/fd/{self._folder}/{name}"

    def _forget(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._folder)
        except OSError:
            return  # gone already, or not ours to remove
