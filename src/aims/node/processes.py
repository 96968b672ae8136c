"""The processes that may hold identities: those that the node launched, and those that the kernel alone vouches for.

Both have an instance that is constant while their keys rotate, selectors that can be looked at at once, and evidence
that is collected anew for each request.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any, Final, Protocol

from aims.attestation import Measurement, separation
from aims.clock import Clock
from aims.node.errors import NodeError
from aims.node.launches import Launch
from aims.node.messages import Entry
from aims.node.peer import Peer
from aims.node.server_client import Evidence
from aims.node.server_state import ServerState

_MAX_NAME: Final = 512


class Process(Protocol):
    """One process, for as long as it lives."""

    @property
    def instance(self) -> str: ...

    def alive(self) -> bool:
        """Tell whether it still runs."""
        ...

    def among(self, state: ServerState) -> tuple[Entry, ...]:
        """Return the entries whose demands the process meets now, the oldest first. Raises: NodeError ``peer_gone``."""
        ...

    def check(self) -> None:
        """Look, without waiting, whether the process is still what was vouched for.

        Raises: NodeError ``launch_ended``, ``peer_gone``, ``exe_changed``, ``exe_unreadable``.
        """
        ...

    async def evidence(self) -> Evidence:
        """Look again, and return what was seen.

        Raises: NodeError ``launch_ended``, ``peer_gone``, ``exe_changed``, ``exe_unreadable``, ``launch_mismatch``.
        """
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


class LaunchedProcess:
    """A process that the node started. It is the agent as which it was started, and never another one."""

    def __init__(self, launch: Launch, recheck: Callable[[Launch], Any], clock: Clock) -> None:
        self._launch = launch
        self._recheck = recheck
        self._clock = clock

    @property
    def instance(self) -> str:
        return self._launch.instance

    def alive(self) -> bool:
        return self._launch.alive()

    def among(self, state: ServerState) -> tuple[Entry, ...]:
        # two agents may have one program, and all unmeasured launches have one selector: only the name tells them apart
        own = state.entries_of(self._launch.spiffe_id)
        return tuple(entry for entry in own if entry.selectors <= self._launch.selectors)

    def check(self) -> None:
        self._launch.check_executable()

    async def evidence(self) -> Evidence:
        collected = int(self._clock.now())
        await self._recheck(self._launch)
        return Evidence(
            kind="launch",
            collected_at=collected,
            selectors=sorted(map(str, self._launch.selectors)),
            posture=str(self._launch.posture),
            measurement=_wire(self._launch.measured.measurement),
        )

    def close(self) -> None:
        return


class PeerProcess:
    """A process that connected by itself; ``instance`` was made at its first connection. Holds a pidfd of its own."""

    def __init__(self, peer: Peer, instance: str, clock: Clock) -> None:
        self._peer = Peer(pid=peer.pid, uid=peer.uid, gid=peer.gid, pidfd=os.dup(peer.pidfd))
        self._instance = instance
        self._clock = clock

    @property
    def instance(self) -> str:
        return self._instance

    @property
    def pidfd(self) -> int:
        """Readable once the process has ended."""
        return self._peer.pidfd

    def alive(self) -> bool:
        return self._peer.alive()

    def among(self, state: ServerState) -> tuple[Entry, ...]:
        found = self._peer.evidence().selectors()
        return tuple(entry for entry in state.unlaunched if entry.selectors <= found)

    def check(self) -> None:
        if not self.alive():
            raise NodeError("peer_gone", repr(self._peer))

    async def evidence(self) -> Evidence:
        found = self._peer.evidence()
        return Evidence(
            kind="unix",
            collected_at=int(self._clock.now()),
            selectors=sorted(map(str, found.selectors())),
            posture=str(separation(node_uid=os.geteuid(), agent_uid=found.uid)),
            measurement={"pid": found.pid},
        )

    def close(self) -> None:
        self._peer.close()


def _wire(measurement: Measurement) -> dict[str, Any]:
    """Return a measurement in bounded size: arguments as one digest, long paths cut."""
    arguments = b"\0".join(os.fsencode(argument) for argument in measurement.argv)
    return {
        "executable": measurement.executable,
        "arguments": len(measurement.argv),
        "arguments_sha256": hashlib.sha256(arguments).hexdigest(),
        "roots": [[root.path[:_MAX_NAME], root.digest] for root in measurement.roots],
        "environment": measurement.environment,
    }
