"""`aims run` with real processes: codes, signals, terminals, streams, and what happens when one side dies."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.launching import CLIENT, PATIENCE, PYTHON, Node, wait_for

SLEEP = "import select, sys; print('up', flush=True); select.select([], [], [], 60)"
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    folder = tmp_path / "node"
    folder.mkdir()
    node = Node(folder, grace=0.5)
    node.approve({"alpha": "unmeasured"})
    yield node
    node.close()


def _up(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"


def _python(node: Node, program: str) -> subprocess.Popen[bytes]:
    return node.client("alpha", PYTHON, "-I", "-c", program)


def test_exit_codes_are_the_programs_own(node: Node) -> None:
    for code in (0, 3, 255):
        assert node.run("alpha", "/bin/sh", "-c", f"exit {code}")[0] == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_death_by_a_signal_is_mirrored(node: Node, number: signal.Signals) -> None:
    assert node.run("alpha", "/bin/sh", "-c", f"kill -{number} $$")[0] == -number


@pytest.mark.parametrize(
    ("argv", "code", "reason"),
    [
        (["no-such-program-anywhere"], 127, b"program_not_found"),
        (["/no/such/program"], 127, b"program_not_found"),
        (["/etc/passwd"], 126, b"program_not_executable"),
        (["/"], 126, b"program_not_executable"),
        ([""], 127, b"program_not_found"),
        ([PYTHON], 125, b"program_missing"),
        ([PYTHON, "-"], 125, b"program_missing"),
    ],
)
def test_what_cannot_run_has_one_line_and_a_code(node: Node, argv: list[str], code: int, reason: bytes) -> None:
    found, out, err = node.run("alpha", *argv)
    assert (found, out) == (code, b"")
    assert reason in err
    assert err.count(b"\n") == 1


def test_signals_to_aims_run_reach_the_program(node: Node) -> None:
    program = (
        "import os, signal\n"
        "heard = lambda number, frame: os.write(1, b'%d\\n' % number)\n"
        "numbers = [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH]\n"
        "for number in numbers: signal.signal(number, heard)\n"
        "os.write(1, b'up\\n')\n"
        "while True: signal.pause()\n"
    )
    with _python(node, program) as process:
        _up(process)
        assert process.stdout is not None
        for name in ("SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH"):
            number = signal.Signals[name]
            process.send_signal(number)
            assert process.stdout.readline() == b"%d\n" % number
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == -signal.SIGTERM


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()


def test_stop_and_continue_reach_both_processes(node: Node) -> None:
    program = "import os, select; print(os.getpid(), flush=True)\nwhile True: select.select([], [], [], 60)"
    with _python(node, program) as process:
        assert process.stdout is not None
        agent = int(process.stdout.readline())
        process.send_signal(signal.SIGTSTP)
        wait_for(lambda: _state(agent) == "T" and _state(process.pid) == "T")
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: _state(agent) == "S" and _state(process.pid) == "S")
        process.terminate()
        assert process.wait(PATIENCE) == -signal.SIGTERM


def test_bytes_pass_through_pipes_unchanged(node: Node) -> None:
    data = os.urandom(1_000_000) + bytes(range(256))
    code, out, _ = node.run("alpha", "/bin/cat", data=data)
    assert code == 0
    assert out == data


def test_closed_streams_are_replaced_by_nothing(node: Node) -> None:
    command = [sys.executable, "-c", CLIENT, str(node.launch_socket), "alpha", "/bin/sh", "-c", "cat && exit 5"]
    close = "import os, sys; [os.close(number) for number in (0, 1, 2)]; os.execv(sys.argv[1], sys.argv[1:])"
    assert subprocess.run([sys.executable, "-c", close, *command], check=False, timeout=PATIENCE).returncode == 5


def test_descriptors_other_than_the_streams_do_not_reach_the_program(node: Node) -> None:
    code, out, _ = node.run("alpha", PYTHON, "-I", "-c", "import os; print(sorted(os.listdir('/proc/self/fd')))")
    assert code == 0
    # the fourth is the listing itself
    assert out == b"['0', '1', '2', '3']\n"


def test_the_program_starts_in_a_clean_state(node: Node) -> None:
    program = (
        "import os, resource\n"
        "lines = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(os.getcwd(), oct(os.umask(0)), resource.getrlimit(resource.RLIMIT_CORE), lines['NoNewPrivs'].strip(),"
        " lines['SigBlk'].strip(), os.getsid(0) == os.getpid())"
    )
    code, out, err = node.run("alpha", PYTHON, "-I", "-c", program, cwd="/usr/share", umask=0o027)
    assert code == 0, err
    assert out == b"/usr/share 0o27 (0, 0) 1 0000000000000000 True\n"


def test_launches_in_a_row_leave_no_zombies_and_no_descriptors(node: Node) -> None:
    node.run("alpha", "/bin/true")
    before = node.descriptors()
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom aims.cli.run_client import run\n"
        "for _ in range(200):\n"
        "    code = run('alpha', ['/bin/true'], launch_socket=Path(sys.argv[1]), quiet=True)\n"
        "    assert code == 0, code\n"
        "print(len(os.listdir('/proc/self/fd')))"
    )
    command = [sys.executable, "-c", program, str(node.launch_socket)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    assert int(done.stdout) < 10
    wait_for(lambda: node.children() == [])
    wait_for(lambda: node.descriptors() <= before)


def _refused_line(err: bytes) -> bytes:
    lines = [line for line in err.splitlines() if b"not passed on" not in line]
    assert len(lines) == 1, err
    return lines[0]


@pytest.mark.parametrize("stubborn", [False, True], ids=["obeys", "ignores-SIGTERM"])
def test_a_killed_node_takes_its_agents_along(node: Node, stubborn: bool) -> None:
    program = (STUBBORN if stubborn else "") + "import os; print(os.getpid(), flush=True)\n" + SLEEP
    client = CLIENT.replace("sys.exit", "import aims.cli.run_client as c; c.GRACE = 0.5\nsys.exit")
    command = [sys.executable, "-c", client, str(node.launch_socket), "alpha", PYTHON, "-I", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        agent = int(process.stdout.readline())
        _up(process)
        node.process.kill()
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (125, b"")
    assert b"node.node_gone" in _refused_line(err)
    # it ended before aims run did; whoever adopted it may not have reaped it yet
    wait_for(lambda: not Path(f"/proc/{agent}").exists() or _state(agent) == "Z", 5)


def test_a_killed_node_takes_an_agent_along_whose_client_is_killed_too(node: Node) -> None:
    with _python(node, "import os; print(os.getpid(), flush=True)\n" + SLEEP) as process:
        assert process.stdout is not None
        agent = int(process.stdout.readline())
        _up(process)
        process.send_signal(signal.SIGSTOP)
        node.process.kill()
        process.kill()
        process.communicate(timeout=PATIENCE)
    wait_for(lambda: not Path(f"/proc/{agent}").exists() or _state(agent) == "Z", 5)


@pytest.mark.parametrize("stubborn", [False, True], ids=["obeys", "ignores"])
def test_a_killed_client_takes_its_agent_along(node: Node, stubborn: bool) -> None:
    program = (STUBBORN if stubborn else "") + SLEEP
    with _python(node, program) as process:
        _up(process)
        assert len(node.children()) == 1
        started = time.monotonic()
        process.kill()
        process.communicate(timeout=PATIENCE)
    wait_for(lambda: node.children() == [])
    # whoever ignores SIGHUP has its time, and no more
    assert not stubborn or time.monotonic() - started > 0.5


def test_a_node_that_stops_ends_its_agents_and_tells_their_clients(node: Node) -> None:
    with _python(node, SLEEP) as obeys, _python(node, STUBBORN + SLEEP) as ignores:
        _up(obeys)
        _up(ignores)
        node.close()
        assert obeys.wait(PATIENCE) == -signal.SIGTERM
        assert ignores.wait(PATIENCE) == -signal.SIGKILL
        for client in (obeys, ignores):
            assert client.stderr is not None
            assert client.stderr.read().count(b"the node ended, so this agent was ended") == 1
    assert not node.launch_socket.exists()


def test_no_node_is_one_line_and_125(tmp_path: Path) -> None:
    for path in (tmp_path / "launch.sock", tmp_path / ("x" * 100)):
        command = [sys.executable, "-c", CLIENT, str(path), "alpha", "/bin/true"]
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
        assert (done.returncode, done.stdout) == (125, b"")
        assert _refused_line(done.stderr).startswith(b"aims run: node.")


class Screen:
    """A terminal with `aims run` in its foreground."""

    def __init__(self, node: Node, *argv: str) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 33, 99, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        command = [sys.executable, "-c", CLIENT, str(node.launch_socket), "alpha", *argv]
        # a session of its own whose controlling terminal is this one, as a shell has it
        program = (
            "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *command], stdin=slave, stdout=slave, stderr=slave
        )
        self.seen = b""

    def expect(self, text: bytes) -> None:
        """Read until ``text`` was shown."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, self.seen
            self.seen += os.read(self.master, 4096)
        self.seen = self.seen.partition(text)[2]

    def type(self, text: bytes) -> None:
        """Press keys."""
        os.write(self.master, text)

    def close(self) -> None:
        """End what is left."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


TERMINAL = """
import os, signal, sys
print(all(os.isatty(n) for n in (0, 1, 2)), tuple(os.get_terminal_size(0)), os.tcgetpgrp(0) == os.getpid(), flush=True)
def resized(number, frame):
    os.write(1, b"now %d %d\\n" % tuple(os.get_terminal_size(0)))
