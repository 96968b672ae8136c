"""The client side of ``aims run``: ask the node for a launch, be its terminal and its signals, end as it ends.

Exit codes: the program's own; death by the same signal as the program; 125 when AIMS refused or failed, 126 when the
program cannot be executed, 127 when it was not found, each with one line on standard error.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from aims.attestation import LaunchProfile
from aims.clock import SystemClock
from aims.errors import AimsError
from aims.node import environment
from aims.node.errors import NodeError
from aims.node.launch_protocol import (
    FORWARDED,
    MAX_PACKET,
    MAX_REPLY,
    VERSION,
    Ended,
    Refused,
    Signal,
    Start,
    Started,
    encode,
    parse_reply,
    refusal,
)
from aims.node.launch_socket import MAX_PATH_OCTETS
from aims.node.measure import Measurer, homes_of
from aims.node.program import DEFAULT_PATH, resolve
from aims.node.terminal import Terminal

GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL for a program whose node has died."""

MAX_NAMED = 6
"""So many variables are named that the program does not see."""

STANDARD = (0, 1, 2)


def run(name: str, argv: Sequence[str], *, launch_socket: Path, quiet: bool = False) -> int:
    """Run ``argv`` as the agent ``name`` in this process's folder, environment and streams; return its exit code.

    Does not return when the program died by a signal: this process then dies by the same one. ``quiet`` keeps back
    the line about variables that the program does not see. Call it from the main thread.
    """
    _fill_standard()
    session = _Session(quiet=quiet)
    try:
        outcome = session.run(name, argv, launch_socket)
    except AimsError as error:
        outcome = refusal(error)
    finally:
        session.close()
    if isinstance(outcome, Refused):
        differs = f" ({', '.join(outcome.differs)})" if outcome.differs else ""
        _say(f"{outcome.code}: {outcome.sentence.rstrip('.')}{differs}. {outcome.hint}")
        return outcome.exit_code
    return _die_by(outcome.signal) if outcome.signal else outcome.status


def measure_for_registration(
    argv: Sequence[str], cwd: Path, roots: Sequence[Path] = (), *, more_arguments: bool = False
) -> LaunchProfile:
    """Measure a command as the node will measure it, and return the profile that approves it.

    All of ``argv`` is fixed; with ``more_arguments`` others may follow at a launch. ``roots`` are files and folders
    that are code besides the program's own file and its virtual environment; relative ones are taken from ``cwd``.

    Raises: NodeError for a program that cannot be found, resolved or measured, ``program_missing`` where further
        arguments could be code; AttestationError ``profile_malformed``.
    """
    kept, _ = environment.clean(os.environ)
    with resolve(argv, cwd=os.fspath(cwd.resolve()), path=kept.get("PATH", DEFAULT_PATH)) as program:
        if more_arguments and not program.open_ended:
            raise NodeError("program_missing", "further arguments could be code")
        measured = Measurer(SystemClock()).measure(
            program,
            roots=[os.fspath((cwd / root).resolve()) for root in roots],
            homes=homes_of(os.getuid(), kept.get("HOME")),
        )
    return LaunchProfile.of(measured.measurement, more_arguments=more_arguments)


def beside(profile: LaunchProfile, cwd: Path) -> list[str]:
    """Return the Python files and packages beside the script of ``profile`` that none of its code roots covers.

    A script can import them, and nobody notices when they change.
    """
    script = next((cwd / word for word in profile.head[1:] if word.endswith(".py") and (cwd / word).is_file()), None)
    if script is None:
        return []
    roots = [Path(root.path) for root in profile.roots]
    found = [
        *script.parent.resolve().glob("*.py"),
        *(init.parent for init in script.parent.resolve().glob("*/__init__.py")),
    ]
    return sorted(path.name for path in found if path != script.resolve() and not _covered(path, roots))


