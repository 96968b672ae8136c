"""Values that all kinds of credentials share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aims.credentials.errors import CredentialError

MAX_EPOCH = 2**53 - 1
MAX_INSTANCE_OCTETS = 256
_INSTANCE = re.compile(r"[A-Za-z0-9._-]+:[a-z0-9]{26}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Fence:
    """What lets a stop reach a credential of our own domain.

    ``instance`` is ``NODE:`` and 26 characters: one running copy of a workload on one node, constant while its keys
    rotate. ``epoch`` is the number in the change feed that the issuer had read when it decided (0 to 2**53 - 1): a stop
    with a higher number ends everything issued before it.

    Raises:
        CredentialError: ``unfenced``.
    """

    instance: str
    epoch: int

    def __post_init__(self) -> None:
        if type(self.epoch) is not int or not 0 <= self.epoch <= MAX_EPOCH:
            raise CredentialError("unfenced", "epoch")
        if type(self.instance) is not str or len(self.instance) > MAX_INSTANCE_OCTETS:
            raise CredentialError("unfenced", "instance")
        if _INSTANCE.fullmatch(self.instance) is None:
            raise CredentialError("unfenced", "instance")

    @classmethod
    def of_claims(cls, claims: Mapping[str, Any]) -> Fence:
        """Read the claims ``instance`` and ``epoch``; either missing or malformed is ``unfenced``."""
        return cls(claims.get("instance", ""), claims.get("epoch", -1))

    @property
    def node(self) -> str:
        """The name of the node on which the instance runs."""
        return self.instance.partition(":")[0]

    def claims(self) -> dict[str, str | int]:
        """Return the two claims."""
        return {"instance": self.instance, "epoch": self.epoch}
