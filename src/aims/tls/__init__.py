"""TLS contexts that know their peer: TLS 1.3 only, keys that touch no disk, no resumption.

A *check* is a function from the certificates that the peer presented (DER, leaf first) to a value of the caller's, or
an `AimsError`. It runs inside the handshake: until it has returned, nothing can be written or read::

    context = client_context(identity, roots, check)                # asyncio, uvloop, httpx2: any user of SSLContext
    reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    svid = peer(writer.get_extra_info("ssl_object"), X509Svid)      # what the check returned

OpenSSL's own validation comes first and sees the roots of all listed trust domains together, because a server learns
the client's domain only with its certificate. It is a sieve; the check, which asks one domain's roots, is the decision.
"""

from aims.tls.context import client_context, mtls_server_context, public_server_context
from aims.tls.errors import PeerRefused, TlsError
from aims.tls.identity import TlsIdentity
from aims.tls.peer import Check, peer
from aims.tls.rotating import RotatingContext

__all__ = [
    "Check",
    "PeerRefused",
    "RotatingContext",
    "TlsError",
    "TlsIdentity",
    "client_context",
    "mtls_server_context",
    "peer",
    "public_server_context",
]