def _covered(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


class _Session:
    """One launch as its client sees it."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal: Terminal | None = None
        self._pidfd = -1
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)

    def run(self, name: str, argv: Sequence[str], path: Path) -> Ended | Refused:
        with _connect(path) as connection, _signals_to(self._wake):
            self._start(connection, name, argv)
            outcome = self._follow(connection)
            if outcome is not None:
                if isinstance(outcome, Ended) and not path.exists():
                    # a node takes its socket away before it ends what it started
                    _say("the node ended, so this agent was ended. Start it again: aims up")
                return outcome
            self._end_alone()
        raise NodeError("node_gone")

    def close(self) -> None:
        if self._terminal is not None:
            self._terminal.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._woken.close()
        self._wake.close()

    def _start(self, connection: socket.socket, name: str, argv: Sequence[str]) -> None:
        with contextlib.ExitStack() as stack:
            stdio = list(STANDARD)
            if any(os.isatty(descriptor) for descriptor in stdio):
                self._terminal = Terminal(stdio)
                stdio = [self._terminal.slave if os.isatty(descriptor) else descriptor for descriptor in stdio]
            try:
                folder = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise NodeError("descriptors", "the current folder") from error
            stack.callback(os.close, folder)
            mask = os.umask(0o077)
            os.umask(mask)
            packet = encode(
                Start(
                    version=VERSION,
                    name=name,
                    argv=tuple(os.fsencode(argument) for argument in argv),
                    environment=tuple(os.environb.items()),
                    umask=mask,
                    terminal=-1 if self._terminal is None else self._terminal.index,
                )
            )
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_PACKET)
            try:
                socket.send_fds(connection, [packet], [*stdio, folder])
            except ConnectionError:
                return  # the node may have answered before it closed
            except OSError as error:
                raise NodeError("request_too_large", error.strerror or "") from error
        if self._terminal is not None:
            self._terminal.started()

    def _follow(self, connection: socket.socket) -> Ended | Refused | None:
        """Copy and forward until the node tells the end; None when it went away."""
        while True:
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            poll.register(self._woken, select.POLLIN)
            if self._terminal is not None:
                self._terminal.register(poll)
            ready = dict(poll.poll())
            # the node speaks first: the terminal is raw before the program's first words are copied
            if connection.fileno() in ready:
                message = self._receive(connection)
                if not isinstance(message, Started):
                    if self._terminal is not None and isinstance(message, Ended):
                        self._terminal.drain()
                    return message
                self._started(message)
            if self._woken.fileno() in ready:
                self._forward(connection)
            if self._terminal is not None:
                self._terminal.copy(ready)

    def _receive(self, connection: socket.socket) -> Started | Ended | Refused | None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(connection, MAX_REPLY, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return None
        for descriptor in descriptors:
            self._pidfd = descriptor
        return parse_reply(packet) if packet else None

    def _started(self, message: Started) -> None:
        if message.dropped and not self._quiet:
            more = len(message.dropped) - MAX_NAMED
            names = ", ".join(message.dropped[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
            _say(f"not passed on, since they can change what code runs: {names}")
        if self._terminal is not None:
            self._terminal.raw()

    def _forward(self, connection: socket.socket) -> None:
        for number in self._woken.recv(64):
            if number == signal.SIGWINCH and self._terminal is not None:
                self._terminal.resize()
                continue
            with contextlib.suppress(OSError):
                connection.send(encode(Signal(number=number)))
            if number == signal.SIGTSTP:
                if self._terminal is not None:
                    self._terminal.restore()
                os.kill(os.getpid(), signal.SIGSTOP)
            elif number == signal.SIGCONT and self._terminal is not None:
                self._terminal.raw()

    def _end_alone(self) -> None:
        """End a program whose node has died: the kernel has sent SIGTERM, the rest is up to us."""
        if self._pidfd < 0:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._pidfd, number)
            if select.select([self._pidfd], [], [], GRACE)[0]:
                return


def _connect(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > MAX_PATH_OCTETS:
        raise NodeError("socket_path", str(path))
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        connection.connect(os.fspath(path))
    except OSError as error:
        connection.close()
        raise NodeError("node_gone", error.strerror or "") from error
    return connection


@contextlib.contextmanager
def _signals_to(wake: socket.socket) -> Iterator[None]:
    """Turn the signals that are forwarded into octets on a socket."""
    before = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    # what the caller ignores stays ignored, as under nohup
    heard = [number for number in sorted(FORWARDED) if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, lambda _number, _frame: None) for number in heard}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(before)


def _fill_standard() -> None:
    """Open nothing in place of closed standard streams, so that no other file takes their numbers."""
    for descriptor in STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open("/dev/null", os.O_RDWR)  # the lowest free number, which is this one


def _die_by(number: int) -> int:
    """Die by a signal, as the program did; return 128 + number only where that is impossible."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(AttributeError, OSError):  # there may be no standard output
        sys.stdout.flush()
    with contextlib.suppress(OSError):  # SIGKILL has no handler to reset
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    return 128 + number


def _say(text: str) -> None:
    line = text.encode("utf-8", "backslashreplace").replace(b"\n", b" ")
    with contextlib.suppress(OSError):
        os.write(2, b"aims run: " + line + b"\n")
