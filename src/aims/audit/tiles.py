"""The log as static files: the layout of C2SP ``tlog-tiles``.

``tile/L/N`` holds 256 hashes of level L, ``tile/entries/N`` the 256 entries below them, each behind a length of two
octets; the rightmost ones are partial and named ``N.p/W`` by their width. Every file follows from the entries alone,
so writing one again after a crash writes the same bytes. Full files never change.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aims.audit.errors import AuditError
from aims.audit.merkle import leaf_hash, node_hash

WIDTH: Final = 256
HASH_OCTETS: Final = 32
MAX_ENTRY: Final = 65_535
CHECKPOINT: Final = "checkpoint"
_WRITING: Final = ".writing"  # files on their way to their name; readers skip this folder


def tile_path(level: int | None, index: int, width: int = WIDTH) -> str:
    """Return the path of a hash tile, or of an entry bundle if ``level`` is None; 1 to 256 wide."""
    groups = [f"{index % 1000:03d}"]
    while index >= 1000:
        index //= 1000
        groups.append(f"x{index % 1000:03d}")
    name = "/".join(reversed(groups))
    partial = "" if width == WIDTH else f".p/{width}"
    return f"tile/{'entries' if level is None else level}/{name}{partial}"


def pack(entries: list[bytes]) -> bytes:
    """Return an entry bundle. Raises ``AuditError("record_too_large")``."""
    if any(len(entry) > MAX_ENTRY for entry in entries):
        raise AuditError("record_too_large")
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def unpack(bundle: bytes, count: int) -> list[bytes]:
    """Return the ``count`` entries of a bundle. Raises ``AuditError("tile_malformed")`` on any other form."""
    entries: list[bytes] = []
    at = 0
    while at < len(bundle):
        begin = at + 2
        at = begin + int.from_bytes(bundle[at:begin], "big")
        entries.append(bundle[begin:at])
    if at != len(bundle) or len(entries) != count:
        raise AuditError("tile_malformed", "entry bundle")
    return entries


def perfect_root(hashes: list[bytes]) -> bytes:
    """Return the root over a power of two of hashes."""
    while len(hashes) > 1:
        hashes = [node_hash(hashes[i], hashes[i + 1]) for i in range(0, len(hashes), 2)]
    return hashes[0]


class LogFolder:
    """Durable files in one folder: a file appears whole under its name, or not at all."""

    __slots__ = ("path",)

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        """Create the folder, and drop files that a crash left half-written."""
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.rmtree(self.path / _WRITING, ignore_errors=True)
        (self.path / _WRITING).mkdir(mode=0o700)

    def read(self, name: str, limit: int) -> bytes | None:
        """Return a file of at most ``limit`` octets, or None. Raises ``AuditError("tile_malformed")`` above it."""
        try:
            with (self.path / name).open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            return None
        if len(data) > limit:
            raise AuditError("tile_malformed", name)
        return data

    def write(self, files: dict[str, bytes]) -> None:
        """Write the files, in this order, and return when they and their names are on disk."""
        folders: set[Path] = set()
        for name, data in files.items():
            target = self.path / name
            folder = target.parent
            if not folder.is_dir():
                folder.mkdir(mode=0o755, parents=True)
                folders.update(above for above in folder.parents if above.is_relative_to(self.path))
            temporary = self.path / _WRITING / "file"
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            folders.add(folder)
        for folder in sorted(folders):
            _sync_folder(folder)

    def remove(self, name: str) -> None:
        """Remove a folder of partial tiles, if it is there."""
        shutil.rmtree(self.path / name, ignore_errors=True)


class TileReader:
    """Hashes and entries of the tree with ``size`` leaves, as ``merkle.Nodes``."""

    __slots__ = ("_cache", "_folder", "size")

    def __init__(self, folder: LogFolder, size: int) -> None:
        self._folder = folder
        self._cache: dict[tuple[int, int], list[bytes]] = {}
        self.size = size

    def node(self, level: int, index: int) -> bytes:
        """Return the root of one perfect subtree inside the tree."""
        tile_level, inside = divmod(level, 8)
        first = index << inside
        hashes = self.hashes(tile_level, first // WIDTH)
        at = first % WIDTH
        chosen = hashes[at : at + (1 << inside)]
        if len(chosen) != 1 << inside:
            raise AuditError("proof_malformed", "node outside the tree")
        return perfect_root(chosen)

    def hashes(self, level: int, index: int) -> list[bytes]:
        """Return the hashes of one tile as far as they belong to the tree. The newest 64 tiles are remembered."""
        found = self._cache.get((level, index))
        if found is None:
            width = self._width(self.size >> (8 * level), index)
            data, full = self._file(level, index, width, WIDTH * HASH_OCTETS)
            if len(data) != full * HASH_OCTETS:
                raise AuditError("tile_malformed", tile_path(level, index, full))
            found = [data[at : at + HASH_OCTETS] for at in range(0, width * HASH_OCTETS, HASH_OCTETS)]
            if len(self._cache) >= 64:
                self._cache.pop(next(iter(self._cache)))
            self._cache[level, index] = found
        return found

    def bundle(self, index: int) -> list[bytes]:
        """Return the entries of one bundle as far as they belong to the tree."""
        width = self._width(self.size, index)
        data, full = self._file(None, index, width, WIDTH * (2 + MAX_ENTRY))
        return unpack(data, full)[:width]

    def entries(self, begin: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the entries [begin, end) in order; ``end`` defaults to the size of the tree."""
        end = self.size if end is None else end
        if not 0 <= begin <= end <= self.size:
            raise AuditError("proof_malformed", "range outside the tree")
        while begin < end:
            index, at = divmod(begin, WIDTH)
            chosen = self.bundle(index)[at : at + end - begin]
            yield from chosen
            begin += len(chosen)

    def _width(self, count: int, index: int) -> int:
        width = min(WIDTH, count - index * WIDTH)
        if width <= 0:
            raise AuditError("proof_malformed", "tile outside the tree")
        return width

    def _file(self, level: int | None, index: int, width: int, limit: int) -> tuple[bytes, int]:
        """The file of this width or, when the log has grown since, the full one; and which width it was."""
        for full in {width: None, WIDTH: None}:
            data = self._folder.read(tile_path(level, index, full), limit)
            if data is not None:
                return data, full
        raise AuditError("tile_missing", tile_path(level, index, width))


