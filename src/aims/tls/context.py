"""The three kinds of TLS context in AIMS.

All speak TLS 1.3 alone, give out no session tickets, and take no session back: a resumed session would skip the
certificates, and so outlive a trust domain that was removed.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable

from cryptography import x509

from aims.tls.errors import TlsError
from aims.tls.identity import TlsIdentity
from aims.tls.peer import Check, install
from aims.x509.parse import join_der


def client_context(identity: TlsIdentity | None, roots: Iterable[x509.Certificate], check: Check) -> ssl.SSLContext:
    """Return the context of a client that knows whom it calls.

    ``roots`` are the authorities of the expected peer's trust domain; without any, every handshake fails. Host names
    are not compared: ``check`` decides on the SPIFFE ID before the first octet of the request leaves. ``identity`` is
    None for a client without a certificate.

    Raises: TlsError ``identity``, ``not_exportable``, ``roots``.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    _trust(context, roots)
    if identity is not None:
        identity.load_into(context)
    install(context, check)
    return context


def mtls_server_context(identity: TlsIdentity, roots: Iterable[x509.Certificate], check: Check) -> ssl.SSLContext:
    """Return the context of a listener that requires a client certificate.

    ``roots`` are the authorities of all trust domains that may connect; ``check`` must judge each chain by the
    authorities of the one domain that it claims.

    Raises: TlsError ``identity``, ``not_exportable``, ``roots``.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _trust(context, roots)
    identity.load_into(context)
    install(context, check)
    return context


def public_server_context(identity: TlsIdentity) -> ssl.SSLContext:
    """Return the context of a listener that asks for no client certificate, so that browsers show no prompt.

    Raises: TlsError ``identity``, ``not_exportable``.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_NONE
    identity.load_into(context)
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context


def _trust(context: ssl.SSLContext, roots: Iterable[x509.Certificate]) -> None:
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    # A bundle may hold an authority that another one signed: it is an anchor all the same.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    anchors = join_der(roots)
    if anchors:
        try:
            context.load_verify_locations(cadata=anchors)
        except ssl.SSLError as error:
            raise TlsError("roots", error.reason) from error
