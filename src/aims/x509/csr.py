"""Certificate signing requests (PKCS#10, RFC 2986): proof that the asker holds the key, and nothing more."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from aims.x509.errors import X509Error
from aims.x509.public_key import LeafKey, leaf_key

MAX_CSR_BYTES = 16384


def parse_csr(data: bytes) -> LeafKey:
    """Return the public key that a DER request proves possession of.

    1. size, 2. form with no octet left over, 3. kind of key, 4. signature. Its subject and its requested extensions are
    dropped: who the asker is was attested elsewhere.

    Raises: X509Error ``too_large``, ``malformed``, ``key_type``, ``csr_signature``.
    """
    # 1
    if len(data) > MAX_CSR_BYTES:
        raise X509Error("too_large", f"{len(data)} octets")
    # 2
    try:
        request = x509.load_der_x509_csr(data)
        public = request.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise X509Error("malformed", str(error)) from error
    # 3
    key = leaf_key(public)
    # 4
    try:
        signed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise X509Error("csr_signature", str(error)) from error
    if not signed:
        raise X509Error("csr_signature")
    return key