signal.signal(signal.SIGWINCH, resized)
with open("/dev/tty", "w") as tty:
    print("by name", file=tty, flush=True)
try:
    while True:
        print("read", repr(sys.stdin.readline()), flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(7)
"""


def test_a_terminal_is_the_programs_own(node: Node) -> None:
    screen = Screen(node, PYTHON, "-I", "-c", TERMINAL)
    try:
        screen.expect(b"True (99, 33) True")
        screen.expect(b"by name")
        screen.type(b"hello\r")
        screen.expect(b"read 'hello\\n'")
        fcntl.ioctl(screen.slave, termios.TIOCSWINSZ, struct.pack("4H", 20, 40, 0, 0))
        screen.expect(b"now 40 20")
        screen.type(b"\x03")
        screen.expect(b"interrupted")
        assert screen.process.wait(PATIENCE) == 7
        assert termios.tcgetattr(screen.slave) == screen.before
    finally:
        screen.close()


def test_ctrl_c_kills_a_program_that_does_not_listen_and_the_shell_sees_the_signal(node: Node) -> None:
    screen = Screen(node, "/bin/sh", "-c", "echo up; exec sleep 60")
    try:
        # the shell executes another program: that is nobody, but it still has its terminal
        screen.expect(b"up\r\n")
        screen.type(b"\x03")
        assert screen.process.wait(PATIENCE) == -signal.SIGINT
        assert termios.tcgetattr(screen.slave) == screen.before
    finally:
        screen.close()


def test_last_words_and_much_output_reach_the_terminal(node: Node) -> None:
    screen = Screen(node, PYTHON, "-I", "-c", "print('x' * 200_000 + 'end')")
    try:
        screen.expect(b"xend")
        assert screen.process.wait(PATIENCE) == 0
    finally:
        screen.close()


def test_a_closed_terminal_ends_the_program(node: Node) -> None:
    screen = Screen(node, PYTHON, "-I", "-c", SLEEP)
    try:
        screen.expect(b"up")
        assert len(node.children()) == 1
        screen.process.kill()
        wait_for(lambda: node.children() == [])
    finally:
        screen.close()
