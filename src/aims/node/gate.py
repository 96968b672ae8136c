"""The gate: a tiny program that the node starts, and that becomes the agent.

Between fork and exec of a process with threads hardly anything may run, so the preparations run here, in a program of
their own: ``python -I -S gate.py DESCRIPTOR``. It imports nothing but the standard library and reads no file.

On the control socket it reads its orders (four octets of length, JSON whose texts are octets as Latin-1), prepares,
answers ``R``, waits for ``G``, and executes the descriptor of the measured file. The socket closes by itself when that
worked; otherwise the gate sends ``E``, the errno and the step. When the node goes away, the gate ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import sys
import termios
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38


def main(control: socket.socket) -> int:
    """Prepare, wait for the word and become the agent; return only when something failed."""
    step = "orders"
    try:
        orders = _orders(control)
        if orders is None:
            return 1
        for descriptor in (control.fileno(), orders["executable"], orders["folder"]):
            os.set_inheritable(descriptor, False)
        for name, prepare in _STEPS:
            step = name
            prepare(orders)
        control.sendall(b"R")
        step = "word"
        if control.recv(1) != b"G":
            return 1
        step = "exec"
        argv = [_octets(argument) for argument in orders["argv"]]
        environment = {_octets(name): _octets(value) for name, value in orders["environment"]}
        os.execve(orders["executable"], argv, environment)  # noqa: S606 - this is what the gate is for
    except OSError as error:
        control.sendall(b"E%d %b" % (error.errno or 0, step.encode()))
    return 1


def _orders(control: socket.socket) -> dict[str, Any] | None:
    length = _read(control, 4)
    text = None if length is None else _read(control, int.from_bytes(length, "big"))
    return None if text is None else json.loads(text)


def _read(control: socket.socket, length: int) -> bytes | None:
    parts = b""
    while len(parts) < length:
        part = control.recv(length - len(parts))
        if not part:
            return None
        parts += part
    return parts


def _octets(text: str) -> bytes:
    return text.encode("latin-1")


def _limits(orders: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(orders["umask"])


def _folder(orders: dict[str, Any]) -> None:
    os.fchdir(orders["folder"])


def _terminal(orders: dict[str, Any]) -> None:
    if orders["terminal"] >= 0:
        fcntl.ioctl(orders["terminal"], termios.TIOCSCTTY, 0)


def _identity(orders: dict[str, Any]) -> None:
    if orders["uid"] is not None:
        os.setgroups(orders["groups"])
        os.setresgid(orders["gid"], orders["gid"], orders["gid"])
        os.setresuid(orders["uid"], orders["uid"], orders["uid"])


def _bonds(orders: dict[str, Any]) -> None:
    # after the change of identity, which would clear the first of them
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    if os.getppid() != orders["node"]:
        raise ProcessLookupError(3, "the node is gone")


def _signals(_: dict[str, Any]) -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_DFL)
        except OSError:
            continue  # two real-time signals belong to the C library
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_LIBC = ctypes.CDLL(None, use_errno=True)
_STEPS = (
    ("limits", _limits),
    ("folder", _folder),
    ("terminal", _terminal),
    ("identity", _identity),
    ("bonds", _bonds),
    ("signals", _signals),
)

if __name__ == "__main__":
    sys.exit(main(socket.socket(fileno=int(sys.argv[1]))))
