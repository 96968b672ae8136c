"""The sockets that a supervisor binds once and its workers share."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path

from aims.server.errors import ServerError

BACKLOG = 1024


def listen_tcp(port: int) -> list[socket.socket]:
    """Listen on ``localhost``: 127.0.0.1 and, where the host has it, [::1] on the same port (0: a free one).

    Raises:
        ServerError: ``port_in_use``.
    """
    # With the protocol left to default asyncio does not see TCP and never sets TCP_NODELAY (40 ms a request).
    sockets = [_bind(socket.AF_INET, "127.0.0.1", port)]
    if socket.has_ipv6:
        try:
            sockets.append(_bind(socket.AF_INET6, "::1", sockets[0].getsockname()[1]))
        except ServerError:
            sockets[0].close()
            raise
        except OSError as error:
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise
    return sockets


def _bind(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            raise ServerError("port_in_use", f"{host} port {port}: {error.strerror}") from error
        raise
    listener.setblocking(False)
    return listener


def listen_unix(path: Path, mode: int) -> socket.socket:
    """Listen on a unix socket, removing one that nobody answers on any more.

    Raises:
        ServerError: ``already_running`` when somebody does answer, or is too busy to; ``folder`` when something else is
            in the way.
    """
    if os.path.lexists(path):
        _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode must hold from the first moment on, hence the umask and not a chmod afterwards.
    before = os.umask(0o777 & ~mode)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ServerError("folder", f"{path}: {error.strerror}") from error
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        raise ServerError("folder", f"{path} is in the way and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            # Only the first says that nobody listens; a full queue or a slow answer is somebody who lives.
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except (BlockingIOError, TimeoutError) as error:
            raise ServerError("already_running", f"somebody listens on {path}, too busy to answer") from error
        except OSError as error:
            raise ServerError("folder", f"{path}: {error.strerror}") from error
    raise ServerError("already_running", f"somebody answers on {path}")
