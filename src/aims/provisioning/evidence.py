"""What a node reports about a workload, as the server takes it: bounded, parsed, and believed only as far as it goes.

The node vouches for the selectors. The server cannot check them, so it never lets them decide more than the entry,
which is bound to this node, allows (see ``issuance``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from aims.attestation import AttestationError, Selector, parse_selectors
from aims.provisioning.errors import ProvisioningError

KINDS: Final = frozenset({"launch", "unix"})
MAX_AGE: Final = 60
"""Seconds that evidence is fresh for: it is collected for one request."""
MAX_AHEAD: Final = 5  # the common leeway between two clocks
MAX_MEASUREMENT: Final = 64 * 1024

_encoder = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Evidence that is well-formed. ``digest`` covers all of it, the measurement too, and goes into the audit.

    ``collected_at`` is Unix seconds by the node's clock; ``posture`` is a word that the policy knows or not.
    """

    kind: str
    collected_at: int
    selectors: frozenset[Selector]
    posture: str
    digest: str

    @classmethod
    def read(
        cls, *, kind: str, collected_at: int, selectors: Sequence[str], posture: str, measurement: Mapping[str, Any]
    ) -> Evidence:
        """Take evidence from the wire.

        Raises: ProvisioningError ``evidence_malformed``: an unknown kind (nothing verifies it), no selectors, too
            many, one that is none, one named twice, or a measurement of more than 64 KiB.
        """
        if kind not in KINDS:
            raise ProvisioningError("evidence_malformed", f"kind {kind[:40]!r}")
        try:
            found = parse_selectors(selectors)
        except AttestationError as error:
            raise ProvisioningError("evidence_malformed", str(error)) from error
        octets = _encoder.encode((kind, collected_at, sorted(selectors), posture, measurement))
        if len(octets) > MAX_MEASUREMENT:
            raise ProvisioningError("evidence_malformed", f"{len(octets)} octets")
        return cls(
            kind=kind,
            collected_at=collected_at,
            selectors=found,
            posture=posture,
            digest=hashlib.sha256(octets).hexdigest(),
        )

    def member(self) -> dict[str, str]:
        """Return the record's ``posture``."""
        return {"level": self.posture, "attestor": self.kind, "evidence_digest": self.digest}
