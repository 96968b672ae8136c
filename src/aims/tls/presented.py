"""The certificates that a peer presented, from an ssl object.

Python has a public way to them from 3.13 on. Before, the same call exists on the private object inside; this is the one
module that touches it.
"""

from __future__ import annotations

import ssl
from typing import Any, Final

_ENCODING_DER: Final = 2  # OpenSSL's number for DER in the private interface of 3.11 and 3.12


def presented(connection: ssl.SSLObject | ssl.SSLSocket) -> tuple[bytes, ...]:
    """Return the peer's certificates as DER, leaf first, as sent; empty if it sent none or no handshake is done."""
    public: Any = getattr(connection, "get_unverified_chain", None)
    if public is not None:
        return tuple(public())
    inner: Any = connection._sslobj  # type: ignore[union-attr]  # noqa: SLF001  no public way before 3.13
    chain = None if inner is None else inner.get_unverified_chain()
    return tuple(certificate.public_bytes(_ENCODING_DER) for certificate in chain or ())
