"""Verify the audit log of AIMS from its files and one public key, and from nothing else.

A program of its own: it needs Python 3.11 and ``cryptography``, imports nothing of AIMS, and shares no code with what
writes the log. Copy this file, the log folder and the verification key to any machine and run

    python verify.py LOGDIR --vkey NAME+HASH+KEY [--from REMEMBERED_CHECKPOINT] [--output json]

Exit codes: 0 the files are what the signed checkpoint says; 1 something was changed (the first bad entry and the check
are named); 2 something is missing; 3 nothing can be said, because key, checkpoint or files cannot be used.

What 0 does not say: that what was recorded is true, that everything was recorded, or that nobody with the signing key
wrote a second history. Without a checkpoint that was remembered elsewhere (``--from``) a log that was cut back to an
older checkpoint looks complete; the answer is therefore ``consistent, tail unwitnessed``.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

GOOD, TAMPERED, INCOMPLETE, UNVERIFIABLE = range(4)
VERDICTS: Final = ("good", "tampered", "incomplete", "unverifiable")

MAX_OCTETS: Final = 16_384  # of an entry, and of a checkpoint
MAX_INTEGER: Final = 2**53 - 1
WIDE: Final = 256

_NAME: Final = r"[!-*,-~]{1,200}"
_VKEY: Final = re.compile(rf"({_NAME})\+([0-9a-f]{{8}})\+([A-Za-z0-9+/=]{{44}})")
_LINE: Final = re.compile(r"\u2014 ([^ +\x00-\x1f]{1,200}) ([A-Za-z0-9+/=]{1,8000})")
_TEXT: Final = re.compile(rf"({_NAME})\n(0|[1-9][0-9]{{0,15}})\n([A-Za-z0-9+/=]{{44}})\n")
_TILE: Final = re.compile(r"tile/(entries|[0-9]{1,2})/((?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


@dataclass(frozen=True, slots=True)
class Result:
    """The answer. ``seq`` is the first bad or missing entry; if not ``exact``, that entry or a later one."""

    exit: int
    message: str
    check: str | None = None
    seq: int | None = None
    exact: bool = True
    origin: str | None = None
    size: int | None = None
    root: str | None = None

    @property
    def verdict(self) -> str:
        return VERDICTS[self.exit]


class FindingError(Exception):
    """Ends the verification."""

    def __init__(self, code: int, check: str, message: str, seq: int | None = None, *, exact: bool = True) -> None:
        super().__init__(message)
        self.result = Result(code, message, check, seq, exact)


class Signed(NamedTuple):  # a checkpoint whose signature was verified
    origin: str
    size: int
    root: bytes


Inventory = dict[tuple[int, int], dict[int, Path]]  # for each level (entries: -1) and index, the widths that are there


def read_key(text: str) -> tuple[str, bytes, bytes]:
    """Read ``name+hash+base64``: the name, four octets of hash, and the Ed25519 key."""
    match = _VKEY.fullmatch(text)
    raw = _base64(match[3]) if match else None
    expected = hashlib.sha256((match[1].encode("ascii") + b"\n" + raw) if match and raw else b"").digest()[:4]
    if match is None or raw is None or len(raw) != 33 or raw[0] != 1 or expected.hex() != match[2]:
        raise FindingError(UNVERIFIABLE, "vkey", "the verification key is not name+hash+base64 of an Ed25519 key")
    return match[1], expected, raw[1:]


def read_checkpoint(note: bytes, key: tuple[str, bytes, bytes]) -> Signed:
    """Verify a checkpoint: exact form, exactly one signature by the key, the key's name as origin."""
    broken = FindingError(TAMPERED, "checkpoint_form", "the checkpoint is not in its one form")
    head, blank, tail = note.rpartition(b"\n\n")
    text, lines = head + b"\n", tail.split(b"\n")
    if len(note) > MAX_OCTETS or not blank or lines.pop() != b"" or not 1 <= len(lines) <= 16:
        raise broken
    signatures = []
    for line in lines:
        match = _LINE.fullmatch(line.decode("utf-8", "replace"))
        raw = _base64(match[2]) if match else None
        if match is None or raw is None or len(raw) < 5:
            raise broken
        if match[1] == key[0] and raw[:4] == key[1]:
            signatures.append(raw[4:])
    if not signatures:
        raise FindingError(UNVERIFIABLE, "checkpoint_signer", "the checkpoint has no signature by the pinned key")
    if len(signatures) != 1:
        raise broken
    try:
        Ed25519PublicKey.from_public_bytes(key[2]).verify(signatures[0], text)
    except InvalidSignature:
        raise FindingError(TAMPERED, "checkpoint_signature", "the signature of the checkpoint is false") from None
    match = _TEXT.fullmatch(text.decode("utf-8", "replace"))
    root = _base64(match[3]) if match else None
    if match is None or root is None or len(root) != 32 or int(match[2]) > MAX_INTEGER:
        raise broken
    if match[1] != key[0]:
        raise FindingError(TAMPERED, "checkpoint_origin", "the checkpoint is of another log")
    return Signed(match[1], int(match[2]), root)


