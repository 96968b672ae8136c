"""How a grant ends, with everything below it (RFC 7009 for its client; `revoke` for whoever may administer).

Tokens are not listed anywhere, so none is taken back by name: what ends is the grant that they carry. One Write has the
stops, the rows and the record, and from its commit on nothing is issued under the grant and no verifier takes what was.

    a grant that was handed on    blocked for good; every token below carries its id
    an agent's standing grant     all of its own tokens so far are dead, and so is what it handed on under it; it may
                                  ask for new ones

What is handed on while a standing grant ends is either refused by the fence or found afterwards: no answer is given
before a second look has found nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from aims.audit.record import recorder
from aims.authentication.errors import AuthenticationError
from aims.authorization import store
from aims.authorization.access_token import AccessToken
from aims.authorization.errors import AuthorizationError
from aims.authorization.keys import TokenKeys
from aims.authorization.model import Client, Memory, Request, dead, stored
from aims.authorization.store import STANDING
from aims.storage.database import Database
from aims.storage.intent import Plan
from aims.storage.schema import stop as stop_table
from aims.storage.write import Change, Claim, Name, Outcome, Stop, Verdict, Write

CHANGED: Final = "stop"
"""The kind of a line of the feed that is a stop and nothing else."""
_ROUNDS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Who ends a grant and why, in the members of the audit record.

    ``agent`` is the client that revokes its token, ``operator`` an administrator; ``reason`` is in words.
    ``request_id`` is that of the request, "" where a record's own id stands for it.
    """

    reason: str
    agent: Mapping[str, Any] | None = None
    operator: Mapping[str, Any] | None = None
    decision: Mapping[str, Any]
    request_id: str = ""

    @property
    def member(self) -> dict[str, str]:
        """The record's ``cause``."""
        operator = self.operator
        if operator is None:
            return {"reason": self.reason}
        return {"reason": self.reason, "admin": str(operator.get("user") or f"uid {operator['uid']}")}


@dataclass(frozen=True, slots=True)
class Ended:
    """What a revocation ended: the ids of grants, and the number of the feed at which they did.

    ``already``: the grant had ended before, and nothing was changed.
    """

    grants: tuple[str, ...]
    seq: int
    already: bool = False


