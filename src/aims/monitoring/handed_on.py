"""What an instance handed on, and what all instances of a node did: the one thing below a stop that is searched for.

Once a right is taken up its tokens name the instance of the taker, so neither a quarantine nor a ban of a node reaches
them by name. Their grants end instead, each with its whole tree, in two looks:

    before the stop    ``given``, for the Write of the stop itself
    after its commit   ``HandedOn.finish``: from then on the fence refuses what the giver hands on, so what is found now
                       is all that there will ever be: what came in between, and what was too much for one Write

A stop has its answer only after the second look. Where that fails the stop stands, the answer is an error, and the same
command again ends the rest; where its process ends, the next one that starts does (``HandedOn.catch_up``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import sqlalchemy as sa

from aims.audit.record import inert, recorder
from aims.authorization.store import LEEWAY, STANDING, grant, revoked
from aims.clock import Clock, IdSource
from aims.errors import AimsError
from aims.monitoring.errors import MonitoringError
from aims.monitoring.model import Cause
from aims.storage.database import Database
from aims.storage.schema import stop
from aims.storage.write import Change, Effect, Name, Stop, StopKind, Verdict, Write

STOP_CHANGED: Final = "stop"
"""The kind of a line of the feed that is a stop and nothing else."""

MOST_AT_ONCE: Final = 4096
"""Grants that end in one Write; the next Write ends the next ones."""
ROUNDS: Final = 256
_MOST_LISTED: Final = 2048  # characters of one member of a record


@dataclass(frozen=True, slots=True)
class Ending:
    """What ends grants as part of a Write: their rows, their stops, and the record's ``details``."""

    roots: tuple[str, ...]
    effects: tuple[Effect, ...]
    changes: tuple[Change, ...]
    details: dict[str, Any]


NOTHING: Final = Ending((), (), (), {})


Given: TypeAlias = tuple[tuple[str, int], ...]
"""The roots of what was handed on, each with the end of its last token in Unix seconds; those that last longest first,
and of more than ``MOST_AT_ONCE`` no others."""


def given(connection: sa.Connection, giver: Name) -> Given:
    """Return what an instance, or any instance of a node, handed on and nobody ended yet.

    Raises: MonitoringError ``remedy`` for any other subject.
    """
    return _given(connection, giver, sa.true())


def left(connection: sa.Connection, giver: Name, now: float) -> Given:
    """Return the same for what was handed on before the last stop of ``giver`` and is not over yet; nothing where
    there was no stop."""
    stopped = sa.select(stop.c.seq).where(stop.c.kind == giver.kind, stop.c.id == giver.id).scalar_subquery()
    # Whoever was let go again hands on with a number that is not below the stop.
    return _given(connection, giver, sa.and_(grant.c.epoch < stopped, grant.c.expires > int(now) - LEEWAY))


def unfinished(connection: sa.Connection, now: float) -> tuple[Name, ...]:
    """Return the instances and nodes that were stopped and of whose grants ``left`` still finds some."""
    # an instance is NODE:, and 26 characters
    node = sa.func.substr(grant.c.instance, 1, sa.func.length(grant.c.instance) - 27)
    places: tuple[tuple[StopKind, sa.ColumnElement[str]], ...] = (("instance", grant.c.instance), ("node", node))
    found: list[Name] = []
    for kind, id_ in places:
        statement = (
            sa.select(stop.c.id)
            .distinct()
            .select_from(grant.join(stop, sa.and_(stop.c.kind == kind, stop.c.id == id_)))
            .where(grant.c.revoked == 0, grant.c.epoch < stop.c.seq, grant.c.expires > int(now) - LEEWAY)
            .where(grant.c.root.not_like(f"{STANDING}%"))
        )
        found += [Name(kind, str(each)) for each in connection.execute(statement).scalars()]
    return tuple(found)