def _base64(text: str) -> bytes | None:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return raw if base64.b64encode(raw) == text.encode("ascii") else None


def tile_name(level: int, index: int, width: int) -> str:
    digits = str(index)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    path = "/".join(["x" + group for group in groups[:-1]] + groups[-1:])
    return f"tile/{'entries' if level < 0 else level}/{path}" + ("" if width == WIDE else f".p/{width}")


def take_inventory(folder: Path) -> Inventory:
    """List the log; a file that has no place in it, or is not a plain file, is a finding."""
    found: Inventory = {}
    for name, path, plain in _walk(folder):
        if name == "checkpoint" and plain:
            continue
        match = _TILE.fullmatch(name)
        if match:
            level = -1 if match[1] == "entries" else int(match[1])
            index = int(match[2].replace("/", "").replace("x", ""))
            width = int(match[3]) if match[3] else WIDE
            if plain and (match[3] is None or width < WIDE) and tile_name(level, index, width) == name:
                found.setdefault((level, index), {})[width] = path
                continue
        raise FindingError(TAMPERED, "file_unexpected", f"{name!a} does not belong to a log")
    return found


def _walk(folder: Path) -> Iterator[tuple[str, Path, bool]]:
    waiting = [(folder, "")]
    while waiting:
        here, prefix = waiting.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False) and name.count("/") < 10:
                    if name != ".writing":  # files on their way to their name
                        waiting.append((Path(entry.path), name + "/"))
                else:
                    yield name, Path(entry.path), entry.is_file(follow_symlinks=False)


