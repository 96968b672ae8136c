"""Connections that end their handshake with a check of the peer, and carry what it returned.

asyncio, uvloop and anyio drive an ``ssl.SSLObject`` by ``do_handshake`` and write the first octet only after it has
returned; an exception there closes the connection. Blocking users drive an ``ssl.SSLSocket`` the same way. Python lets
a context name the classes of both, so the check needs no cooperation of the library above.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from aims.errors import AimsError
from aims.tls.errors import PeerRefused, TlsError
from aims.tls.presented import presented

Check: TypeAlias = Callable[[tuple[bytes, ...]], object]
_T = TypeVar("_T")


def install(context: ssl.SSLContext, check: Check) -> None:
    """Make every connection of ``context`` pass ``check`` inside its handshake."""
    context.sslobject_class = type("CheckedObject", (_CheckedObject,), {"_check": staticmethod(check)})
    context.sslsocket_class = type("CheckedSocket", (_CheckedSocket,), {"_check": staticmethod(check)})


def peer(connection: object, kind: type[_T]) -> _T:
    """Return what the check returned for this connection, which must be a ``kind``.

    ``connection`` is the ``ssl_object`` of a transport, or an SSL socket.

    Raises: TlsError ``no_peer`` for plain connections, unfinished handshakes and values of another kind.
    """
    found = connection._peer if isinstance(connection, _CheckedObject | _CheckedSocket) else None  # noqa: SLF001
    if not isinstance(found, kind):
        raise TlsError("no_peer", type(found).__name__)
    return found


def chain_of(connection: object) -> tuple[bytes, ...]:
    """Return the certificates that the check of this connection saw, as DER, leaf first; empty before it passed.

    They are kept because OpenSSL must not be asked while another thread waits in the same connection.
    """
    return connection._chain if isinstance(connection, _CheckedObject | _CheckedSocket) else ()  # noqa: SLF001


def _judge(connection: _CheckedObject | _CheckedSocket, check: Check) -> object:
    if connection.session_reused:
        raise PeerRefused.because(TlsError("resumed"))
    chain = presented(connection)
    if not chain:
        raise PeerRefused.because(TlsError("no_peer"))
    try:
        found = check(chain)
    except AimsError as error:
        raise PeerRefused.because(error) from error
    if found is None:
        raise PeerRefused.because(TlsError("no_peer", "the check returned nothing"))
    connection._chain = chain  # noqa: SLF001
    return found


class _CheckedObject(ssl.SSLObject):
    _check: Check
    _peer: object = None
    _chain: tuple[bytes, ...] = ()

    def do_handshake(self) -> None:
        super().do_handshake()
        if self._peer is None:
            self._peer = _judge(self, self._check)

    # OpenSSL would finish a handshake by itself on the first read or write: then the check would never run.
    def read(self, *args: Any, **kwargs: Any) -> Any:
        _verified(self._peer)
        return super().read(*args, **kwargs)

    def write(self, *args: Any, **kwargs: Any) -> int:
        _verified(self._peer)
        return super().write(*args, **kwargs)


class _CheckedSocket(ssl.SSLSocket):
    _check: Check
    _peer: object = None
    _chain: tuple[bytes, ...] = ()

    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        if self._peer is None:
            self._peer = _judge(self, self._check)

    def read(self, *args: Any, **kwargs: Any) -> Any:
        _verified(self._peer)
        return super().read(*args, **kwargs)

    def write(self, *args: Any, **kwargs: Any) -> int:
        _verified(self._peer)
        return super().write(*args, **kwargs)

    def send(self, *args: Any, **kwargs: Any) -> int:
        _verified(self._peer)
        return super().send(*args, **kwargs)


def _verified(found: object) -> None:
    if found is None:
        raise PeerRefused.because(TlsError("unverified"))
