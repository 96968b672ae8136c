"""The WIMSE Workload Identifier (draft-ietf-wimse-identifier): a SPIFFE ID or a ``wimse`` URI, always with a path."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

from aims.identifiers.errors import IdentifierError
from aims.identifiers.spiffe_id import SpiffeId
from aims.identifiers.syntax import split
from aims.identifiers.trust_domain import TrustDomain

Scheme = Literal["spiffe", "wimse"]


@dataclass(frozen=True, slots=True)
class WorkloadIdentifier:
    """One workload, named by the whole URI: another scheme, trust domain or path is another workload.

    Raises:
        IdentifierError: the parts are no workload identifier.
    """

    scheme: Scheme
    trust_domain: TrustDomain
    path: str

    def __post_init__(self) -> None:
        if split(str(self)) != (self.scheme, self.trust_domain.name, self.path):
            raise IdentifierError("unknown_scheme", "parts and whole differ")
        if not self.path:
            raise IdentifierError("empty_path")

    @classmethod
    def parse(cls, text: str) -> WorkloadIdentifier:
        """Read ``spiffe://…`` or ``wimse://…`` in canonical form."""
        return _parse(text)

    @property
    def origin(self) -> str:
        """Scheme and trust domain: the key of trust tables. ``wimse://td`` and ``spiffe://td`` are different keys."""
        return f"{self.scheme}://{self.trust_domain.name}"

    def spiffe_id(self) -> SpiffeId:
        """Return the same identifier as a SPIFFE ID; ``unknown_scheme`` if it has another scheme."""
        if self.scheme != "spiffe":
            raise IdentifierError("unknown_scheme", "not a SPIFFE ID")
        return SpiffeId(self.trust_domain, self.path)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.trust_domain.name}{self.path}"


# The same few identifiers come with every request; a value cannot change, so it may be shared.
@lru_cache(maxsize=1024)
def _parse(text: str) -> WorkloadIdentifier:
    scheme, name, path = split(text)
    return WorkloadIdentifier(cast("Scheme", scheme), TrustDomain(name), path)
