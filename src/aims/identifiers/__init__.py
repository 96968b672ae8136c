"""L1: names of workloads and of the domains that vouch for them.

    >>> from aims.identifiers import SpiffeId, TrustDomain, WorkloadIdentifier
    >>> agent = SpiffeId.agent(TrustDomain("acme.example"), "researcher")
    >>> str(agent)
    'spiffe://acme.example/agents/researcher'
    >>> WorkloadIdentifier.parse(str(agent)).origin
    'spiffe://acme.example'

Every value here exists only if it is valid, in its one canonical spelling: lower-case scheme and trust domain, no
percent-encoding, octet for octet. Nothing is repaired. A value is equal only to its own type, never to a string, and
trust tables are keyed by ``TrustDomain`` or by origin, never by a prefix of text.

Sources: SPIFFE-ID 1.0; draft-ietf-wimse-identifier with the canonical form of its editor's copy.
"""

from aims.identifiers.errors import IdentifierError
from aims.identifiers.spiffe_id import SpiffeId
from aims.identifiers.trust_domain import TrustDomain
from aims.identifiers.workload_identifier import WorkloadIdentifier

__all__ = ["IdentifierError", "SpiffeId", "TrustDomain", "WorkloadIdentifier"]
