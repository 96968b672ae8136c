"""The SPIFFE ID (SPIFFE-ID 2) and the default paths under which AIMS names things."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from aims.identifiers.errors import IdentifierError
from aims.identifiers.syntax import MAX_OCTETS, check_path, check_segment, split
from aims.identifiers.trust_domain import TrustDomain

_SCHEME_OCTETS = len("spiffe://")


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """``spiffe://TRUST-DOMAIN/PATH``, at most 2048 octets.

    ``path`` is "" for the identifier of the trust domain itself, else ``/segment`` one or more times.

    Raises:
        IdentifierError: the parts are no SPIFFE ID.
    """

    trust_domain: TrustDomain
    path: str

    def __post_init__(self) -> None:
        if _SCHEME_OCTETS + len(self.trust_domain.name) + len(self.path) > MAX_OCTETS:
            raise IdentifierError("too_long")
        check_path("spiffe", self.path)

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Read a SPIFFE ID, with or without a path."""
        return _parse(text)

    @classmethod
    def parse_workload(cls, text: str) -> SpiffeId:
        """Read the SPIFFE ID of a workload: one with a path (``empty_path`` otherwise)."""
        parsed = cls.parse(text)
        if not parsed.path:
            raise IdentifierError("empty_path")
        return parsed

    @classmethod
    def build(cls, trust_domain: TrustDomain, *segments: str) -> SpiffeId:
        """Join segments. Each must be one segment by itself, so that no value from outside can add or climb a level."""
        for segment in segments:
            check_segment(segment)
        return cls(trust_domain, "".join(f"/{segment}" for segment in segments))

    @classmethod
    def agent(cls, trust_domain: TrustDomain, name: str) -> SpiffeId:
        """``agents/NAME``: an AI agent."""
        return cls.build(trust_domain, "agents", name)

    @classmethod
    def service(cls, trust_domain: TrustDomain, name: str) -> SpiffeId:
        """``services/NAME``: a tool or other protected resource."""
        return cls.build(trust_domain, "services", name)

    @classmethod
    def node(cls, trust_domain: TrustDomain, name: str) -> SpiffeId:
        """``nodes/NAME``: the daemon of one host."""
        return cls.build(trust_domain, "nodes", name)

    @property
    def segments(self) -> tuple[str, ...]:
        """The path, segment by segment; empty for a trust domain's own identifier."""
        return tuple(self.path.split("/")[1:])

    def is_member_of(self, trust_domain: TrustDomain) -> bool:
        """Tell whether this identifier lies in ``trust_domain``."""
        return self.trust_domain == trust_domain

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain.name}{self.path}"


# The same few identifiers come with every request; a value cannot change, so it may be shared.
@lru_cache(maxsize=1024)
def _parse(text: str) -> SpiffeId:
    scheme, name, path = split(text)
    if scheme != "spiffe":
        raise IdentifierError("unknown_scheme", "a SPIFFE ID begins with spiffe://")
    return SpiffeId(TrustDomain(name), path)
