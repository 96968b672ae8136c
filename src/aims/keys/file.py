"""Keys as files of one folder: 0700 around 0600, written whole or not at all.

    FOLDER/                         0700, ours, no symbolic link
        .lock                       taken for every change
        PURPOSE.KID.pem             0600: three lines that bind the purpose, then PKCS#8 PEM
        PURPOSE.slots               0600: which key is the purpose's own, for those that are not rotated

A file is written to a temporary name, synced, and linked to its own name, which fails instead of overwriting; the
folder is synced before the key is used. A temporary file that a killed process left is removed by the next change.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from aims.keys import named
from aims.keys.errors import KeyStoreError
from aims.keys.named import parse_kid
from aims.keys.purpose import Algorithm, Purpose
from aims.keys.signing import LocalKey, generate, local_key

MAX_KEY_BYTES = 16384
_TEMPORARY = ".new-"
_FORM = re.compile(
    rb"AIMS-Key: 1\nPurpose: ([a-z0-9-]{1,32})\nKid: ([A-Za-z0-9_-]{43})\n\n"
    rb"(-----BEGIN PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END PRIVATE KEY-----\n)"
)


class FileKeyStore:
    """A `KeyStore` in a folder of this user. Opening it checks the folder; each read checks the file."""

    __slots__ = ("_folder",)

    def __init__(self, folder: Path) -> None:
        """Open ``folder``, creating it (not its parents) if it is not there.

        Raises: KeyStoreError ``permissions``, ``owner``, ``symlink``, ``not_regular``, ``missing`` (no parent).
        """
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError as error:
            raise KeyStoreError("symlink" if folder.is_symlink() else "not_regular", str(folder)) from error
        except OSError as error:
            raise KeyStoreError("missing", f"{folder}: {error.strerror}") from error
        os.close(self._open_folder())

    @classmethod
    def from_uri(cls, uri: str) -> FileKeyStore:
        path = uri.removeprefix("file:")
        path = path.removeprefix("//") if path.startswith("///") else path
        if not path.startswith("/") or path.startswith("//"):
            raise KeyStoreError("uri", "the folder must be absolute")
        return cls(Path(path))

    async def create(self, purpose: Purpose, algorithm: Algorithm | None = None) -> LocalKey:
        key = generate(purpose, algorithm)
        await asyncio.to_thread(self._write, _key_name(purpose, key.kid), _encode(key))
        return key

    async def load(self, purpose: Purpose, kid: str) -> LocalKey:
        return await asyncio.to_thread(self._load, purpose, parse_kid(kid))

    async def kids(self, purpose: Purpose) -> tuple[str, ...]:
        form = re.compile(re.escape(purpose) + r"\.([A-Za-z0-9_-]{43})\.pem", re.ASCII)
        with self._opened() as folder:
            found = [form.fullmatch(name) for name in _names(folder)]
        return tuple(sorted(match[1] for match in found if match))

    async def made_before(self, purpose: Purpose, moment: float) -> tuple[str, ...]:
        kids = await self.kids(purpose)
        with self._opened() as folder:
            return tuple(kid for kid in kids if _written(folder, _key_name(purpose, kid)) < moment)

    async def destroy(self, purpose: Purpose, kid: str) -> None:
        name = _key_name(purpose, parse_kid(kid))
        with self._locked() as folder:
            try:
                os.unlink(name, dir_fd=folder)
            except FileNotFoundError:
                return
            os.fsync(folder)

    async def current(self, purpose: Purpose) -> str | None:
        with self._opened() as folder:
            content = _read(folder, _current_name(purpose))
        return None if content is None else named.decode(content)

    async def make_current(self, purpose: Purpose, kid: str) -> None:
        try:
            await asyncio.to_thread(self._write, _current_name(purpose), named.encode(kid))
        except KeyStoreError as error:
            if error.reason != "exists":
                raise
            raise KeyStoreError("changed", purpose) from error

    def _write(self, name: str, content: bytes) -> None:
        with self._locked() as folder:
            _put(folder, name, content)

    def _load(self, purpose: Purpose, kid: str) -> LocalKey:
        name = _key_name(purpose, kid)
        with self._opened() as folder:
            content = _read(folder, name)
        if content is None:
            raise KeyStoreError("missing", name)
        return _decode(content, purpose, kid)

    def _open_folder(self) -> int:
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            kind = "symlink" if self._folder.is_symlink() else "not_regular" if self._folder.exists() else "missing"
            raise KeyStoreError(kind, str(self._folder)) from error
        try:
            _check(os.fstat(folder), str(self._folder))
        except KeyStoreError:
            os.close(folder)
            raise
        return folder

    @contextmanager
    def _opened(self) -> Iterator[int]:
        folder = self._open_folder()
        try:
            yield folder
        except OSError as error:
            raise KeyStoreError("unavailable", f"{self._folder}: {error.strerror}") from error
        finally:
            os.close(folder)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The folder, under its lock, without what a killed writer left behind."""
        with self._opened() as folder:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = os.open(".lock", flags, 0o600, dir_fd=folder)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for name in _names(folder):
                    if name.startswith(_TEMPORARY):
                        os.unlink(name, dir_fd=folder)
                yield folder
            finally:
                os.close(lock)

    def __repr__(self) -> str:
        return f"FileKeyStore({str(self._folder)!r})"


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _written(folder: int, name: str) -> float:
    return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime


