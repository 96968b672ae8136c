"""How long `import aims` and `aims --help` take over bare Python, and what server and node hold in memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 7


def _seconds(*arguments: str) -> float:
    """The best of several runs: the machine's noise only ever adds."""
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        best = min(best, time.perf_counter() - begun)
    return best


def _resident(pid: int) -> int:
    """Resident memory in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def main() -> None:
    """Print both tables."""
    bare = _seconds("-c", "pass")
    print(f"{'program':34}{'ms':>8}{'x bare':>8}")
    for name, arguments in (
        ("python -c pass (baseline)", ("-c", "pass")),
        ("import aims", ("-c", "import aims")),
        ("from aims import Identity", ("-c", "from aims import Identity")),
        ("aims --help", ("-m", "aims", "--help")),
    ):
        took = _seconds(*arguments)
        print(f"{name:34}{took * 1000:8.0f}{took / bare:8.1f}")
    with tempfile.TemporaryDirectory(prefix="aims-b-") as folder:
        options = ("--state-dir", f"{folder}/s", "--run-dir", f"{folder}/r", "--port", "0", "--mtls-port", "0")
        process = subprocess.Popen([sys.executable, "-m", "aims", "up", *options], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line == "ready\n":
                    break
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
            print(f"\n{'resident after start':34}{'MiB':>8}")
            print(f"{'supervisor':34}{_resident(process.pid) / 1024:8.0f}")
            for child in children:
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                print(f"{words[2].decode():34}{_resident(int(child)) / 1024:8.0f}")
        finally:
            process.terminate()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    print("\nreally done: whole processes, started and ended; memory read from the kernel once the node was ready")


if __name__ == "__main__":
    main()
