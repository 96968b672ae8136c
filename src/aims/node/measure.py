"""Measuring: digests of the executable and of the code roots, and a fingerprint that notices swap and swap-back.

A digest says what the content is. The fingerprint keeps inodes and change times too, so content that was exchanged
and put back between two looks does not pass unnoticed. What ran in between is not undone.

A change time moves with the first write to a page that was clean. Whoever has a file mapped for writing and its pages
dirty already can go on writing without a trace, so a file that is open for writing is not measured at all.

Everything here reads files and blocks: the node calls it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import pwd
import signal
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from aims.attestation import CodeRoot, Measurement
from aims.clock import Clock
from aims.node.errors import NodeError
from aims.node.moves import Moves, Watch
from aims.node.program import Program

MAX_FILES = 50_000
MAX_OCTETS = 2 * 1024**3
MAX_CACHED = 200_000
SETTLED = 2.0
"""Seconds after its last change from which a file's digest is remembered: change times can be coarse."""
TELLING = frozenset({"ext2", "ext3", "ext4", "xfs", "f2fs", "overlay"})
"""File systems on which the first write through a mapping changes the file's change time. A file in memory (tmpfs)
can be written through a mapping without any trace, so elsewhere no digest is remembered."""

_BLOCK = 1024 * 1024
_BYTECODE = b"__pycache__"

