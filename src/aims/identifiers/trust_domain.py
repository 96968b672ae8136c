"""The trust domain: the name under which one authority vouches for workloads (SPIFFE-ID 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

from aims.identifiers.errors import IdentifierError
from aims.identifiers.syntax import check_trust_domain, split


@dataclass(frozen=True, slots=True)
class TrustDomain:
    """A trust domain by its bare name, for example ``acme.example``: 1 to 255 octets of ``a-z 0-9 . - _``.

    Raises:
        IdentifierError: ``name`` is no trust domain.
    """

    name: str

    def __post_init__(self) -> None:
        check_trust_domain(self.name)

    @classmethod
    def parse(cls, text: str) -> TrustDomain:
        """Read ``spiffe://NAME``, the form that bundles and federation use; a path is refused."""
        scheme, name, path = split(text)
        if scheme != "spiffe":
            raise IdentifierError("unknown_scheme", "a trust domain is written spiffe://NAME")
        if path:
            raise IdentifierError("segment_chars", "a trust domain has no path")
        return cls(name)

    @property
    def uri(self) -> str:
        """``spiffe://NAME``: the SPIFFE ID of the domain's authority, its origin, and the issuer of its WITs."""
        return f"spiffe://{self.name}"

    def __str__(self) -> str:
        return self.name
