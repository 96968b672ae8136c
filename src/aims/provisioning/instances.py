"""What keeps each running copy of a workload apart: written with its first credential, read when it asks for more.

An instance is one process (or launch), so its posture does not change while it lives; the first word of its node holds.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from aims.storage.database import Database
from aims.storage.schema import Number, metadata
from aims.storage.write import Effect

MOST_REMEMBERED: Final = 50_000

instance = sa.Table(
    "instance",
    metadata,
    sa.Column("id", sa.String(256), primary_key=True),
    sa.Column("agent", sa.String(2048), nullable=False),
    sa.Column("posture", sa.String(64), nullable=False),
    sa.Column("measured", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("created", Number, nullable=False),
    sqlite_with_rowid=False,
)

_INSERT: Final = insert(instance).on_conflict_do_nothing(index_elements=["id"])


@dataclass(frozen=True, slots=True)
class Standing:
    """An instance of ``agent`` (its SPIFFE ID): its posture, and whether its launch was an approved profile."""

    agent: str
    posture: str
    measured: bool

    @property
    def postures(self) -> tuple[str, ...]:
        """Every row of the policy's postures that limits the instance."""
        return (self.posture,) if self.measured else (self.posture, "unmeasured")


def noted(instance_id: str, standing: Standing, now: int) -> Effect:
    """Remember an instance; one that is known already stays as it is."""
    row = {
        "id": instance_id,
        "agent": standing.agent,
        "posture": standing.posture,
        "measured": standing.measured,
        "created": now,
    }
    return Effect(_INSERT, row)


class Instances:
    """The instances that asked this process for something, with one read of the database for each."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: OrderedDict[str, Standing] = OrderedDict()

    def known(self, instance_id: str) -> Standing | None:
        """Return an instance that was looked up before."""
        return self._known.get(instance_id)

    async def find(self, instance_id: str) -> Standing | None:
        """Return an instance, None for one that never got a credential here. Raises: StorageError."""
        found = self._known.get(instance_id)
        if found is None:
            found = await self._database.read(lambda connection: _read(connection, instance_id))
            if found is not None:
                self._known[instance_id] = found
                if len(self._known) > MOST_REMEMBERED:
                    self._known.popitem(last=False)
        return found


def _read(connection: sa.Connection, instance_id: str) -> Standing | None:
    row = connection.execute(sa.select(instance).where(instance.c.id == instance_id)).one_or_none()
    return None if row is None else Standing(row.agent, row.posture, bool(row.measured))