def read_file(path: Path, limit: int) -> bytes:
    """Read a plain file, never a link or a pipe; one octet above ``limit`` shows that it is longer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a plain file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit + 1)
    finally:
        os.close(descriptor)


def split_bundle(data: bytes, first: int, count: int, name: str) -> tuple[list[bytes], FindingError | None]:
    """Split an entry bundle into ``count`` entries from number ``first`` on; or the entries before the first fault."""
    entries, at = list[bytes](), 0
    while len(entries) < count:
        length = int.from_bytes(data[at : at + 2], "big")
        entry = data[at + 2 : at + 2 + length]
        if at + 2 > len(data) or len(entry) != length or not 1 <= length <= MAX_OCTETS:
            message = f"{name} breaks off or has a false length"
            return entries, FindingError(TAMPERED, "entry_bundle", message, first + len(entries))
        entries.append(entry)
        at += 2 + length
    if at == len(data):
        return entries, None
    return entries, FindingError(TAMPERED, "entry_bundle", f"{name} goes on after its last entry", first + count)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs) or not "".join(found).isascii():
        raise ValueError("member name twice, or not ASCII")
    return found


def _integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MAX_INTEGER:
        raise ValueError("integer too large")
    return int(text)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_members, parse_int=_integer, parse_float=_integer, parse_constant=_integer
)
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def parse_entry(entry: bytes) -> Mapping[str, Any]:
    """Read one entry; raises ``ValueError`` or ``RecursionError`` unless it is the canonical form of an object."""
    value = _DECODER.decode(entry.decode("utf-8"))
    if not isinstance(value, dict) or _ENCODER.encode(value).encode("utf-8") != entry:
        raise ValueError("not the canonical form of an object")
    return value


class Records:
    """What must hold from record to record: numbers, writers without gaps, time that never falls."""

    def __init__(self) -> None:
        self.gap: FindingError | None = None
        self._recorded = 0
        self._writers: dict[str, int] = {}

    def check(self, seq: int, entry: bytes) -> None:
        try:
            record = parse_entry(entry)
        except (ValueError, RecursionError) as error:
            raise FindingError(TAMPERED, "entry_json", f"the entry is not canonical JSON: {error}", seq) from error
        if _number(record, "seq") != seq:
            raise FindingError(TAMPERED, "entry_seq", "the entry has another number than its place", seq)
        recorded, writer, number = _number(record, "recorded"), record.get("writer"), _number(record, "writer_seq")
        if recorded < self._recorded:
            raise FindingError(TAMPERED, "recorded", "the time of recording goes back", seq)
        self._recorded = recorded
        if not isinstance(writer, str) or number < 1:
            raise FindingError(TAMPERED, "writer_seq", "the entry does not say who wrote it as which number", seq)
        if seq == 0 and record.get("type") != "log.start":
            raise FindingError(TAMPERED, "first_entry", "the log does not begin with log.start", seq)
        last = self._writers.get(writer, 0)
        if number <= last:
            raise FindingError(TAMPERED, "writer_seq", f"{writer!a} repeats its number {number}", seq)
        if number > last + 1:
            message = f"{writer!a} lacks {last + 1} to {number - 1}"
            self.gap = self.gap or FindingError(INCOMPLETE, "gap", message, seq)
        self._writers[writer] = number
        if record.get("type") == "log.gap":
            self._declared(seq, record.get("log"))

    def _declared(self, seq: int, about: object) -> None:
        log = about if isinstance(about, dict) else {}
        writer, first, last = log.get("writer"), _number(log, "first"), _number(log, "last")
        message = f"the log itself says that {writer!a} lacks {first} to {last}"
        self.gap = self.gap or FindingError(INCOMPLETE, "log_gap", message, seq)
        if isinstance(writer, str):
            self._writers[writer] = max(self._writers.get(writer, 0), last)


def _number(members: Mapping[str, Any], name: str) -> int:
    value = members.get(name)
    return value if type(value) is int else -1


def tree_root(hashes: Sequence[bytes]) -> bytes:
    """The root as RFC 6962 section 2.1 defines it, over hashes of equal height (the last may be lower)."""
    row = list(hashes) or [hashlib.sha256(b"").digest()]
    while len(row) > 1:
        pairs = [hashlib.sha256(b"\1" + row[at] + row[at + 1]).digest() for at in range(0, len(row) - 1, 2)]
        row = pairs + row[len(pairs) * 2 :]
    return row[0]


class Tree:
    """The rightmost, unfinished tile of each level; finished ones were compared with their files and dropped."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._levels: list[list[bytes]] = [[] for _ in range(8)]  # 256^8 is above the largest size

    def add(self, size: int, leaves: Sequence[bytes]) -> None:
        """Add leaves up to the end of a tile at most; ``size`` counts them too. Their own tile is the caller's."""
        self._levels[0].extend(leaves)
        level = 0
        while len(self._levels[level]) == WIDE:
            root, self._levels[level] = tree_root(self._levels[level]), []
            level += 1
            self._levels[level].append(root)
            if len(self._levels[level]) == WIDE:
                self._log.compare(level, (size - 1) >> (8 * (level + 1)), self._levels[level])

    def finish(self, size: int) -> None:
        """Compare the unfinished tiles above the leaves with their files."""
        for level, hashes in enumerate(self._levels[1:], 1):
            if hashes:
                self._log.compare(level, size >> (8 * (level + 1)), hashes)

    def root(self, extra: Sequence[bytes] = ()) -> bytes:
        """The root of everything added, and of ``extra`` leaves behind it inside the unfinished tile."""
        below = list(extra)
        for hashes in self._levels:
            row = [*hashes, *below]
            below = [tree_root(row)] if row else []
        return tree_root(below)


