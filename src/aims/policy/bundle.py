"""A policy bundle: the files of one folder, checked as a whole, with the hash that is its version."""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from aims.policy import rules, tables
from aims.policy.errors import PolicyError
from aims.policy.rows import Rows

SCHEMA = "policy.cedarschema"
TABLES = "tables.toml"
MAX_FILES = 64
MAX_FILE_OCTETS = 64 * 1024
MAX_OCTETS = 512 * 1024
_MAGIC = b"aims-policy-bundle-1\n"
_POLICY_FILE = re.compile(r"[a-z0-9][a-z0-9_-]{0,57}\.cedar")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Bundle:
    """A bundle that may be activated: every rule fits the schema, every row is typed and cross-checked.

    It exists only if valid, is immutable, and is equal to a bundle with the same version.
    """

    __slots__ = ("_octets", "files", "rows", "rules", "version")

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """Check the files, by name.

        1. Names and sizes. 2. Text. 3. Rules against the schema. 4. Rows against each other.

        Raises:
            PolicyError: with the reason of the first step that fails.
        """
        # 1
        _check_names(files)
        # 2
        texts = {name: _text(name, content) for name, content in files.items()}
        # 3
        self.rules = rules.load(texts[SCHEMA], {n: text for n, text in texts.items() if n.endswith(".cedar")})
        # 4
        self.rows: Rows = tables.parse(texts[TABLES])
        self.files: Mapping[str, bytes] = MappingProxyType({name: bytes(files[name]) for name in sorted(files)})
        self._octets = _MAGIC + b"".join(_framed(name.encode()) + _framed(body) for name, body in self.files.items())
        self.version = hashlib.sha256(self._octets).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bundle) and other.version == self.version

    def __hash__(self) -> int:
        return hash(self.version)

    def __repr__(self) -> str:
        return f"Bundle({self.version[:16]}, {len(self.files)} files)"

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Bundle:
        """Build a bundle from contents by file name; the order of the mapping does not matter."""
        return cls(files)

    @classmethod
    def from_folder(cls, folder: Path) -> Bundle:
        """Read a bundle from a folder of plain files. Symbolic links, folders, devices and other names are refused.

        Raises:
            PolicyError: the folder or one of its files cannot be read, or the bundle is not valid.
        """
        files: dict[str, bytes] = {}
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if len(files) == MAX_FILES:
                        raise PolicyError("bundle_size", f"more than {MAX_FILES} files")
                    files[entry.name] = _read(folder / entry.name)
        except OSError as error:
            raise PolicyError("bundle_file", str(error)) from error
        return cls(files)

    @classmethod
    def from_bytes(cls, octets: bytes) -> Bundle:
        """Read the form that ``to_bytes`` writes; anything else, and every other order of the files, is refused."""
        if len(octets) > MAX_OCTETS + len(_MAGIC) + MAX_FILES * 80 or not octets.startswith(_MAGIC):
            raise PolicyError("bundle_format", "length or head")
        parts: list[bytes] = []
        at = len(_MAGIC)
        while at < len(octets):
            end = at + 4 + int.from_bytes(octets[at : at + 4], "big")
            if at + 4 > len(octets) or end > len(octets):
                raise PolicyError("bundle_format", "cut off")
            parts.append(octets[at + 4 : end])
            at = end
        if len(parts) % 2 or len(parts) > 2 * MAX_FILES:
            raise PolicyError("bundle_format", "number of parts")
        names = [part.decode("utf-8", "replace") for part in parts[::2]]
        bundle = cls(dict(zip(names, parts[1::2], strict=True)))
        if bundle.to_bytes() != octets:
            raise PolicyError("bundle_format", "not in canonical order")
        return bundle

    @classmethod
    def shipped(cls) -> Bundle:
        """Read the bundle that comes with AIMS."""
        folder = importlib.resources.files("aims.policy") / "shipped"
        return cls({entry.name: entry.read_bytes() for entry in folder.iterdir()})

    def to_bytes(self) -> bytes:
        """Return the one stored form: a head, then name and content of each file in order of names, each behind its
        length. ``version`` is the SHA-256 of these octets."""
        return self._octets


def _framed(octets: bytes) -> bytes:
    return len(octets).to_bytes(4, "big") + octets


def _check_names(files: Mapping[str, bytes]) -> None:
    if len(files) > MAX_FILES:
        raise PolicyError("bundle_size", f"more than {MAX_FILES} files")
    for name, content in files.items():
        if name not in {SCHEMA, TABLES} and not _POLICY_FILE.fullmatch(name):
            raise PolicyError("bundle_file", repr(name[:100]))
        if len(content) > MAX_FILE_OCTETS:
            raise PolicyError("bundle_size", f"{name} has more than {MAX_FILE_OCTETS} octets")
    if sum(map(len, files.values())) > MAX_OCTETS:
        raise PolicyError("bundle_size", f"more than {MAX_OCTETS} octets")
    for name in (SCHEMA, TABLES):
        if name not in files:
            raise PolicyError("bundle_missing", name)
    if len(files) == 2:
        raise PolicyError("bundle_missing", "*.cedar")


def _text(name: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PolicyError("bundle_encoding", name) from error
    if _CONTROL.search(text):
        raise PolicyError("bundle_encoding", f"{name} has a control character")
    return text


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PolicyError("bundle_file", f"{path.name[:100]!r} is not a plain file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_FILE_OCTETS + 1)
    finally:
        os.close(descriptor)
