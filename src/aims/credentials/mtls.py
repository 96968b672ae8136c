"""Mutual TLS between workloads (draft-ietf-wimse-mutual-tls): X509-SVIDs on both sides, identified by SPIFFE ID.

The TLS room knows certificates and checks; what a check is for workloads stands here.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

from cryptography import x509

from aims.clock import Clock
from aims.credentials.bundle import BundleSet
from aims.credentials.errors import CredentialError
from aims.credentials.x509_svid import X509Svid, validate
from aims.identifiers import SpiffeId, TrustDomain
from aims.tls import Check, RotatingContext, TlsIdentity, client_context, peer


def peer_check(
    bundles: Callable[[], BundleSet],
    clock: Clock,
    *,
    expected: SpiffeId | AbstractSet[SpiffeId] | None = None,
    own: TrustDomain | None = None,
) -> Check:
    """Return a check for `aims.tls` that gives the peer's `X509Svid`.

    ``bundles`` is asked at each handshake, ``expected`` and ``own`` are those of `x509_svid.validate`.
    """

    def check(chain: tuple[bytes, ...]) -> X509Svid:
        return validate(chain, bundles(), now=clock.now(), expected=expected, own=own)

    return check


def spiffe_client_context(
    identity: TlsIdentity | None,
    bundles: BundleSet,
    clock: Clock,
    *,
    expected: SpiffeId | AbstractSet[SpiffeId],
    own: TrustDomain | None = None,
) -> ssl.SSLContext:
    """Return a client context that lets no octet of a request leave for anybody but ``expected``.

    Only the authorities of the expected peers' trust domains are loaded.

    Raises: CredentialError ``x509_unexpected_peer`` for an empty set, ``x509_no_trust_anchor`` without a bundle for one
        of the trust domains; TlsError, as `client_context`.
    """
    check = peer_check(lambda: bundles, clock, expected=expected, own=own)
    return client_context(identity, expected_roots(bundles, expected), check)


def spiffe_server_context(
    identity: TlsIdentity, bundles: BundleSet, clock: Clock, *, own: TrustDomain | None = None
) -> RotatingContext:
    """Return the context of an mTLS listener for workloads of every trust domain in ``bundles``; rotate it by `renew`.

    Raises: TlsError, as `mtls_server_context`.
    """
    return RotatingContext.server(identity, all_roots(bundles), peer_check(lambda: bundles, clock, own=own))


def renew(
    context: RotatingContext,
    identity: TlsIdentity,
    bundles: BundleSet,
    clock: Clock,
    *,
    own: TrustDomain | None = None,
) -> None:
    """Give a `spiffe_server_context` a new SVID and new bundles, for every handshake that ends from now on.

    Raises: TlsError; then nothing has changed.
    """
    context.update(identity, all_roots(bundles), peer_check(lambda: bundles, clock, own=own))


def peer_svid(connection: object) -> X509Svid:
    """Return the verified X509-SVID of the peer of a connection (its ``ssl_object``).

    Raises: TlsError ``no_peer``.
    """
    return peer(connection, X509Svid)


def expected_roots(bundles: BundleSet, expected: SpiffeId | AbstractSet[SpiffeId]) -> tuple[x509.Certificate, ...]:
    """Return the authorities of the trust domains of ``expected``.

    Raises: CredentialError ``x509_unexpected_peer`` for an empty set, ``x509_no_trust_anchor``.
    """
    wanted = {expected} if isinstance(expected, SpiffeId) else expected
    if not wanted:
        raise CredentialError("x509_unexpected_peer", "nobody is expected")
    return _roots(bundles, {spiffe_id.trust_domain for spiffe_id in wanted})


def all_roots(bundles: BundleSet) -> tuple[x509.Certificate, ...]:
    """Return the authorities of all bundles, for OpenSSL's sieve and for nothing else."""
    return tuple(root for bundle in bundles for root in bundle.x509_authorities)


def _roots(bundles: BundleSet, domains: Iterable[TrustDomain]) -> tuple[x509.Certificate, ...]:
    found: list[x509.Certificate] = []
    for domain in domains:
        bundle = bundles.get(domain)
        if bundle is None or not bundle.x509_authorities:
            raise CredentialError("x509_no_trust_anchor", domain.name)
        found += bundle.x509_authorities
    return tuple(found)
