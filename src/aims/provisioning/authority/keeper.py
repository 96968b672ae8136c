"""The task that keeps the authority: first keys, then each step when it is due. It commits.

Any number of processes may run it: the bundle's number lets one win each step, and the others read what it did.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NoReturn

from aims.clock import Clock
from aims.errors import AimsError
from aims.identifiers import TrustDomain
from aims.keys import Purpose
from aims.provisioning.authority import store
from aims.provisioning.authority.model import AuthorityKey, Step
from aims.provisioning.authority.service import PURPOSES, SCHEDULE, AuthorityService
from aims.provisioning.authority.signing import Authority
from aims.storage.database import Database
from aims.storage.feed import Event

_log = logging.getLogger(__name__)


class Keeper:
    """Keeps ``authority`` of this process up to date; ``open`` it first."""

    def __init__(self, database: Database, service: AuthorityService, trust_domain: TrustDomain) -> None:
        self._database = database
        self._service = service
        self._trust_domain = trust_domain
        self._changed = asyncio.Event()
        self._watchers: list[Callable[[Authority], None]] = []
        self.authority: Authority
        """The keys of this process; replaced as a whole by ``refresh``."""

    async def open(self) -> Authority:
        """Load the authority; make its first keys if there are none. Of several that do so at once, one wins.

        Raises: KeyStoreError, StorageError, ProvisioningError ``store_refused``.
        """
        state = await self._database.read(store.read)
        if state.missing(PURPOSES):
            plan, made = await self._service.first_keys(state)
            if not plan.answer(await self._database.commit(plan.write)):
                await self._service.destroy(made)
        return await self.refresh()

    async def refresh(self) -> Authority:
        """Read the authority again, after a line ``authority`` of the change feed.

        Raises: ProvisioningError ``authority_empty``; KeyStoreError, StorageError. The old one stays in place then.
        """
        state = await self._database.read(store.read)
        authority = await Authority.open(self._service, self._trust_domain, state)
        self.authority = authority
        for watcher in tuple(self._watchers):
            watcher(authority)
        return authority

    def watch(self, watcher: Callable[[Authority], None]) -> Callable[[], None]:
        """Call ``watcher`` with every new state (bundles, listeners follow it); returns what ends it."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher) if watcher in self._watchers else None

    async def run(self, clock: Clock, *, every: float = 60.0) -> NoReturn:
        """Follow the feed and take the steps that are due, until cancelled. ``open`` comes first.

        What fails is logged and tried again at the next round; the keys at hand go on signing until they end.
        """
        end = self._database.feed.subscribe(self._learn, self._changed.set)
        stale = False
        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), every)
                stale = stale or self._changed.is_set()
                self._changed.clear()
                try:
                    if stale:
                        await self.refresh()
                        stale = False
                    await self.turn(clock.now())
                except AimsError as error:
                    _log.error("the authority could not be kept: %s", error)
        finally:
            end()

    def _learn(self, event: Event) -> None:
        if event.kind == store.CHANGED:
            self._changed.set()

    async def turn(self, now: float) -> tuple[tuple[Purpose, Step], ...]:
        """Take every step that is due, and return those that this process won. Call it once a minute or so.

        Raises: as ``step``.
        """
        taken = []
        for purpose in PURPOSES:
            due = self.authority.state.due(purpose, now)
            if due is not None and await self.step(purpose, due, SCHEDULE):
                taken.append((purpose, due))
        return tuple(taken)

    async def step(self, purpose: Purpose, step: Step, cause: Mapping[str, str]) -> bool:
        """Take one step and read the authority again; False if another process was faster.

        Raises: ProvisioningError ``authority_slot``, ``store_refused``; KeyStoreError, StorageError.
        """
        state = self.authority.state
        made: tuple[AuthorityKey, ...] = ()
        if step is Step.PREPARE:
            plan, made = await self._service.prepare(state, purpose, cause)
        elif step is Step.ACTIVATE:
            plan = self._service.activate(state, purpose, cause)
        else:
            plan = self._service.prune(state, purpose, cause)
        gone = self._service.over(state, purpose) if step is Step.PRUNE else ()
        won = plan.answer(await self._database.commit(plan.write))
        await self._service.destroy(gone if won else made)
        await self.refresh()
        return won