Key = tuple[int, int, int, int]


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Executable:
    """The identity of an executable: what ``fstat`` said when it was measured."""

    device: int
    inode: int
    size: int
    written: int
    changed: int

    @classmethod
    def of(cls, found: os.stat_result) -> Executable:
        """Take the identity out of a stat result."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def same_file(self, other: Executable) -> bool:
        """Tell whether both are one file that nobody wrote, whatever happened to its links and rights meanwhile."""
        return replace(self, changed=0) == replace(other, changed=0)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Inodes and change times of one code root: ``files`` as a digest, ``folders`` as path -> (identity, bytecode)."""

    files: str
    folders: dict[bytes, tuple[Key, bool]]

    def same(self, later: Fingerprint) -> bool:
        """Tell whether nothing was touched since.

        A folder in which Python has made ``__pycache__`` meanwhile is excused: that is done by anybody who imports
        the same code, and its content is not read by a launched program.
        """
        if self.files != later.files or self.folders.keys() != later.folders.keys():
            return False
        return all(
            entry[0] == later.folders[path][0] or (not entry[1] and later.folders[path][1])
            for path, entry in self.folders.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A measurement with what is needed to look again later.

    ``path``: the real path of the executable; ``absent``: files that must not come to be; ``above``: the folders that
    lead to the code roots, which must not be moved. Whoever ends with it releases that watch.
    """

    measurement: Measurement
    executable: Executable
    path: str
    fingerprints: tuple[Fingerprint, ...]
    skip_bytecode: bool
    absent: tuple[str, ...] = ()
    above: Watch | None = field(default=None, compare=False)

    def release(self) -> None:
        """Watch nothing any more; may be called again."""
        if self.above is not None:
            self.above.release()


class Measurer:
    """Measures programs; remembers digests of settled files by (device, inode, change time, size).

    ``moves`` watches the folders above the code; without it nothing is watched, which is enough for a look.
    """

    __slots__ = ("_cache", "_clock", "_moves", "_telling")

    def __init__(self, clock: Clock, moves: Moves | None = None) -> None:
        self._clock = clock
        self._moves = moves
        self._cache: dict[Key, bytes] = {}
        self._telling: dict[int, bool] = {}

    def measure(
        self,
        program: Program,
        *,
        roots: Sequence[str] = (),
        homes: Collection[str] = (),
        alone: Measured | None = None,
        gone: Callable[[], bool] = _never,
    ) -> Measured:
        """Measure the ELF and the code roots: the program's own and ``roots`` (absolute).

        ``homes`` are folders that may neither be a root nor lie in one. ``alone`` is the program's `executable`, where
        that was asked before. ``gone`` is asked before each file whether nobody waits for the answer any more.

        Raises: NodeError ``program_starter`` where the program starts another one and no root is named,
            ``root_refused``, ``code_too_large``, ``code_unreadable``, ``code_changing``, ``code_unwatched``,
            ``peer_gone``.
        """
        if program.starter and not roots:
            raise NodeError("program_starter", program.argv[0])
        if alone is None:
            alone = self.executable(program)
        paths = root_paths(program, roots)
        above = None if self._moves is None else self._moves.watch(paths)
        try:
            measured, fingerprints = self._roots(paths, program.python, homes, gone)
        except BaseException:
            if above is not None:
                above.release()
            raise
        measurement = replace(alone.measurement, roots=measured)
        return replace(alone, measurement=measurement, fingerprints=fingerprints, above=above)

    def executable(self, program: Program) -> Measured:
        """Measure the ELF alone, for a program that is approved unmeasured.

        Raises: NodeError ``code_too_large``, ``code_unreadable``, ``code_changing``.
        """
        digest, found = self._file(program.descriptor, program.argv[0])
        return Measured(
            measurement=Measurement(executable=digest.hex(), argv=program.argv, roots=()),
            executable=Executable.of(found),
            path=os.path.realpath(program.argv[0]),
            fingerprints=(),
            skip_bytecode=program.python,
            absent=program.absent,
        )

    def again(self, before: Measured) -> Measured | None:
        """Read the code roots again; None if content, inodes or change times are not as they were, a folder above was
        moved, or a file came to be that would have been code.

        Compare with the answer the next time: a folder that was excused once is not excused twice.

        Raises: NodeError as ``measure``.
        """
        if any(map(os.path.lexists, before.absent)):
            return None
        paths = [root.path for root in before.measurement.roots]
        roots, fingerprints = self._roots(paths, before.skip_bytecode, ())
        same = all(earlier.same(later) for earlier, later in zip(before.fingerprints, fingerprints, strict=True))
        # last: a move during the reading counts too
        same = same and not (before.above is not None and before.above.moved)
        return replace(before, fingerprints=fingerprints) if same and roots == before.measurement.roots else None

    def _roots(
        self, paths: Sequence[str], skip_bytecode: bool, homes: Collection[str], gone: Callable[[], bool] = _never
    ) -> tuple[tuple[CodeRoot, ...], tuple[Fingerprint, ...]]:
        for path in paths:
            refuse_wide(path, homes)
        budget = _Budget(gone)
        roots: list[CodeRoot] = []
        fingerprints: list[Fingerprint] = []
        for path in paths:
            digest, fingerprint = self._root(path, skip_bytecode, budget)
            roots.append(CodeRoot(path, digest))
            fingerprints.append(fingerprint)
        return tuple(roots), tuple(fingerprints)

    def _root(self, root: str, skip_bytecode: bool, budget: _Budget) -> tuple[str, Fingerprint]:
        content, files = hashlib.sha256(), hashlib.sha256()
        folders: dict[bytes, tuple[Key, bool]] = {}
        for name, path, found in _walk(os.fsencode(root), skip_bytecode, folders):
            kind, digest = b"o", b""
            budget.take(found)
            if stat.S_ISREG(found.st_mode):
                kind = b"f"
                digest, found = self._path(path)  # noqa: PLW2901 - the identity of what was opened counts
            elif stat.S_ISLNK(found.st_mode):
                # recorded, never followed: what it names is code only if it lies in a root itself
                kind, digest = b"l", hashlib.sha256(_link(path)).digest()
            elif stat.S_ISDIR(found.st_mode):
                kind = b"d"
            # fields of fixed length first, and no name holds a zero octet: one reading only
            content.update(b"%c %04o %-64b %b\0" % (kind, stat.S_IMODE(found.st_mode), digest.hex().encode(), name))
            if kind != b"d":
                files.update(b"%b\0%d %d %d %d\0" % (name, *_key(found)))
        return content.hexdigest(), Fingerprint(files.hexdigest(), folders)

    def _path(self, path: bytes) -> tuple[bytes, os.stat_result]:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise NodeError("code_unreadable", f"{os.fsdecode(path)}: {error.strerror}") from error
        try:
            return self._file(descriptor, os.fsdecode(path))
        finally:
            os.close(descriptor)

    def _file(self, descriptor: int, name: str) -> tuple[bytes, os.stat_result]:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise NodeError("code_changing", name)
        known = self._cache.get(_key(before))
        if known is not None:
            return known, before
        traceable = _leave_traces(descriptor, before, name)
        digest, offset = hashlib.sha256(), 0
        try:
            while block := os.pread(descriptor, _BLOCK, offset):
                digest.update(block)
                offset += len(block)
                if offset > MAX_OCTETS:
                    raise NodeError("code_too_large", name)
        except OSError as error:
            raise NodeError("code_unreadable", f"{name}: {error.strerror}") from error
        after = os.fstat(descriptor)
        if _key(after) != _key(before) or offset != before.st_size:
            raise NodeError("code_changing", name)
        if traceable and self._clock.now() - after.st_ctime > SETTLED and self._tells(after.st_dev):
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            self._cache[_key(after)] = digest.digest()
        return digest.digest(), after

    def _tells(self, device: int) -> bool:
        if device not in self._telling:
            self._telling[device] = _file_system(device) in TELLING
        return self._telling[device]


class _Budget:
    __slots__ = ("_files", "_gone", "_octets")

    def __init__(self, gone: Callable[[], bool]) -> None:
        self._gone = gone
        self._files = 0
        self._octets = 0

    def take(self, found: os.stat_result) -> None:
        if self._gone():
            raise NodeError("peer_gone")
        self._files += 1
        if stat.S_ISREG(found.st_mode):
            self._octets += found.st_size
        if self._files > MAX_FILES or self._octets > MAX_OCTETS:
            raise NodeError("code_too_large", f"{self._files} files, {self._octets} octets")


def root_paths(program: Program, roots: Sequence[str]) -> list[str]:
    """Return the real paths of all code roots: the program's own and ``roots`` (absolute)."""
    return sorted({*program.roots, *(os.path.realpath(root) for root in roots)})


def refuse_wide(root: str, homes: Collection[str]) -> None:
    """Refuse a root that is ``/``, a home folder, or a folder that holds one.

    Raises: NodeError ``root_refused``.
    """
    parts = Path(root).parts
    if len(parts) < 2 or parts == ("/", "home") or (len(parts) == 3 and parts[1] == "home"):
        raise NodeError("root_refused", root)
    for home in homes:
        if Path(home).parts[: len(parts)] == parts:
            raise NodeError("root_refused", root)


def homes_of(uid: int, named: str | None = None) -> tuple[str, ...]:
    """Return the real paths of the home folders of ``uid``, of root, and of the one ``named`` by an environment."""
    found = ["/root"]
    with contextlib.suppress(KeyError):  # in containers a uid may have no account
        found.append(pwd.getpwuid(uid).pw_dir)
    if named:
        found.append(named)
    real = {os.path.realpath(home) for home in found if home.startswith("/")}
    # the account `nobody` and its kin live in places that do not exist or in /
    return tuple(sorted(home for home in real if home != "/"))


def _walk(
    root: bytes, skip_bytecode: bool, folders: dict[bytes, tuple[Key, bool]]
) -> Iterator[tuple[bytes, bytes, os.stat_result]]:
    """Yield (relative name, path, lstat) of a file, or of a folder and all below it, in an order of names alone."""
    try:
        top = os.lstat(root)
        yield b".", root, top
        waiting = [b""] if stat.S_ISDIR(top.st_mode) else []
        while waiting:
            folder = waiting.pop()
            path = os.path.join(root, folder) if folder else root  # noqa: PTH118 - names are octets
            identity = _key(os.lstat(path))
            with os.scandir(path) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
            folders[folder] = identity, any(entry.name == _BYTECODE for entry in entries)
            below: list[bytes] = []
            for entry in entries:
                if skip_bytecode and entry.name == _BYTECODE:
                    continue
                name = os.path.join(folder, entry.name) if folder else entry.name  # noqa: PTH118 - names are octets
                found = entry.stat(follow_symlinks=False)
                yield name, entry.path, found
                if stat.S_ISDIR(found.st_mode):
                    below.append(name)
            waiting += reversed(below)
    except OSError as error:
        raise NodeError("code_unreadable", f"{os.fsdecode(root)}: {error.strerror}") from error


def _leave_traces(descriptor: int, found: os.stat_result, name: str) -> bool:
    """Tell whether who writes this file from now on changes its change time.

    The kernel grants a lease for reading only where nobody has the file open, or mapped, for writing.

    Raises: NodeError ``code_changing``: somebody has.
    """
    try:
        # Who opens the file for writing in this moment waits for it to pass; the signal of it is one that does nothing.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise NodeError("code_changing", f"{name} is open for writing") from error
        # Another user's file gets no lease, and a file system may have none. Root alone writes what is root's; where
        # this node is root itself, so are the programs that it starts.
        return found.st_uid == 0 != os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def _file_system(device: int) -> str:
    """Return the type of the file system that is mounted from ``device``, "" if that is not known."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
            mounted, _, source = line.partition(" - ")
            if mounted.split(" ")[2] == number:
                return source.split(" ")[0]
    return ""


def _link(path: bytes) -> bytes:
    try:
        return os.readlink(path)  # noqa: PTH115 - names are octets
    except OSError as error:
        raise NodeError("code_unreadable", f"{os.fsdecode(path)}: {error.strerror}") from error


def _key(found: os.stat_result) -> Key:
    return found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size
