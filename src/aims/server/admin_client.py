"""The administrator's side of the server's unix socket."""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path
from typing import Any, Final

import msgspec

from aims.errors import AimsError
from aims.server.errors import ServerError
from aims.server.settings import default_run_dir, default_state_dir

SECONDS: Final = 30.0
MOST_ANSWER_OCTETS: Final = 16 * 1024 * 1024


class RefusedError(AimsError):
    """What a server answered: its code, sentence and hint, as they came."""

    def __init__(self, code: str, sentence: str, hint: str, status: int) -> None:
        Exception.__init__(self, code, sentence)
        self.layer, _, self.reason = code.partition(".")  # type: ignore[misc]  # the server's layer, not a class of ours
        self.detail = ""
        self.sentence = sentence
        self.hint = hint
        self.standard = ""
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("aims", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SECONDS)
        self.sock.connect(str(self._path))


class AdminClient:
    """Calls on the administrator's socket over one kept connection; not for several threads."""

    def __init__(self, path: Path, reason: str = "") -> None:
        self._path = path
        self._headers = {"aims-reason": reason.encode("ascii", "replace").decode("ascii")} if reason else {}
        self._connection: _UnixConnection | None = None

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def call(self, method: str, path: str, body: object | None = None) -> Any:
        """Send one request and return the decoded answer.

        Raises:
            ServerError: ``not_running`` when nobody answers on the socket, ``answer`` when what came back is not ours.
            RefusedError: what the server refused, with its own code.
        """
        if self._connection is None:
            self._connection = _UnixConnection(self._path)
        payload = msgspec.json.encode(body) if body is not None else None
        try:
            self._connection.request(method, path, payload, self._headers)
            response = self._connection.getresponse()
            answer = response.read(MOST_ANSWER_OCTETS)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._connection = None
            raise ServerError("not_running", f"{self._path}: {error}") from error
        try:
            value = msgspec.json.decode(answer)
            if response.status >= 400:
                raise RefusedError(value["error"], value["message"], value["hint"], response.status)
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise ServerError("answer", f"status {response.status}") from error
        return value


def socket_path(run_dir: Path | None) -> Path:
    """The administrator's socket in the given folder, or where ``aims up`` puts it."""
    folder = run_dir or default_run_dir(os.environ, default_state_dir(os.environ))
    return folder / "admin.sock"
