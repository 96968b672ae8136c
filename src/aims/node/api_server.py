"""A unix socket on which the node answers: that of the Workload API, and that of its own API for agents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from aims.node.grpc_guard import Answers, GuardedServer, GuardLimits
from aims.node.identities import C, Caller, PeerOf
from aims.node.listener import EVERYBODY, Listener, open_listener
from aims.proto.workload_service import Method

C_contra = TypeVar("C_contra", bound=Caller, contravariant=True)


class Api(Protocol[C_contra]):
    """What knows the answers, and nothing of connections."""

    def answers(self) -> Mapping[Method, Answers[C_contra]]:
        """Return who serves which method."""
        ...


class ApiServer(Generic[C]):
    """Serves ``api`` on a socket, from ``start`` to ``stop``."""

    def __init__(self, api: Api[C], peer_of: PeerOf[C], limits: GuardLimits | None = None) -> None:
        self._server = GuardedServer(api.answers(), peer_of, limits)
        self._listener: Listener | None = None

    async def start(self, path: Path, mode: int = EVERYBODY) -> None:
        """Open the socket and serve. Raises as ``open_listener`` does."""
        self._listener = open_listener(path, mode)
        await self._server.start(self._listener.socket)

    async def stop(self, grace: float = 2.0) -> None:
        """Remove the socket, end every call with UNAVAILABLE and close."""
        if self._listener is not None:
            self._listener.unlink()
        await self._server.stop(grace)