class Revocation:
    """Ends grants, and commits: a standing grant may take a second Write."""

    def __init__(self, memory: Memory, keys: TokenKeys, database: Database) -> None:
        self._memory = memory
        self._keys = keys
        self._database = database

    async def token(self, request: Request, client: Client, claims: tuple[Claim, ...] = ()) -> Ended | None:
        """End the grant of a token at its own client's wish (RFC 7009 2.1); None for what is no live token of ours.

        ``claims`` are spent with it, also where there is nothing to end; whoever is refused has not spent them yet.

        Raises:
            AuthorizationError: ``parameter_missing``, ``revoke_other``; AuthenticationError ``dpop_replay``;
                StorageError, KeyStoreError.
        """
        text = request.form.require("token")
        held = await self._keys.current()
        try:
            token = held.verifier.read(text, now=self._memory.clock.now())
        except AuthorizationError:
            await self._nothing(client, claims)
            return None
        if dead(stored(token.names), token.epoch, self._memory.stops):
            await self._nothing(client, claims)
            return None
        if token.client_id != client.id:
            raise AuthorizationError("revoke_other")
        await self._check_holder(token, client)
        cause = Cause(
            reason="revoked by its client",
            agent={"id": client.id, "instance": client.fence.instance},
            decision={"effect": "permit", "reason": "its own token"},
        )
        return await self.revoke(token.grant_id, cause, kind="token.revoke", claims=claims)

    async def _nothing(self, client: Client, claims: tuple[Claim, ...]) -> None:
        """Spend what was presented. Without a proof there is nothing to write."""
        if not claims:
            return
        record_id = self._memory.ids.new()
        record = recorder(
            refuse="token.refuse",
            type="token.revoke",
            outcome="success",
            time=self._memory.clock.now(),
            id=record_id,
            request_id=record_id,
            agent={"id": client.id, "instance": client.fence.instance},
            action="token.revoke",
            decision={"effect": "permit", "reason": "no live token"},
            cause={"reason": "revoked by its client"},
        )
        _ended(await self._database.commit(Write(record=record, claims=claims)), ())

    async def _check_holder(self, token: AccessToken, client: Client) -> None:
        """Whoever only holds a part of a grant, further down, does not end it for those above."""
        if token.grant_id.startswith(STANDING):
            return
        row = await self._database.read(lambda connection: store.find(connection, token.grant_id))
        if row is None or client.id not in {row.agent, row.giver}:
            raise AuthorizationError("revoke_other", "the grant was given to another agent")

    async def revoke(
        self, grant_id: str, cause: Cause, *, kind: str = "grant.revoke", claims: tuple[Claim, ...] = ()
    ) -> Ended:
        """End a grant by the id that its tokens carry, or by the id of any delegation below it.

        Raises:
            AuthorizationError: ``grant_unknown``, ``unavailable``; StorageError.
        """
        plan = self.plan([await self._root(grant_id)], cause, kind=kind, claims=claims)
        ended = plan.answer(await self._database.commit(plan.write))
        return await self._below(ended, cause, kind) if grant_id.startswith(STANDING) else ended

    async def by_administrator(self, grant_id: str, cause: Cause) -> Plan[Ended]:
        """Plan the end of a grant by any id that ``revoke`` takes; what had ended for good is only recorded.

        After the commit, and before it is answered, ``finish`` is to be called.

        Raises: as ``revoke``.
        """
        root = await self._root(grant_id)
        stop = self._memory.stops.get(Name("grant", root))
        return self.plan([root], cause, already=stop is not None and stop.blocked)

    async def finish(self, grant_id: str, cause: Cause) -> None:
        """End what was handed on under a standing grant before its last stop, and is still there.

        Raises: as ``revoke``.
        """
        if grant_id.startswith(STANDING):
            seq = await self._database.read(partial(_stopped_at, grant_id=grant_id))
            await self._below(Ended((grant_id,), seq), cause, "grant.revoke")

    async def _root(self, grant_id: str) -> str:
        """Return the id that the tokens of a grant carry, by it or by the id of any delegation below it."""
        if grant_id.startswith(STANDING):
            if all(store.standing_grant(each.name) != grant_id for each in self._memory.registry.workloads):
                raise AuthorizationError("grant_unknown", repr(grant_id[:100]))
            return grant_id
        row = await self._database.read(lambda connection: store.find(connection, grant_id))
        if row is None:
            raise AuthorizationError("grant_unknown", repr(grant_id[:100]))
        return row.root

    def plan(
        self,
        grants: Iterable[str],
        cause: Cause,
        *,
        kind: str = "grant.revoke",
        claims: tuple[Claim, ...] = (),
        already: bool = False,
    ) -> Plan[Ended]:
        """End grants, each by the id that its tokens carry, in one Write; ``already`` only records the wish."""
        memory, ids = self._memory, tuple(dict.fromkeys(grants))
        now, record_id = memory.clock.now(), memory.ids.new()
        record = recorder(
            refuse="admin.refuse" if already else kind,
            type="admin.action" if already else kind,
            outcome="success",
            time=now,
            id=record_id,
            request_id=cause.request_id or record_id,
            agent=cause.agent,
            operator=cause.operator,
            resource=ids[0],
            action=kind,
            decision=cause.decision,
            cause=cause.member,
            delegation={"id": ids[0]},
            details={"grants": " ".join(ids)[:2048]} | ({"applied": "already"} if already else {}),
        )
        if already:
            return Plan(Write(record=record, claims=claims), lambda outcome: _ended(outcome, ids, already=True))
        write = Write(
            record=record,
            claims=claims,
            effects=tuple(store.revoked(each, int(now)) for each in ids if not each.startswith(STANDING)),
            changes=tuple(_line(each) for each in ids),
        )
        return Plan(write, lambda outcome: _ended(outcome, ids))

    async def _below(self, ended: Ended, cause: Cause, kind: str) -> Ended:
        standing, seq = ended.grants[0], ended.seq
        for _ in range(_ROUNDS):
            now = int(self._memory.clock.now())
            found = await self._database.read(partial(store.below, parent=standing, before=seq, now=now))
            if not found:
                return ended
            plan = self.plan([row.root for row in found], cause, kind=kind)
            more = plan.answer(await self._database.commit(plan.write))
            ended = Ended((*ended.grants, *more.grants), seq)
        raise AuthorizationError("unavailable", "a grant does not come to its end")


def _line(grant_id: str) -> Change:
    blocked = not grant_id.startswith(STANDING)
    return Change(CHANGED, grant_id, b"null", Stop(Name("grant", grant_id), blocked=blocked))


def _stopped_at(connection: Connection, grant_id: str) -> int:
    found = connection.execute(
        sa.select(stop_table.c.seq).where(stop_table.c.kind == "grant", stop_table.c.id == grant_id)
    )
    return int(found.scalar() or 0)


def _ended(outcome: Outcome, grants: tuple[str, ...], *, already: bool = False) -> Ended:
    if outcome.verdict is Verdict.REPLAYED:
        raise AuthenticationError("dpop_replay")
    if outcome.verdict is not Verdict.COMMITTED:
        raise AuthorizationError("unavailable", outcome.verdict)
    return Ended(grants, outcome.seq, already)
