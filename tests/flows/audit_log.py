"""A log under test: a database, a folder, a key, and a clock that the test moves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aims.audit.checkpoint import Checkpoint, VerifierKey
from aims.audit.merkle import leaf_hash, root_of
from aims.audit.record import body
from aims.audit.sequencer import Sequencer
from aims.audit.store import sequencing_engine, turn
from aims.audit.tiles import LogFolder, TileReader, tile_path
from aims.audit.verify import Result, verify
from aims.storage.engine import Location
from aims.storage.schema import outbox, writer

ORIGIN = "local.test/audit"
START = 1_764_000_000.0


class StoppedClock:
    """Both clocks stand still until the test moves them."""

    def __init__(self) -> None:
        self.wall = START
        self.steady = 1_000.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


class CountedIds:
    """Identifiers 1, 2, 3 ..."""

    def __init__(self) -> None:
        self._last = 0

    def new(self) -> str:
        self._last += 1
        return f"{self._last:026d}"

    def token(self, octets: int = 16) -> str:
        return "A" * octets


def record(number: int, **members: Any) -> bytes:
    """A body that no other number gives."""
    fields: dict[str, Any] = {
        "type": "token.refuse",
        "outcome": "refused",
        "time": START + number,
        "id": f"{number:026d}",
        "action": "token",
        "decision": {"effect": "deny", "reason": "authorization.scope"},
        "request_id": f"r{number}",
    }
    return body(**{**fields, **members})


class LogUnderTest:
    """The database side (what committers do), the sequencer, and the folder."""

    def __init__(self, url: str, folder: Path) -> None:
        location = Location.parse(url)
        self.engine = sequencing_engine(location)
        self.turn = turn(location)
        self.folder = folder
        self.clock = StoppedClock()
        self.ids = CountedIds()
        self.private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
        self.key = VerifierKey(ORIGIN, self.private.public_key().public_bytes_raw())
        self.written: dict[str, int] = {}
        self.untouched: dict[str, bytes] = {}

    @property
    def vkey(self) -> str:
        return str(self.key)

    def sequencer(self, *, sign: Callable[[bytes], bytes] | None = None) -> Sequencer:
        return Sequencer(
            engine=self.engine,
            folder=self.folder,
            key=self.key,
            sign=sign or self.private.sign,
            clock=self.clock,
            ids=self.ids,
            baton=self.turn,
        )

    def commit(self, name: str, bodies: list[bytes]) -> None:
        """What the committer does with the records of one batch."""
        reached = self.written.get(name, 0)
        with self.engine.begin() as connection:
            if reached == 0:
                connection.execute(sa.insert(writer).values(writer=name, n=0))
            rows = [{"writer": name, "n": n, "body": octets} for n, octets in enumerate(bodies, reached + 1)]
            connection.execute(sa.insert(outbox), rows)
            connection.execute(sa.update(writer).where(writer.c.writer == name).values(n=reached + len(bodies)))
        self.written[name] = reached + len(bodies)

    def files(self) -> dict[str, bytes]:
        """Every file of the log that readers see."""
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and ".writing" not in path.parts
        }

    def entries(self) -> list[bytes]:
        signed = Checkpoint.verified((self.folder / "checkpoint").read_bytes(), self.key)
        return list(TileReader(LogFolder(self.folder), signed.size).entries())

    def verify(self, remembered: bytes | None = None) -> Result:
        return verify(self.folder, self.vkey, remembered, patience=0)

    def sign(self, size: int, root: bytes) -> bytes:
        return Checkpoint(ORIGIN, size, root).signed(self.key, self.private.sign)


def forge(log: LogUnderTest, entries: list[bytes], folder: Path) -> None:
    """Write a log of these entries with all hashes right and signed by the log's own key: what its owner could do."""
    hashes = [leaf_hash(entry) for entry in entries]
    files = {"checkpoint": log.sign(len(entries), root_of(hashes))}
    for at in range(0, len(entries), 256):
        some = entries[at : at + 256]
        index = at // 256
        files[tile_path(None, index, len(some))] = b"".join(len(e).to_bytes(2, "big") + e for e in some)
        files[tile_path(0, index, len(some))] = b"".join(hashes[at : at + 256])
    full = len(entries) // 256
    if full:
        roots = [root_of(hashes[at * 256 : at * 256 + 256]) for at in range(full)]
        files[tile_path(1, 0, full)] = b"".join(roots)
    put(folder, files)


def put(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder hold exactly these files."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@contextmanager
def opened(url: str, folder: Path) -> Iterator[LogUnderTest]:
    log = LogUnderTest(url, folder)
    try:
        yield log
    finally:
        log.engine.dispose()
