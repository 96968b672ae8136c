"""The node's cache of SVIDs: the port behind the Workload API.

A caller is the process at the other end of a connection, by its pidfd: one that the node launched, or one that the
kernel alone vouches for. What it is entitled to follows from the server's state at each moment; what it holds is kept
fresh while it asks for it, and dropped at once when a stop, a removed entry or its own end takes it away.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from aims.clock import Clock, IdSource
from aims.credentials import jwt_svid
from aims.errors import AimsError
from aims.identifiers import SpiffeId
from aims.node import peer as kernel
from aims.node.errors import NodeError
from aims.node.identities import IdentityState, JwtIdentity, ValidatedJwtSvid
from aims.node.issuing import Issuer
from aims.node.launch import Launcher
from aims.node.launches import Launch
from aims.node.peer import Peer, peer_of
from aims.node.processes import LaunchedProcess, PeerProcess, Process
from aims.node.server_state import ServerState
from aims.node.tenant import Tenant
from aims.node.workload_errors import WorkloadApiError

MAX_AUDIENCES: Final = 8
MAX_AUDIENCES_TOGETHER: Final = 4096
"""The server makes no token for more, nor for audiences that are longer together."""
MAX_PROCESSES: Final = 4096


class Caller:
    """One connection's peer."""

    __slots__ = ("peer",)

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def close(self) -> None:
        self.peer.close()

    def __repr__(self) -> str:
        return f"Caller({self.peer!r})"


def recognise(connection: socket.socket) -> Caller:
    """Ask the kernel who connected; a `PeerOf`. Raises: as `peer_of`."""
    return Caller(peer_of(connection))


class IdentityCache:
    """Implements `Identities` for `Caller`. Belongs to one event loop; ``launcher`` knows what was launched."""

    def __init__(
        self,
        state: ServerState,
        issuer: Issuer,
        launcher: Callable[[], Launcher],
        *,
        node: str,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._state = state
        self._issuer = issuer
        self._launcher = launcher
        self._node = node
        self._clock = clock
        self._ids = ids
        self._launched: dict[str, Tenant] = {}
        self._peers: dict[int, Tenant] = {}
        # equal inodes mean the same process; on older kernels a pid does, while its tenant lives
        self._pidfs = kernel.pidfs()
        state.on_change(self._news)

    async def subscribe(self, caller: Caller) -> AsyncGenerator[IdentityState, None]:
        tenant = self._tenant(caller)
        async with aclosing(tenant.watch()) as states:
            async for state in states:
                if not caller.peer.alive():
                    raise WorkloadApiError("not_entitled", "the process has ended")
                yield state

    async def jwt_svids(
        self, caller: Caller, audiences: tuple[str, ...], spiffe_id: SpiffeId | None
    ) -> tuple[JwtIdentity, ...]:
        plain = all(audience.isascii() and audience.isprintable() for audience in audiences)
        if not plain or len(audiences) > MAX_AUDIENCES or sum(map(len, audiences)) > MAX_AUDIENCES_TOGETHER:
            raise WorkloadApiError("audience_invalid")
        return await self._tenant(caller).tokens(audiences, spiffe_id)

    async def validate_jwt_svid(self, caller: Caller, audience: str, token: str) -> ValidatedJwtSvid:
        self._tenant(caller)
        if not self._state.fresh:
            # Stops that were not heard would be missing, and "valid" would be a guess.
            raise WorkloadApiError("not_ready", "the server was not heard lately")
        own = self._state.trust_domain
        svid = jwt_svid.validate(token, self._state.bundles.jwt_keys, audience=audience, now=self._clock.now(), own=own)
        if svid.fence is not None:
            names = (("agent", str(svid.subject)), ("node", svid.fence.node), ("instance", svid.fence.instance))
            if self._state.fenced(names, svid.fence.epoch):
                raise NodeError("stopped", str(svid.subject))
        return ValidatedJwtSvid(spiffe_id=svid.subject, claims={**svid.claims, "aud": list(svid.audience)})

    def ended(self, launch: Launch) -> None:
        """Forget a launch that has ended."""
        tenant = self._launched.pop(launch.instance, None)
        if tenant is not None:
            tenant.end(NodeError("launch_ended"))

    def close(self) -> None:
        """Forget everybody."""
        for tenant in (*self._launched.values(), *self._peers.values()):
            self._gone(tenant, WorkloadApiError("api_stopping"))
        self._launched.clear()
        self._peers.clear()

    def _tenant(self, caller: Caller) -> Tenant:
        """Find or admit the process of a caller that is entitled to something.

        Raises: WorkloadApiError ``not_ready`` before the server's state is known, ``not_entitled``.
        """
        if not self._state.known:
            raise WorkloadApiError("not_ready", "nothing is known of the server's state")
        launcher, peer = self._launcher(), caller.peer
        launch = launcher.launched(peer)
        if launch is not None:
            return self._admit_launch(launch, launcher)
        # below a launch nobody inherits: neither the launch's identity nor what its uid would give
        if not peer.alive() or launcher.nested(peer):
            raise WorkloadApiError("not_entitled", repr(peer))
        return self._admit_peer(peer)

    def _admit_launch(self, launch: Launch, launcher: Launcher) -> Tenant:
        tenant = self._launched.get(launch.instance)
        if tenant is None:
            tenant = self._entitled(LaunchedProcess(launch, launcher.recheck, self._clock))
            self._launched[launch.instance] = tenant
        return tenant

    def _admit_peer(self, peer: Peer) -> Tenant:
        key = os.fstat(peer.pidfd).st_ino if self._pidfs else peer.pid
        tenant = self._peers.get(key)
        if tenant is not None and tenant.process.alive():
            return tenant
        if len(self._peers) >= MAX_PROCESSES:
            raise NodeError("instances_full")
        process = PeerProcess(peer, f"{self._node}:{self._ids.new()}", self._clock)
        try:
            tenant = self._entitled(process)
        except BaseException:
            process.close()
            raise
        if (before := self._peers.pop(key, None)) is not None:
            self._gone(before)
        self._peers[key] = tenant
        asyncio.get_running_loop().add_reader(process.pidfd, self._peer_ended, key, tenant)
        return tenant

    def _peer_ended(self, key: int, tenant: Tenant) -> None:
        if self._peers.get(key) is tenant:
            del self._peers[key]
        self._gone(tenant)

    def _gone(self, tenant: Tenant, error: AimsError | None = None) -> None:
        if isinstance(tenant.process, PeerProcess) and tenant.process.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(tenant.process.pidfd)
        tenant.end(error or NodeError("peer_gone"))
        tenant.process.close()

    def _entitled(self, process: Process) -> Tenant:
        tenant = Tenant(process, self._state, self._issuer, self._clock)
        if not tenant.entries():
            raise WorkloadApiError("not_entitled")
        return tenant

    def _news(self) -> None:
        for tenant in (*self._launched.values(), *self._peers.values()):
            tenant.news()
