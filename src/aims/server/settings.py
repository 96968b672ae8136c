"""Where a server keeps its things and where it listens: read once, checked, then frozen."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from aims.identifiers import IdentifierError, TrustDomain
from aims.server.errors import ServerError

PUBLIC_PORT: Final = 8440
MTLS_PORT: Final = 8441
MOST_SOCKET_OCTETS: Final = 100
MOST_WORKERS: Final = 64
VKEY_FILE: Final = "log.vkey"
LOCAL_NODE: Final = "local"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One server: its trust domain, folders, database and listeners.

    ``state_dir`` holds what must survive (database, keys, audit log), ``run_dir`` the sockets. ``database`` is a
    ``postgresql://`` URL, or empty for the SQLite file in ``state_dir``. Port 0 takes a free one.
    """

    trust_domain: str = "local.test"
    state_dir: Path
    run_dir: Path
    database: str = ""
    policy_dir: Path | None = None
    public_port: int = PUBLIC_PORT
    mtls_port: int = MTLS_PORT
    workers: int = 1

    @property
    def server_dir(self) -> Path:
        return self.state_dir / "server"

    @property
    def keys_uri(self) -> str:
        return f"file:{self.server_dir / 'keys'}"

    @property
    def log_dir(self) -> Path:
        return self.server_dir / "log"

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.server_dir / 'aims.db'}"

    @property
    def public_ca(self) -> Path:
        """The certificate that a browser or a foreign client must trust to believe the public listener."""
        return self.server_dir / "tls-ca.pem"

    @property
    def admin_socket(self) -> Path:
        return self.run_dir / "admin.sock"

    @property
    def audit_origin(self) -> str:
        return f"{self.trust_domain}/audit"


def default_state_dir(environment: Mapping[str, str]) -> Path:
    """``$XDG_STATE_HOME/aims``, or ``~/.local/state/aims``."""
    base = environment.get("XDG_STATE_HOME", "")
    return Path(base) / "aims" if base.startswith("/") else Path.home() / ".local" / "state" / "aims"


def default_run_dir(environment: Mapping[str, str], state_dir: Path) -> Path:
    """``$XDG_RUNTIME_DIR/aims``, or ``run`` in the state folder where the system gives no such folder."""
    base = environment.get("XDG_RUNTIME_DIR", "")
    return Path(base) / "aims" if base.startswith("/") and Path(base).is_dir() else state_dir / "run"


def prepare(settings: Settings) -> None:
    """Check the settings and make the folders, owned by this user with mode 0700.

    Raises:
        ServerError: ``bad_setting``, ``folder``, ``socket_path_too_long``.
    """
    try:
        TrustDomain(settings.trust_domain)
    except IdentifierError as error:
        raise ServerError("bad_setting", f"--trust-domain {settings.trust_domain!r}: {error.sentence}") from error
    for name, port in (("port", settings.public_port), ("mtls-port", settings.mtls_port)):
        if not 0 <= port <= 65535:
            raise ServerError("bad_setting", f"--{name} {port} is not a port")
    if settings.public_port == settings.mtls_port != 0:
        raise ServerError("bad_setting", "--port and --mtls-port are the same")
    if not 1 <= settings.workers <= MOST_WORKERS:
        raise ServerError("bad_setting", f"--workers must be 1 to {MOST_WORKERS}")
    if settings.database and not settings.database.startswith(("sqlite:///", "postgresql://")):
        raise ServerError("bad_setting", "--database must be a sqlite:/// or postgresql:// URL")
    longest = max(
        (settings.run_dir / name for name in ("admin.sock", "workload.sock", "launch.sock")),
        key=lambda p: len(bytes(p)),
    )
    if len(bytes(longest)) > MOST_SOCKET_OCTETS:
        raise ServerError("socket_path_too_long", f"{longest} has {len(bytes(longest))} bytes")
    for folder in (settings.state_dir, settings.server_dir, settings.run_dir):
        make_private(folder)


def make_private(folder: Path) -> None:
    """Make a folder with mode 0700, or insist that the present one belongs to this user and to nobody else.

    Raises:
        ServerError: ``folder``.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise ServerError("folder", f"{folder}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise ServerError("folder", f"{folder} is not a folder")
    if status.st_uid != os.geteuid():
        raise ServerError("folder", f"{folder} belongs to uid {status.st_uid}")
    if status.st_mode & 0o077:
        raise ServerError("folder", f"{folder} has mode {stat.S_IMODE(status.st_mode):04o}; run `chmod 0700 {folder}`")
