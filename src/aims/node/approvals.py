"""What the launcher may start, as the node's memory of its entries tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from aims.attestation import LaunchProfile
from aims.identifiers import SpiffeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved:
    """What the registry approved under a name; ``launch_uids`` may start it besides the node's own uid."""

    profile: LaunchProfile | Literal["unmeasured"]
    launch_uids: frozenset[int]
    spiffe_id: SpiffeId


class Approvals(Protocol):
    """Where the launcher learns what is approved: the node's memory of its entries."""

    def approved(self, name: str) -> Approved | None:
        """Return what may be started as ``name`` now, or None."""
        ...
