"""WITs that were verified before: the same text comes with each request of a workload, for an hour.

What is remembered is the answer of one full validation under one set of anchors, for one exact text. It is forgotten
when the WIT expires, when anchors change, and when there is no room. A WIT that was refused is never remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from aims.authentication.errors import AuthenticationError
from aims.authentication.request import HttpRequest
from aims.credentials import wit
from aims.credentials.errors import CredentialError
from aims.credentials.wit import WorkloadIdentityToken
from aims.identifiers import TrustDomain
from aims.jose import KeySet, Profile


class WitVerifier:
    """Validates WITs under ``anchors`` (keys by origin) and remembers at most ``capacity`` of them; 0 remembers none.

    The other parameters are those of `aims.credentials.wit.validate`. Not safe for threads.
    """

    __slots__ = ("_algorithms", "_anchors", "_capacity", "_own", "_profile", "_seen", "_unsafe")

    def __init__(
        self,
        anchors: Mapping[str, KeySet],
        *,
        own: TrustDomain | None,
        profile: Profile = wit.WIT,
        proof_algorithms: AbstractSet[str] = wit.ALGORITHMS,
        unsafe_printed_keys: bool = False,
        capacity: int = 1024,
    ) -> None:
        self._anchors = dict(anchors)
        self._own = own
        self._profile = profile
        self._algorithms = proof_algorithms
        self._unsafe = unsafe_printed_keys
        self._capacity = capacity
        self._seen: dict[str, tuple[float, WorkloadIdentityToken]] = {}

    def trust(self, anchors: Mapping[str, KeySet]) -> None:
        """Take new anchors and forget every WIT that was verified under the old ones. To be called on any change."""
        self._anchors = dict(anchors)
        self._seen.clear()

    def of_request(self, request: HttpRequest, *, now: float) -> WorkloadIdentityToken:
        """Validate the WIT in the request's one ``Workload-Identity-Token`` field.

        Raises:
            AuthenticationError: a ``wit_…`` reason, the first failed step.
        """
        return self.verify(request.one("workload-identity-token", "wit_header_count"), now=now)

    def verify(self, text: str, *, now: float) -> WorkloadIdentityToken:
        """Validate a WIT at ``now`` (Unix seconds), or take the answer that stands.

        Raises:
            AuthenticationError: a ``wit_…`` reason, the first failed step.
        """
        held = self._seen.get(text)
        # Outside of [first seen, exp) the full validation decides, for it alone knows leeway and nbf.
        if held is not None and held[0] <= now < held[1].expires:
            return held[1]
        try:
            found = wit.validate(
                text,
                self._anchors,
                now=now,
                own=self._own,
                profile=self._profile,
                proof_algorithms=self._algorithms,
                unsafe_printed_keys=self._unsafe,
            )
        except CredentialError as error:
            self._seen.pop(text, None)
            raise AuthenticationError(error.reason, error.detail) from error
        if self._capacity:
            if len(self._seen) >= self._capacity and text not in self._seen:
                del self._seen[next(iter(self._seen))]  # the oldest
            self._seen[text] = now, found
        return found