class TileWriter:
    """Appends entries in memory and writes the files that changed when it is told to."""

    __slots__ = ("_bundle", "_changed", "_files", "_folder", "_levels", "_superseded", "size")

    def __init__(self, folder: LogFolder, size: int) -> None:
        """Resume a log of ``size`` entries from its files. Raises ``AuditError`` when they do not hold together."""
        reader = TileReader(folder, size)
        self._folder = folder
        self._files: dict[str, bytes] = {}
        self._changed: set[int] = set()
        self._superseded: list[str] = []
        self._levels: list[list[bytes]] = []
        self.size = size
        count = size
        while count:
            index, width = divmod(count, WIDTH)
            self._levels.append(list(reader.hashes(len(self._levels), index)) if width else [])
            count = index
        self._bundle = reader.bundle(size // WIDTH) if size % WIDTH else []
        if [leaf_hash(entry) for entry in self._bundle] != (self._levels[0] if self._levels else []):
            raise AuditError("log_mismatch", "the last entries do not have the hashes of their tile")

    def append(self, entry: bytes) -> bytes:
        """Add one entry and return its leaf hash."""
        leaf = leaf_hash(entry)
        self._bundle.append(entry)
        if len(self._bundle) == WIDTH:
            self._keep(None, self.size // WIDTH, pack(self._bundle))
            self._bundle = []
        carry, level = leaf, 0
        while True:
            if level == len(self._levels):
                self._levels.append([])
            hashes = self._levels[level]
            hashes.append(carry)
            self._changed.add(level)
            if len(hashes) < WIDTH:
                break
            self._keep(level, self.size >> (8 * (level + 1)), b"".join(hashes))
            carry = perfect_root(hashes)
            self._levels[level] = []
            level += 1
        self.size += 1
        return leaf

    def flush(self) -> None:
        """Write everything appended so far; it is durable when this returns. May be called again after a failure."""
        files = dict(self._files)
        if self._bundle and self._changed:
            files[tile_path(None, self.size // WIDTH, len(self._bundle))] = pack(self._bundle)
        for level in sorted(self._changed):
            hashes = self._levels[level]
            if hashes:
                index = self.size >> (8 * (level + 1))
                files[tile_path(level, index, len(hashes))] = b"".join(hashes)
        self._folder.write(files)
        self._files.clear()
        self._changed.clear()

    def tidy(self) -> None:
        """Remove partial files whose full one is written and signed; readers then fall back to the full one."""
        while self._superseded:
            self._folder.remove(self._superseded.pop())

    def _keep(self, level: int | None, index: int, data: bytes) -> None:
        name = tile_path(level, index)
        self._files[name] = data
        self._superseded.append(f"{name}.p")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
