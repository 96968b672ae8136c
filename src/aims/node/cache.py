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
from aims.node.holding import Holding
from aims.node.identities import IdentityState, JwtIdentity, Latest, ValidatedJwtSvid
from aims.node.issuing import Issuer
from aims.node.launch import Launcher
from aims.node.launches import Launch
from aims.node.messages import Entry
from aims.node.peer import Peer, peer_of
from aims.node.processes import LaunchedProcess, PeerProcess, Process
from aims.node.server_state import ServerState
from aims.node.workload_errors import WorkloadApiError

MAX_AUDIENCES: Final = 8
MAX_AUDIENCE_OCTETS: Final = 4096
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


class Tenant:
    """One process and what it holds."""

    def __init__(self, process: Process, state: ServerState, issuer: Issuer, clock: Clock) -> None:
        self.process = process
        self._state = state
        self._issuer = issuer
        self._clock = clock
        self._holdings: dict[str, Holding] = {}
        self._latest: Latest[IdentityState] = Latest()
        self._error: AimsError | None = None
        self._shown = False
        self._users = 0
        self._used_at = clock.monotonic()
        self._ended: AimsError | None = None

    def entries(self) -> tuple[Entry, ...]:
        """Return what the process is entitled to now, by what it shows and what is stopped."""
        if self._ended is not None:
            return ()
        return tuple(entry for entry in self.process.among(self._state) if not self._stopped(entry))

    async def watch(self) -> AsyncGenerator[IdentityState, None]:
        """Yield the present state, then each later one; ends by an exception."""
        self.process.check()
        self._users += 1
        try:
            for holding in self._holdings.values():
                holding.ask_again()
            self._forgive()
            self.settle()
            if self._error is not None:
                raise self._error.with_traceback(None)
            async with aclosing(self._latest.watch()) as states:
                async for state in states:
                    yield state
        finally:
            self._users -= 1
            self._used_at = self._clock.monotonic()

    async def tokens(self, audiences: tuple[str, ...], spiffe_id: SpiffeId | None) -> tuple[JwtIdentity, ...]:
        """Return one JWT-SVID for each identity, or for ``spiffe_id`` alone.

        Raises: the first error, if nothing could be made.
        """
        self.process.check()
        self._users += 1
        try:
            for holding in self._holdings.values():
                holding.ask_again()
            self.settle()
            chosen = [holding for holding in self._in_order() if spiffe_id in {None, holding.entry.spiffe_id}]
            if not chosen:
                raise WorkloadApiError("not_entitled")
            tried = await asyncio.gather(*(holding.token(audiences) for holding in chosen), return_exceptions=True)
        finally:
            self._users -= 1
            self._used_at = self._clock.monotonic()
        failures = [each for each in tried if isinstance(each, BaseException)]
        if len(failures) == len(tried):
            raise failures[0]
        self.process.check()
        # what was taken away meanwhile is not handed out
        still = {entry.spiffe_id for entry in self.entries()}
        return tuple(each for each in tried if isinstance(each, JwtIdentity) and each.spiffe_id in still)

    def settle(self) -> None:
        """Bring what is held into line with what the server says, and show it."""
        if not self._state.known or self._ended is not None:
            return
        try:
            wanted = {entry.id: entry for entry in self.entries()}
        except NodeError as error:
            self.end(error)
            return
        for entry_id in self._holdings.keys() - wanted.keys():
            self._holdings.pop(entry_id).close()
        for entry_id, entry in wanted.items():
            holding = self._holdings.get(entry_id)
            if holding is not None:
                holding.take(entry)
            elif self._users:
                self._holdings[entry_id] = Holding(
                    entry, self.process, self._issuer, self._clock, in_use=self._in_use, changed=self._show
                )
        for holding in self._holdings.values():
            names = self._issuer.names(holding.entry.spiffe_id, self.process.instance)
            if holding.credential is not None and self._state.fenced(names, holding.credential.epoch):
                holding.drop()
        self._show()

    def news(self) -> None:
        """The server has said something: settle, and ask again for what was refused by an older state."""
        for holding in self._holdings.values():
            if holding.current is None and holding.error is not None:
                holding.renew()
        self.settle()

    def end(self, error: AimsError) -> None:
        """The process is gone, or nothing is for it any more: every stream ends with ``error``."""
        if self._ended is None:
            self._ended = error
            for holding in self._holdings.values():
                holding.close()
            self._holdings.clear()
            self._fail(error)

    def _in_use(self) -> bool:
        return self._users > 0

    def _in_order(self) -> list[Holding]:
        return sorted(self._holdings.values(), key=lambda holding: holding.entry.id)

    def _show(self) -> None:
        held = [holding for holding in self._in_order() if holding.current is not None]
        waiting = any(holding.pending for holding in self._holdings.values())
        if waiting and not self._shown:
            self._forgive()
            return  # the first state is the complete one
        if held:
            self._publish(held)
            return
        errors = [holding.error for holding in self._in_order() if holding.error is not None]
        if waiting:
            # what was shown is not good any more, and nothing else is there yet
            self._fail(WorkloadApiError("not_ready"))
            self._forgive()
        elif errors:
            refused = [error for error in errors if error.standard != "UNAVAILABLE"]
            self._fail(refused[0] if refused else WorkloadApiError("not_ready", errors[0].code))
        elif self._users or self._shown:
            self._fail(self._why_nothing())

    def _publish(self, held: list[Holding]) -> None:
        credentials = [holding.current for holding in held]
        bundles = [bundle for bundle in self._state.bundles if not bundle.is_empty]
        try:
            state = IdentityState(
                trust_domain=self._state.trust_domain,
                x509=tuple(credential.x509 for credential in credentials if credential is not None),
                wit=tuple(credential.wit for credential in credentials if credential is not None),
                x509_bundles={each.trust_domain: each.x509_der() for each in bundles if each.x509_authorities},
                jwt_bundles={each.trust_domain: each.jwt_jwks() for each in bundles if len(each.jwt_keys)},
                wit_bundles={each.trust_domain: each.wit_jwks().decode() for each in bundles if len(each.wit_keys)},
            )
        except WorkloadApiError as error:
            self._fail(error)
            return
        self._error, self._shown = None, True
        self._latest.set(state)

    def _why_nothing(self) -> AimsError:
        try:
            stopped = any(map(self._stopped, self.process.among(self._state)))
        except NodeError as error:
            return error
        return NodeError("stopped") if stopped else WorkloadApiError("not_entitled")

    def _stopped(self, entry: Entry) -> bool:
        names = self._issuer.names(entry.spiffe_id, self.process.instance)
        return not entry.active or self._state.blocked(names)

    def _fail(self, error: AimsError) -> None:
        self._error, self._shown = error, False
        self._latest.fail(error)

    def _forgive(self) -> None:
        """Let those who come now wait for what is on its way, instead of an earlier failure."""
        if self._error is not None and self._ended is None and any(each.pending for each in self._holdings.values()):
            self._error = None
            self._latest = Latest()


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
        if not plain or len(audiences) > MAX_AUDIENCES or sum(map(len, audiences)) > MAX_AUDIENCE_OCTETS:
            raise WorkloadApiError("audience_invalid")
        return await self._tenant(caller).tokens(audiences, spiffe_id)

    async def validate_jwt_svid(self, caller: Caller, audience: str, token: str) -> ValidatedJwtSvid:
        self._tenant(caller)
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