def _key_name(purpose: Purpose, kid: str) -> str:
    return f"{purpose}.{kid}.pem"


def _current_name(purpose: Purpose) -> str:
    return f"{purpose}.slots"


def _encode(key: LocalKey) -> bytes:
    private = key._private  # noqa: SLF001  the store is the one place that may write a private key
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return f"AIMS-Key: 1\nPurpose: {key.purpose}\nKid: {key.kid}\n\n".encode() + pem


def _decode(content: bytes, purpose: Purpose, kid: str) -> LocalKey:
    match = _FORM.fullmatch(content)
    if match is None:
        raise KeyStoreError("malformed", kid)
    if match[1].decode("ascii") != purpose:
        raise KeyStoreError("purpose", f"{kid} was written for {match[1].decode('ascii')}, not {purpose}")
    try:
        private = load_pem_private_key(match[3], None)
    except (ValueError, TypeError) as error:
        raise KeyStoreError("malformed", kid) from error
    key = local_key(purpose, private)
    if not key.kid == match[2].decode("ascii") == kid:
        raise KeyStoreError("malformed", f"{kid} holds another key")
    return key


def _check(found: os.stat_result, name: str) -> None:
    if found.st_uid != os.geteuid():
        raise KeyStoreError("owner", f"{name} belongs to uid {found.st_uid}")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise KeyStoreError("permissions", f"{name} has mode {stat.S_IMODE(found.st_mode):04o}")


def _read(folder: int, name: str) -> bytes | None:
    # O_NONBLOCK: a FIFO in the file's place must be refused, not waited for.
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        linked = stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        raise KeyStoreError("symlink" if linked else "not_regular", name) from error
    with os.fdopen(file, "rb") as stream:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise KeyStoreError("not_regular", name)
        _check(found, name)
        content = stream.read(MAX_KEY_BYTES + 1)
    if len(content) > MAX_KEY_BYTES:
        raise KeyStoreError("malformed", f"{name} is too long")
    return content


def _put(folder: int, name: str, content: bytes) -> None:
    temporary = _TEMPORARY + secrets.token_hex(8)
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    with os.fdopen(file, "wb") as stream:
        os.fchmod(file, 0o600)
        stream.write(content)
        stream.flush()
        os.fsync(file)
    try:
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError as error:
        raise KeyStoreError("exists", name) from error
    finally:
        os.unlink(temporary, dir_fd=folder)
    os.fsync(folder)
