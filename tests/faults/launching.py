"""A node that does nothing but launch, and says who is on the other end; and programs to launch with it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PATIENCE = 20.0
PYTHON = os.path.realpath(sys.executable)

NODE = """
import asyncio, json, signal, sys
from pathlib import Path
from aims.attestation import LaunchProfile
from aims.clock import SystemClock, SystemIds
from aims.errors import AimsError
from aims.identifiers import SpiffeId, TrustDomain
from aims.node.hardening import harden
from aims.node.approvals import Approved
from aims.node.launch import Launcher
from aims.node.peer import peer_of

folder = Path(sys.argv[1])
grace = float(sys.argv[2])


class Approvals:
    def approved(self, name):
        rows = json.loads((folder / "approved.json").read_text())
        row = rows.get(name)
        if row is None:
            return None
        profile = row["profile"] if row["profile"] == "unmeasured" else LaunchProfile.parse(row["profile"].encode())
        spiffe_id = SpiffeId.agent(TrustDomain("local.test"), name)
        return Approved(profile=profile, launch_uids=frozenset(row["uids"]), spiffe_id=spiffe_id)


async def main():
    harden()
    clock = SystemClock()
    launcher = Launcher(
        Approvals(), node="laptop", folder=folder, clock=clock, ids=SystemIds(clock), grace=grace, mode=0o666
    )
    await launcher.start()

    async def who(reader, writer):
        try:
            with peer_of(writer.get_extra_info("socket")) as peer:
                while await reader.readline():
                    answer = {"launched": None, "nested": False, "error": None}
                    try:
                        answer["nested"] = launcher.nested(peer)
                        launch = launcher.launched(peer)
                        if launch is not None:
                            await launcher.recheck(launch)
                            answer |= {
                                "launched": launch.name,
                                "instance": launch.instance,
                                "posture": launch.posture,
                                "selectors": sorted(map(str, launch.selectors)),
                            }
                    except AimsError as error:
                        answer["error"] = error.code
                    writer.write(json.dumps(answer).encode() + b"\\n")
                    await writer.drain()
        except (AimsError, ConnectionError) as error:
            print(error, file=sys.stderr)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(who, folder / "workload.sock")
    (folder / "workload.sock").chmod(0o666)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    await stop.wait()
    await launcher.stop()
    server.close()


asyncio.run(main())
"""

ASK = """
import json, os, socket

def connect():
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(20)
    peer.connect(os.environ["SPIFFE_ENDPOINT_SOCKET"].removeprefix("unix://"))
    return peer

def ask(peer):
    peer.sendall(b"?\\n")
    return json.loads(peer.makefile("rb").readline())
"""

CLIENT = """
import os, sys
from pathlib import Path
from aims.cli.run_client import run

if "AS_UID" in os.environ:  # after the imports, which this user may not be able to read
    uid = int(os.environ["AS_UID"])
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
sys.exit(run(sys.argv[2], sys.argv[3:], launch_socket=Path(sys.argv[1]), quiet=False))
"""


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Return when ``condition`` holds; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "a condition did not come true in time"
        select.select([], [], [], 0.01)


class Node:
    """One launching node in a process of its own."""

    def __init__(self, folder: Path, *, grace: float = 10.0) -> None:
        self.folder = folder
        folder.chmod(0o755)
        self.launch_socket = folder / "launch.sock"
        self.approve({})
        self.process = subprocess.Popen(
            [sys.executable, "-c", NODE, str(folder), str(grace)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        assert ready == b"ready\n", self.process.stderr and self.process.stderr.read().decode()

    def approve(self, rows: Mapping[str, str], uids: Sequence[int] = ()) -> None:
        """Approve profiles (canonical JSON, or ``unmeasured``) by name, in place of all others."""
        new = self.folder / "approved.new"
        new.write_text(json.dumps({name: {"profile": profile, "uids": list(uids)} for name, profile in rows.items()}))
        new.replace(self.folder / "approved.json")

    def client(self, name: str, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start `aims run --as NAME -- ARGV`."""
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # isolated, so that the environment acts on the launched program alone, if at all
        command = [sys.executable, "-I", "-c", CLIENT, str(self.launch_socket), name, *argv]
        return subprocess.Popen(command, **{**streams, **options})

    def run(self, name: str, *argv: str, data: bytes = b"", **options: Any) -> tuple[int, bytes, bytes]:
        """Run to the end; return exit code (negative: died by that signal), output and errors."""
        with self.client(name, *argv, **options) as process:
            out, err = process.communicate(data, timeout=PATIENCE * 2)
        return process.returncode, out, err

    def descriptors(self) -> int:
        """Count the open descriptors of the node."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def children(self) -> list[str]:
        """Return the states of the node's children, ``Z`` for a zombie."""
        states = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                except OSError:
                    continue
                if int(fields[1]) == self.process.pid:
                    states.append(fields[0].decode())
        return states

    def ask(self) -> dict[str, Any]:
        """Ask the node who this very process is."""
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(PATIENCE)
            peer.connect(str(self.folder / "workload.sock"))
            peer.sendall(b"?\n")
            answer: dict[str, Any] = json.loads(peer.makefile("rb").readline())
            return answer

    def close(self) -> None:
        """Stop the node, whatever state it is in."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