class Log:
    """One pass over the files against one checkpoint."""

    def __init__(self, folder: Path, signed: Signed, remembered: Signed | None) -> None:
        self.folder, self.signed, self.remembered = folder, signed, remembered
        self.files = take_inventory(folder)
        self.checked = 0  # the root over so many entries is known to be right
        self.wider = False  # a file holds more than the checkpoint covers
        self.records = Records()

    def verify(self, grew: Callable[[], bool]) -> None:
        """Steps: 1 size; 2 entries and their hashes, bundle by bundle; 3 on the way the remembered root; 4 unfinished
        tiles; 5 the root; 6 files beyond the checkpoint, unless the log ``grew`` meanwhile; 7 gaps."""
        size, old, tree = self.signed.size, self.remembered, Tree(self)
        if old and old.size > size:  # 1
            raise FindingError(INCOMPLETE, "truncated", f"cut back from {old.size} to {size} entries", size)
        if size == 0:
            raise FindingError(INCOMPLETE, "empty", "the log is empty", 0)
        for index in range(-(-size // WIDE)):  # 2
            first = index * WIDE
            entries = self.bundle(index, min(WIDE, size - first))
            leaves = self.compare_leaves(index, entries)
            for seq, entry in enumerate(entries, first):
                self.records.check(seq, entry)
            if old and first < old.size <= first + len(leaves):  # 3
                self.compare_root(tree.root(leaves[: old.size - first]), old, "remembered_root")
            tree.add(first + len(leaves), leaves)
        tree.finish(size)  # 4
        self.compare_root(tree.root(), self.signed, "root")  # 5
        beyond = [key for key in self.files if key[1] * WIDE >= size >> (8 * max(key[0], 0))]  # 6
        if (beyond or self.wider) and not grew():
            message = "files beyond the checkpoint: the log was cut back, or its writer stopped midway"
            raise FindingError(INCOMPLETE, "beyond_checkpoint", message, size)
        if self.records.gap:  # 7
            raise self.records.gap

    def compare_root(self, root: bytes, signed: Signed, check: str) -> None:
        if root != signed.root:
            raise FindingError(TAMPERED, check, "the entries do not give the signed root", self.checked, exact=False)
        self.checked = signed.size

    def bundle(self, index: int, width: int) -> list[bytes]:
        """Read the entries of one bundle, and compare every other file that holds a part of them."""
        found: list[bytes] = []
        for wide, path in self.widths(-1, index, width):
            name = tile_name(-1, index, wide)
            entries, fault = split_bundle(read_file(path, WIDE * (2 + MAX_OCTETS)), index * WIDE, wide, name)
            if fault:  # a false length shows late: an entry before it may be the first bad one
                self.compare_leaves(index, entries[:width])
                raise fault
            found = found or entries[:width]
            same(entries, found, "entry_bundle", name, index * WIDE)
        return found

    def compare_leaves(self, index: int, entries: Sequence[bytes]) -> list[bytes]:
        leaves = [hashlib.sha256(b"\0" + entry).digest() for entry in entries]
        self.compare(0, index, leaves)
        return leaves

    def compare(self, level: int, index: int, hashes: Sequence[bytes]) -> None:
        """Compare one tile with every file that holds it or a part of it."""
        check, first = ("tile_hash" if level else "leaf_hash"), (index * WIDE) << (8 * level)
        for wide, path in self.widths(level, index, len(hashes)):
            name = tile_name(level, index, wide)
            data = read_file(path, WIDE * 32)
            if len(data) != wide * 32:
                raise FindingError(TAMPERED, "tile_length", f"{name} has not {wide} hashes", first, exact=False)
            rows = [data[at : at + 32] for at in range(0, len(data), 32)]
            same(rows, hashes, check, name, first, step=1 << (8 * level))

    def widths(self, level: int, index: int, width: int) -> list[tuple[int, Path]]:
        """The files of a tile: first the one of the width that is needed or the next wider one, then all others."""
        there = {wide: path for wide, path in self.files.get((level, index), {}).items() if path.exists()}
        full = self.folder / tile_name(level, index, WIDE)
        if full.exists():  # also when it has replaced its parts since the listing, because the log grew
            there[WIDE] = full
        fitting = sorted(wide for wide in there if wide >= width)
        if not fitting:
            seq, message = (index * WIDE) << (8 * max(level, 0)), f"{tile_name(level, index, width)} is missing"
            raise FindingError(INCOMPLETE, "file_missing", message, seq, exact=False)
        self.wider = self.wider or fitting[-1] > width
        order = fitting[:1] + sorted(wide for wide in there if wide != fitting[0])
        return [(wide, there[wide]) for wide in order]


def same(rows: Sequence[bytes], known: Sequence[bytes], check: str, name: str, first: int, *, step: int = 1) -> None:
    """Compare two beginnings; each row stands for ``step`` entries from ``first`` on."""
    for at, (row, other) in enumerate(zip(rows, known, strict=False)):
        if row != other:
            raise FindingError(TAMPERED, check, f"{name} does not fit", first + at * step, exact=step == 1)


def verify(folder: Path, vkey: str, remembered: bytes | None = None, *, patience: float = 2.0) -> Result:
    """Verify a log folder; never raises.

    A log that is being written may be a moment ahead of its checkpoint: ``patience`` is how many seconds to wait for
    the next one before files beyond the checkpoint are called a finding.
    """
    try:
        for _ in range(3):
            result, note = _verify_once(folder, vkey, remembered, patience)
            if result.exit == GOOD or (result.check != "file_vanished" and _note(folder) == note):
                return result
    except FindingError as finding:
        return finding.result
    except OSError as error:
        return Result(UNVERIFIABLE, f"a file cannot be read: {error.strerror or str(error)!a}", "unreadable")
    except Exception as error:  # noqa: BLE001 - whatever the files hold, the answer is one of the four
        return Result(UNVERIFIABLE, f"verification ended early: {type(error).__name__}", "internal")
    return result


def _note(folder: Path) -> bytes:
    try:
        return read_file(folder / "checkpoint", MAX_OCTETS)
    except FileNotFoundError:
        raise FindingError(UNVERIFIABLE, "checkpoint_missing", "there is no checkpoint") from None


def _verify_once(folder: Path, vkey: str, remembered: bytes | None, patience: float) -> tuple[Result, bytes]:
    """Steps: 1 key; 2 the remembered checkpoint; 3 the checkpoint of the log; 4 all files."""
    key = read_key(vkey)  # 1
    old = None
    if remembered is not None:  # 2
        try:
            old = read_checkpoint(remembered, key)
        except FindingError as finding:
            message = f"the remembered checkpoint cannot be used: {finding.result.message}"
            raise FindingError(UNVERIFIABLE, "remembered", message) from finding
    note = _note(folder)  # 3
    signed = read_checkpoint(note, key)
    about: dict[str, Any] = {**signed._asdict(), "root": base64.b64encode(signed.root).decode("ascii")}
    try:
        Log(folder, signed, old).verify(lambda: _grew(folder, note, patience))  # 4
    except FindingError as finding:
        return Result(**{**asdict(finding.result), **about}), note
    except FileNotFoundError as error:
        return Result(INCOMPLETE, f"{str(error.filename)!a} vanished", "file_vanished", **about), note
    since = f" since the remembered {old.size} entries" if old else ""
    return Result(GOOD, f"consistent{since}, tail unwitnessed", **about), note


def _grew(folder: Path, note: bytes, patience: float) -> bool:
    end = time.monotonic() + patience
    while _note(folder) == note and time.monotonic() < end:
        time.sleep(0.05)
    return _note(folder) != note


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(UNVERIFIABLE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    parser = _Parser(description="Verify an AIMS audit log from its files and one public key.")
    parser.add_argument("log", type=Path, help="the log folder")
    parser.add_argument("--vkey", required=True, help="verification key: name+hash+base64")
    parser.add_argument("--from", dest="remembered", type=Path, help="file with a checkpoint remembered elsewhere")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    given = parser.parse_args(arguments)
    try:
        remembered = read_file(given.remembered, MAX_OCTETS) if given.remembered else None
    except (OSError, ValueError):
        result = Result(UNVERIFIABLE, "the remembered checkpoint cannot be read", "remembered")
    else:
        result = verify(given.log, given.vkey, remembered)
    if given.output == "json":
        print(json.dumps({"verdict": result.verdict, **asdict(result)}))
        return result.exit
    place = "" if result.seq is None else f" at entry {result.seq}" + ("" if result.exact else " or later")
    finding = f"{result.verdict}: {result.message}\ncheck {result.check}{place}"
    print(result.message if result.exit == GOOD else finding)
    if result.size is not None:
        print(f"log {result.origin}, {result.size} entries, root {result.root}")
    return result.exit


if __name__ == "__main__":
    sys.exit(main())
