"""Why a TLS context or connection was refused."""

from __future__ import annotations

import ssl
from typing import ClassVar

from aims.errors import AimsError, reasons


class TlsError(AimsError):
    """A TLS identity that cannot be used, or a connection whose peer is not known."""

    layer: ClassVar[str] = "tls"
    reasons = reasons(
        identity=("The certificate chain and the key do not belong together.", "Load both again."),
        not_exportable=("The key cannot be given to TLS.", "Use a key of this process for TLS."),
        roots=("The trust anchors cannot be loaded.", "Correct the bundle."),
        no_peer=("The connection has no verified peer.", "Connect over the mTLS listener with a client certificate."),
        resumed=("The session was resumed, so no certificate was seen.", "Start a new session."),
        unverified=("Data was asked for before the peer was verified.", "Finish the handshake first."),
    )


class PeerRefused(ssl.SSLCertVerificationError):
    """The handshake was stopped because of who the peer is; ``refusal`` says why.

    It is an ``ssl.SSLError``, so that every TLS user closes the connection and reports as it does for OpenSSL's own.
    """

    refusal: AimsError

    @classmethod
    def because(cls, refusal: AimsError) -> PeerRefused:
        """Wrap the refusal of a check."""
        error = cls(ssl.SSL_ERROR_SSL, f"{refusal.code}: {refusal.sentence}")
        error.refusal = refusal
        return error
