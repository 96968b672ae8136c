"""What a side of TLS shows: a certificate chain with its key, handed to OpenSSL without touching a disk."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from aims.tls.errors import TlsError

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """A chain, leaf first, and the leaf's private key. The key has no readable form here and cannot be pickled.

    Raises: TlsError ``identity`` if the key is not the leaf's or the chain is empty.
    """

    chain: Sequence[x509.Certificate]
    key: PrivateKey = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.chain or self.chain[0].public_key() != self.key.public_key():
            raise TlsError("identity")
        object.__setattr__(self, "chain", tuple(self.chain))

    def load_into(self, context: ssl.SSLContext) -> None:
        """Let ``context`` present this identity.

        OpenSSL reads a path, so the PEM goes through a file that exists only in memory and only for this call.

        Raises: TlsError ``not_exportable`` for a key that does not leave its device, ``identity``.
        """
        try:
            private = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        except (TypeError, ValueError, NotImplementedError) as error:
            raise TlsError("not_exportable") from error
        pem = private + b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.chain)
        file = os.memfd_create("aims-tls", os.MFD_CLOEXEC)
        with os.fdopen(file, "wb") as stream:
            stream.write(pem)
            stream.flush()
            try:
                context.load_cert_chain(f"/proc/self/fd/{file}")
            except ssl.SSLError as error:
                raise TlsError("identity", error.reason) from error

    def __reduce__(self) -> NoReturn:
        raise TypeError("private keys are not pickled")
