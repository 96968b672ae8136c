"""Path validation (RFC 5280 6) against the authorities of exactly one trust domain."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from aims.x509.errors import X509Error
from aims.x509.parse import MAX_CERTIFICATES

MAX_ROOTS = 64
MAX_DEPTH = 8  # intermediates between leaf and root


def verify_chain(
    leaf: x509.Certificate, intermediates: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: float
) -> tuple[x509.Certificate, ...]:
    """Return the path from ``leaf`` to one of ``roots``, both included.

    ``roots`` are the authorities of the one trust domain that the leaf claims: never those of several domains, because
    any of them could then vouch for any name. ``now`` is Unix seconds. Names are not looked at here.

    1. There are roots, and each is a CA: the library would accept a leaf that stands in the store, unsigned.
    2. The leaf is no CA.
    3. The leaf is valid at ``now``.
    4. RFC 5280 path validation with ECDSA or RSA signatures; Ed25519 and URI name constraints are refused.

    Raises: X509Error ``no_roots``, ``too_many``, ``root_not_ca``, ``leaf_is_ca``, ``not_yet_valid``, ``expired``,
        ``untrusted``.
    """
    # 1
    if not roots:
        raise X509Error("no_roots")
    if len(roots) > MAX_ROOTS or len(intermediates) >= MAX_CERTIFICATES:
        raise X509Error("too_many")
    if not all(is_ca(root) for root in roots):
        raise X509Error("root_not_ca")
    # 2
    if is_ca(leaf):
        raise X509Error("leaf_is_ca")
    # 3
    moment = datetime.fromtimestamp(now, UTC)
    if moment < leaf.not_valid_before_utc:
        raise X509Error("not_yet_valid", leaf.not_valid_before_utc.isoformat())
    if moment > leaf.not_valid_after_utc:
        raise X509Error("expired", leaf.not_valid_after_utc.isoformat())
    # 4
    try:
        verifier = PolicyBuilder().store(Store(list(roots))).time(moment).max_chain_depth(MAX_DEPTH)
        return tuple(verifier.build_client_verifier().verify(leaf, list(intermediates)).chain)
    except (VerificationError, ValueError) as error:
        raise X509Error("untrusted", str(error)) from error


def is_ca(certificate: x509.Certificate) -> bool:
    """Tell whether basicConstraints says ``cA`` (RFC 5280 4.2.1.9)."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
