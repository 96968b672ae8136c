"""The terminal of `aims run`: a pty between the caller's terminal and the launched program.

A terminal that is passed on as it is would not become the program's controlling one: Ctrl-C would be echoed and reach
nobody. So `aims run` makes a pty, the gate takes its slave as controlling terminal, and the caller's terminal is put
into raw mode and copied, so that the line discipline of the pty is the one that counts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import termios
import tty
from collections.abc import Sequence
from typing import Any

_BLOCK = 16 * 1024
_LAST_WORDS = 0.2
_NO_SIZE = b"\0" * 8


class Terminal:
    """A pty for those of the streams ``stdio`` that are terminals; at least one must be."""

    __slots__ = ("_input", "_output", "_pending", "_saved", "_source", "index", "master", "slave")

    def __init__(self, stdio: Sequence[int]) -> None:
        places = [place for place, descriptor in enumerate(stdio) if os.isatty(descriptor)]
        self.index = places[0]
        self._source = stdio[places[0]]
        self._input = stdio[0] if 0 in places else -1
        self._output = next((stdio[place] for place in (1, 2) if place in places), self._source)
        self._saved: list[Any] | None = None
        self._pending = b""
        self.master, self.slave = os.openpty()
        os.set_blocking(self.master, False)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self.slave, termios.TCSANOW, termios.tcgetattr(self._source))
        self.resize()

    def resize(self) -> None:
        """Take over the caller's window size; the kernel tells the program."""
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(self._source, termios.TIOCGWINSZ, _NO_SIZE)
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def raw(self) -> None:
        """Put the caller's terminal into raw mode, if it is read from and this is its foreground group."""
        if self._input < 0 or self._saved is not None or not self._foreground():
            return
        self._saved = termios.tcgetattr(self._input)
        tty.setraw(self._input)

    def restore(self) -> None:
        """Give the caller's terminal back as it was; may be called again."""
        if self._saved is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._input, termios.TCSADRAIN, self._saved)
            self._saved = None

    def started(self) -> None:
        """Let go of the slave: from now on the program alone holds it, and its end can be seen."""
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1

    def register(self, poll: select.poll) -> None:
        """Ask for what can be done next: output always, input only when the last was taken."""
        if self.master >= 0:
            poll.register(self.master, select.POLLIN | (select.POLLOUT if self._pending else 0))
        if self._saved is not None and not self._pending:
            poll.register(self._input, select.POLLIN)

    def copy(self, ready: dict[int, int]) -> None:
        """Copy what is there, both ways."""
        if self.master in ready:
            if self._pending:
                self._give()
            self._take()
        if self._saved is not None and self._input in ready and not self._pending:
            try:
                self._pending = os.read(self._input, _BLOCK)
            except OSError:
                self._pending = b""
            if not self._pending:
                self.restore()
            self._give()

    def drain(self) -> None:
        """Copy the program's last words: until nobody holds the slave, or nothing comes for 0.2 s."""
        while self.master >= 0:
            if not select.select([self.master], [], [], _LAST_WORDS)[0]:
                return
            self._take()

    def close(self) -> None:
        """Restore the caller's terminal and close the pty."""
        self.restore()
        self.started()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def _foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._input) == os.getpgrp()
        except OSError:
            return True  # a terminal, but not the controlling one: nobody else's group reads it

    def _give(self) -> None:
        try:
            self._pending = self._pending[os.write(self.master, self._pending) :]
        except BlockingIOError:
            return
        except OSError:
            self._pending = b""

    def _take(self) -> None:
        try:
            data = os.read(self.master, _BLOCK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""
        if not data:
            os.close(self.master)  # nobody holds the slave any more
            self.master = -1
            return
        view = memoryview(data)
        # a terminal that hung up takes nothing more; SIGHUP says so
        with contextlib.suppress(OSError):
            while view:
                view = view[os.write(self._output, view) :]
