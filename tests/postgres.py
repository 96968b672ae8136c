"""A PostgreSQL of the tests' own: started from the installed programs, in a temporary folder, gone at the end.

Root may not run it, so as root it runs as ``postgres`` or ``nobody`` with a folder of that user.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import psycopg
from psycopg import sql

_SECONDS = 30.0


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Poll until the condition holds; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come true within {seconds} s")
        time.sleep(0.005)


def programs() -> Path | None:
    """Return the folder of ``postgres`` and ``initdb``, or None."""
    candidates = []
    found = shutil.which("postgres")
    if found:
        candidates.append(Path(found).resolve().parent)
    config = shutil.which("pg_config")
    if config:
        answer = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False)
        candidates.append(Path(answer.stdout.strip()))
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    return next((path for path in candidates if (path / "initdb").exists() and (path / "postgres").exists()), None)


class Cluster:
    """One server process with its data; ``url`` names a database in it.

    The data lie in memory where there is enough: killing processes loses nothing there. ``parent`` is a folder on a
    real disk for whoever measures commits.
    """

    def __init__(self, bin_: Path, parent: Path | None = None) -> None:
        self._bin = bin_
        self._folder = Path(tempfile.mkdtemp(prefix="aims-pg-", dir=parent or _quick_folder()))
        self._user = _unprivileged() if os.getuid() == 0 else None
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        self._numbers = count(1)
        self._server: subprocess.Popen[bytes] | None = None
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._run("initdb", "-D", self._data, "-U", "aims", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def url(self, database: str, *, tcp: bool = False) -> str:
        if tcp:
            return f"postgresql://aims@127.0.0.1:{self.port}/{database}"
        return f"postgresql://aims@/{database}?host={self._folder}&port={self.port}"

    def start(self) -> None:
        """Start and wait until it answers; as root the server ends with the thread that called this."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self._folder),
            "port": str(self.port),
            "shared_buffers": "32MB",
            "max_connections": "80",
            "max_wal_size": "128MB",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [*self._prefix(), str(self._bin / "postgres"), "-D", self._data, *options],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self._answers, _SECONDS)

    def kill(self) -> None:
        """End every process of the server at once, as a power cut would."""
        assert self._server is not None
        # Each backend leads a session of its own. The parent is stopped first, so that none is born meanwhile.
        self._server.send_signal(signal.SIGSTOP)
        children = _children(self._server.pid)
        for pid in (self._server.pid, *children):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._server.wait(_SECONDS)
        self._server = None
        until(lambda: not any(_runs(pid) for pid in children), _SECONDS)

    def restart(self) -> None:
        """Start again after ``kill``."""
        self.start()

    def fresh(self, template: str = "template0") -> str:
        """Make a database and return its name."""
        name = f"aims{next(self._numbers)}"
        with self.admin() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            )
        return name

    def drop(self, name: str) -> None:
        with self.admin() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def admin(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=5)

    def close(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        if self._server is None or self._server.poll() is not None:
            raise AssertionError((self._folder / "log").read_text("utf-8", "replace")[-2000:])
        try:
            self.admin().close()
        except psycopg.OperationalError:
            return False
        return True

    def _prefix(self) -> list[str]:
        if self._user is None:
            return []
        found = shutil.which("setpriv")
        assert found, "root needs setpriv to start PostgreSQL"
        user = [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups"]
        # Tests that are killed leave no server behind.
        return [found, *user, "--pdeathsig=QUIT", "--"]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._prefix(), str(self._bin / program), *arguments],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr


def _quick_folder() -> Path:
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK | os.X_OK) and shutil.disk_usage(memory).free > 1 << 30:
        return memory
    return Path("/tmp")


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # After the name, which stands in brackets: state, parent.
            if int(path.read_text("utf-8", "replace").rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _unprivileged() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError("no unprivileged user to run PostgreSQL as")
