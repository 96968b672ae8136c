"""Peer rules of mutual TLS: whom a client expects behind a URL, and whom a server admits.

An identifier counts as a whole: a trust domain, path or prefix of it authorises nobody, and no header field overrides
the certificate. The host part of a URL is no trust domain; only the resource map joins the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aims.authentication.errors import AuthenticationError
from aims.authentication.target import covers, normal
from aims.credentials.x509_svid import X509Svid
from aims.identifiers import SpiffeId, TrustDomain
from aims.policy.rows import Resource


@dataclass(frozen=True, slots=True)
class PeerRule:
    """The peers that are expected: one, or any of a set. ``expected`` is what `aims.credentials.mtls` takes.

    Raises:
        ValueError: nobody is expected, or an identifier that names no workload.
    """

    expected: frozenset[SpiffeId]

    def __post_init__(self) -> None:
        if not self.expected or not all(one.path for one in self.expected):
            raise ValueError("a peer rule names at least one workload")

    @classmethod
    def of(cls, *expected: SpiffeId) -> PeerRule:
        """Return the rule that expects any of ``expected``."""
        return cls(frozenset(expected))

    def admit(self, svid: X509Svid) -> SpiffeId:
        """Return the identifier of a peer whose certificate was validated in the handshake.

        Raises:
            AuthenticationError: ``peer_unexpected``.
        """
        if svid.spiffe_id not in self.expected:
            raise AuthenticationError("peer_unexpected", str(svid.spiffe_id))
        return svid.spiffe_id


class ResourceMap:
    """Which identifier stands behind which URL. The longest URL that covers the target, by whole segments, decides.

    Raises:
        ValueError: a URL without a normal form, or given twice.
    """

    __slots__ = ("_rules",)

    def __init__(self, rules: Mapping[str, PeerRule]) -> None:
        found: dict[str, PeerRule] = {}
        for url, rule in rules.items():
            base = normal(url)
            if base is None or base in found:
                raise ValueError(f"resource map: {url}")
            found[base] = rule
        self._rules = tuple(sorted(found.items(), key=lambda row: len(row[0]), reverse=True))

    @classmethod
    def of_policy(cls, rows: Iterable[Resource], own: TrustDomain) -> ResourceMap:
        """Return the map that a policy's table of resources describes; bare paths are identifiers of ``own``."""
        return cls({row.url: PeerRule.of(expected_of(row, own)) for row in rows})

    def rule(self, target_uri: str) -> PeerRule:
        """Return the rule for ``target_uri``.

        Raises:
            AuthenticationError: ``peer_unmapped``; no identifier is ever guessed from a host name.
        """
        for base, rule in self._rules:
            if covers(base, target_uri):
                return rule
        raise AuthenticationError("peer_unmapped")


def expected_of(row: Resource, own: TrustDomain) -> SpiffeId:
    """Return the SPIFFE ID that a policy's row names for its resource."""
    return SpiffeId.parse_workload(own.uri + row.peer if row.peer.startswith("/") else row.peer)
