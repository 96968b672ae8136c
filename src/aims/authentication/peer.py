"""Peer rules of mutual TLS: whom a client expects behind a URL.

An identifier counts as a whole: a trust domain, path or prefix of it authorises nobody. The host part of a URL is no
trust domain; only the resource map joins the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aims.authentication.errors import AuthenticationError
from aims.authentication.target import covers, normal
from aims.identifiers import SpiffeId


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

    def rule(self, target_uri: str) -> PeerRule:
        """Return the rule for ``target_uri``.

        Raises:
            AuthenticationError: ``peer_unmapped``; no identifier is ever guessed from a host name.
        """
        for base, rule in self._rules:
            if covers(base, target_uri):
                return rule
        raise AuthenticationError("peer_unmapped")
