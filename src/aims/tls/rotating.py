"""A context whose identity and trust change while it is in use.

Servers and clients keep one ``SSLContext`` for their whole life. This one hands each new connection to an inner context
that is replaced as a whole, with or without a server name from the client. Connections that are open keep their keys,
but whoever is refused now is refused on an open connection too. A context cannot close what others opened over it, so a
client says with `end_when_refused` how that is done; a server knows all its connections, and asks `still_accepts` of
each on a change.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from cryptography import x509

from aims.errors import AimsError
from aims.tls.context import client_context, mtls_server_context
from aims.tls.errors import TlsError
from aims.tls.identity import TlsIdentity
from aims.tls.peer import Check, chain_of

Connection = ssl.SSLObject | ssl.SSLSocket


class RotatingContext(ssl.SSLContext):
    """An ``SSLContext`` for any server or client; made by `server` or `client`, changed by `update`.

    A handshake that began before an update is judged by the check in force when it ends.
    """

    _inner: ssl.SSLContext
    _check: Check
    _protocols: list[str] | None
    _hooks: list[Callable[[], None]]
    _open: WeakKeyDictionary[Connection, Callable[[], None]]
    _opening: threading.Lock
    _serves: bool

    @classmethod
    def server(cls, identity: TlsIdentity, roots: Iterable[x509.Certificate], check: Check) -> RotatingContext:
        """Return a rotating `mtls_server_context`. Raises: as that."""
        return cls._start(ssl.PROTOCOL_TLS_SERVER, identity, roots, check)

    @classmethod
    def client(cls, identity: TlsIdentity | None, roots: Iterable[x509.Certificate], check: Check) -> RotatingContext:
        """Return a rotating `client_context`. Raises: as that."""
        return cls._start(ssl.PROTOCOL_TLS_CLIENT, identity, roots, check)

    @classmethod
    def _start(
        cls, protocol: int, identity: TlsIdentity | None, roots: Iterable[x509.Certificate], check: Check
    ) -> RotatingContext:
        self = cls(protocol)
        self._serves = protocol == ssl.PROTOCOL_TLS_SERVER
        self._protocols = None
        self._hooks = []
        self._open, self._opening = WeakKeyDictionary(), threading.Lock()
        self.update(identity, roots, check)
        return self

    def update(self, identity: TlsIdentity | None, roots: Iterable[x509.Certificate], check: Check) -> None:
        """Use these for every handshake that ends from now on, `review` the open connections, and call the hooks.

        If the new identity or roots cannot be loaded, nothing changes.

        Raises: TlsError ``identity`` (also for a server without one), ``not_exportable``, ``roots``.
        """
        if not self._serves:
            inner = client_context(identity, roots, self._judge)
        elif identity is None:
            raise TlsError("identity", "a server shows a certificate")
        else:
            inner = mtls_server_context(identity, roots, self._judge)
        if self._protocols is not None:
            inner.set_alpn_protocols(self._protocols)
        self._check, self._inner = check, inner
        self.review(self.still_accepts)
        for hook in tuple(self._hooks):
            hook()

    def on_change(self, hook: Callable[[], None]) -> None:
        """Call ``hook`` after each update; connections that `still_accepts` refuses can be closed there."""
        self._hooks.append(hook)

    def still_accepts(self, connection: Connection) -> bool:
        """Tell whether the peer of an open connection would pass the check now."""
        chain = chain_of(connection)
        try:
            return bool(chain) and self._check(chain) is not None
        except AimsError:
            return False

    def end_when_refused(self, connection: Connection, end: Callable[[], None]) -> None:
        """Have ``end`` called once the peer of an open connection is refused; now, if it is so already.

        For any thread. ``end`` must not block, and must not keep ``connection`` alive; it is called in the thread that
        makes the change.
        """
        with self._opening:
            self._open[connection] = end
        # The check may have changed between the end of the handshake and here.
        if not self.still_accepts(connection):
            self._end(connection)

    def review(self, accepts: Callable[[Connection], bool]) -> None:
        """End each open connection that ``accepts`` says no to."""
        with self._opening:
            known = tuple(self._open)
        for connection in known:
            if not accepts(connection):
                self._end(connection)

    def _end(self, connection: Connection) -> None:
        with self._opening:
            end = self._open.pop(connection, None)
        if end is not None:
            end()

    def _judge(self, chain: tuple[bytes, ...]) -> object:
        return self._check(chain)

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self._inner.wrap_bio(*args, **kwargs)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        return self._inner.wrap_socket(*args, **kwargs)

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        self._protocols = list(alpn_protocols)
        self._inner.set_alpn_protocols(self._protocols)
