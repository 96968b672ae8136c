"""One process and what it holds: its entries, one holding for each, and the state that its streams see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aims.clock import Clock
from aims.errors import AimsError
from aims.identifiers import SpiffeId
from aims.node.errors import NodeError
from aims.node.holding import Holding
from aims.node.identities import IdentityState, JwtIdentity, Latest
from aims.node.issuing import Issuer
from aims.node.messages import Entry
from aims.node.processes import Process
from aims.node.server_state import ServerState
from aims.node.workload_errors import WorkloadApiError


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