def ending(found: Given, now: float) -> Ending:
    """Return what ends these trees; of those that are over nothing is left to end."""
    roots = tuple(root for root, expires in found if expires > now - LEEWAY)
    if not roots:
        return NOTHING
    return Ending(
        roots,
        tuple(revoked(root, int(now)) for root in roots),
        tuple(Change(STOP_CHANGED, root, b"null", Stop(Name("grant", root), blocked=True)) for root in roots),
        {"grants": _listed(roots), "grants_ended": len(roots)},
    )


class HandedOn:
    """Looks again after a stop was committed. It commits by itself: how many Writes it takes is seen on the way."""

    def __init__(self, database: Database, clock: Clock, ids: IdSource) -> None:
        self._database = database
        self._clock = clock
        self._ids = ids

    async def finish(self, giver: Name, cause: Cause) -> int:
        """End what ``giver`` (an instance or a node) handed on before its stop and is still there; return how many.

        To be called when the stop is committed, and before it is answered.

        Raises:
            MonitoringError: ``unfinished``: the stop stands, and some of what was handed on may live on.
        """
        ended = 0
        try:
            for _ in range(ROUNDS):
                now = self._clock.now()
                found = ending(await self._database.read(partial(left, giver=giver, now=now)), now)
                if not found.roots:
                    return ended
                outcome = await self._database.commit(self._write(giver, found, cause))
                ended += len(found.roots) if outcome.verdict is Verdict.COMMITTED else 0
        except AimsError as error:
            raise MonitoringError("unfinished", error.code) from error
        raise MonitoringError("unfinished", f"{ended} grants")

    async def catch_up(self) -> int:
        """Finish the stops whose own process ended before it could; return how many grants that ended.

        To be called when a process starts. Raises: as ``finish``; StorageError.
        """
        now = self._clock.now()
        cause = Cause(
            txn=self._ids.new(),
            at=int(now * 1000),
            request_id=self._ids.new(),
            decision={"effect": "permit", "reason": "the stop stands"},
            member={"reason": "the stop was not finished by whoever made it"},
        )
        ended = 0
        for giver in await self._database.read(partial(unfinished, now=now)):
            ended += await self.finish(giver, cause)
        return ended

    def _write(self, giver: Name, found: Ending, cause: Cause) -> Write:
        record = recorder(
            refuse="admin.refuse",
            type="grant.revoke",
            outcome="success",
            time=self._clock.now(),
            id=self._ids.new(),
            request_id=cause.request_id,
            txn=inert(cause.txn),
            resource=giver.id,
            action=f"{giver.kind}.stop",
            decision=cause.decision,
            cause=cause.member,
            operator=cause.operator,
            delegation={"id": found.roots[0]},
            details=found.details,
        )
        return Write(record=record, effects=found.effects, changes=found.changes)


def _given(connection: sa.Connection, giver: Name, condition: sa.ColumnElement[bool]) -> Given:
    last = sa.func.max(grant.c.expires)
    statement = (
        sa.select(grant.c.root, last)
        .where(_gave(giver), grant.c.revoked == 0, condition, grant.c.root.not_like(f"{STANDING}%"))
        .group_by(grant.c.root)
        .order_by(last.desc(), grant.c.root)
        .limit(MOST_AT_ONCE)
    )
    return tuple((str(root), int(expires)) for root, expires in connection.execute(statement))


def _gave(giver: Name) -> sa.ColumnElement[bool]:
    if giver.kind == "instance":
        return grant.c.instance == giver.id
    if giver.kind == "node":
        # Octet by octet, where LIKE would take "_" for any character, and upper for lower case on SQLite.
        head = f"{giver.id}:"
        return sa.func.substr(grant.c.instance, 1, len(head)) == head
    raise MonitoringError("remedy", f"{giver.kind} hands nothing on")


def _listed(roots: tuple[str, ...]) -> str:
    """Return as many whole ids as a member of a record holds; how many there are is said beside them."""
    text = roots[0]
    for root in roots[1:]:
        if len(text) + 1 + len(root) > _MOST_LISTED:
            break
        text += f" {root}"
    return text
