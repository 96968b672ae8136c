"""Evidence that the kernel gives about a process on a unix socket, and what it is worth.

A uid, a path or the digest of an executable never tells two programs of one uid apart: a process can fork, hand its
socket to the child and become the trusted program itself. These selectors stand beside ``launch``, never in its place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from aims.attestation.errors import AttestationError
from aims.attestation.selectors import MAX_VALUE_OCTETS, Selector

MAX_ID = 0xFFFF_FFFE

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Separation(StrEnum):
    """What keeps a launched agent apart from the node and from other agents; shown wherever posture is.

    ``shared-uid``: programs are kept apart that do not attack each other, and nothing more: a hostile process of this
    uid reads the node's key and the agents' memory. ``node-uid``: node, registry and administration are safe; agents
    of one person can still read each other. ``agent-uid``: each agent has a uid of its own, and separation holds.
    """

    SHARED_UID = "shared-uid"
    NODE_UID = "node-uid"
    AGENT_UID = "agent-uid"


def separation(*, node_uid: int, agent_uid: int, alone: bool = False) -> Separation:
    """Decide the level from uids; ``alone`` says that nobody else, person or agent, uses ``agent_uid``.

    An agent that runs as root is never separated from anything.
    """
    if agent_uid in {0, node_uid}:
        return Separation.SHARED_UID
    return Separation.AGENT_UID if alone else Separation.NODE_UID


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixEvidence:
    """Peer credentials and, where they could be read while the process was alive, its executable.

    ``path`` is absolute; a path that no selector can hold is left out of the selectors. ``sha256`` is hex.

    Raises: AttestationError ``evidence_malformed``.
    """

    pid: int
    uid: int
    gid: int
    path: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        # pid 0 is a process outside our pid namespace: there is nobody to look at
        if self.pid < 1 or not 0 <= self.uid <= MAX_ID or not 0 <= self.gid <= MAX_ID:
            raise AttestationError("evidence_malformed", f"pid {self.pid} uid {self.uid} gid {self.gid}")
        if self.path is not None and not self.path.startswith("/"):
            raise AttestationError("evidence_malformed", "a path that is not absolute")
        if self.sha256 is not None and not _DIGEST.fullmatch(self.sha256):
            raise AttestationError("evidence_malformed", "a digest that is not SHA-256 in hex")

    def selectors(self) -> frozenset[Selector]:
        """Return ``unix:uid:…``, ``unix:gid:…`` and, where known, ``unix:path:…`` and ``unix:sha256:…``."""
        values = [f"uid:{self.uid}", f"gid:{self.gid}"]
        if self.path is not None and _fits(self.path):
            values.append(f"path:{self.path}")
        if self.sha256 is not None:
            values.append(f"sha256:{self.sha256}")
        return frozenset(Selector("unix", value) for value in values)


def _fits(path: str) -> bool:
    # printable text holds no surrogates, so it always encodes; a path of a removed file names no file
    return path.isprintable() and len(path.encode("utf-8")) + 5 <= MAX_VALUE_OCTETS and not path.endswith(" (deleted)")
