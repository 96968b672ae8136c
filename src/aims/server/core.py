"""What one worker process holds in memory, kept fresh by the change feed.

Everything here can be rebuilt from the database; a worker owns nothing that another could not load.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass

from sqlalchemy import Connection

from aims.clock import Clock, IdSource
from aims.policy.engine import Engine
from aims.policy.errors import PolicyError
from aims.policy.store import active
from aims.policy.tables import Tables
from aims.server.policy_activation import CHANGE_KIND
from aims.server.settings import Settings
from aims.storage.database import Database
from aims.storage.feed import Event

_log = logging.getLogger("aims.server")


@dataclass(frozen=True, slots=True)
class ActivePolicy:
    """The bundle in force: Cedar's engine for whether, the tables for how much."""

    engine: Engine
    tables: Tables


class Core:
    """The shared state of a worker's listeners. ``loaded`` is set once everything stands in memory."""

    def __init__(self, settings: Settings, *, clock: Clock, ids: IdSource, database: Database) -> None:
        self.settings = settings
        self.clock = clock
        self.ids = ids
        self.database = database
        self.server_uid = os.geteuid()
        self.loaded = asyncio.Event()
        self._policy: ActivePolicy | None = None

    @property
    def policy(self) -> ActivePolicy:
        """The policy in force.

        Raises:
            PolicyError: ``inactive`` before the first one is loaded: no policy, no decision.
        """
        if self._policy is None:
            raise PolicyError("inactive")
        return self._policy

    def follow(self) -> None:
        """Load everything and follow the feed from then on."""
        self.database.feed.subscribe(self._learn, self._load)

    def _load(self) -> None:
        with self.database.reading() as connection:
            self._load_policy(connection)
        if self._policy is not None:
            self.loaded.set()

    def _learn(self, event: Event) -> None:
        if event.kind == CHANGE_KIND:
            self._load()

    def _load_policy(self, connection: Connection) -> None:
        bundle = active(connection)
        if bundle is None or (self._policy is not None and self._policy.engine.version == bundle.version):
            return
        self._policy = ActivePolicy(Engine(bundle), Tables(bundle.rows, self.settings.trust_domain))
        _log.info("policy in force", extra={"policy": bundle.version})
