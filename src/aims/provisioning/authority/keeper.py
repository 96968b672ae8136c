"""The task that keeps the authority: first keys, then each step when it is due. It commits.

Any number of processes may run it: the bundle's number lets one win each step, and the others read what it did.
"""

from __future__ import annotations

from collections.abc import Mapping

from aims.identifiers import TrustDomain
from aims.keys import Purpose
from aims.provisioning.authority import store
from aims.provisioning.authority.model import AuthorityKey, Step
from aims.provisioning.authority.service import PURPOSES, SCHEDULE, AuthorityService
from aims.provisioning.authority.signing import Authority
from aims.storage.database import Database


class Keeper:
    """Keeps ``authority`` of this process up to date; ``open`` it first."""

    def __init__(self, database: Database, service: AuthorityService, trust_domain: TrustDomain) -> None:
        self._database = database
        self._service = service
        self._trust_domain = trust_domain
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
        self.authority = await Authority.open(self._service, self._trust_domain, state)
        return self.authority

    async def turn(self, now: float) -> tuple[tuple[Purpose, Step], ...]:
        """Take every step that is due, and return those that this process won. Call it once a minute or so.

        A change that this process has missed is read first, so that it never signs for long with a key that is gone.

        Raises: as ``step`` and ``refresh``.
        """
        if (await self._database.read(store.read)).sequence != self.authority.state.sequence:
            await self.refresh()
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
