"""What one worker process holds in memory, kept fresh by the change feed.

Policy, registry, stops and the authority's keys are read from here on every request; everything can be rebuilt from
the database and the key store, and a worker owns nothing that another could not load.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection

from aims.clock import Clock, IdSource
from aims.identifiers import SpiffeId, TrustDomain
from aims.keys.store import open_store
from aims.policy.engine import Engine
from aims.policy.errors import PolicyError
from aims.policy.rows import MAX_STALE_LIMIT
from aims.policy.store import active
from aims.policy.tables import Tables
from aims.provisioning.authority import store as authority_store
from aims.provisioning.authority.keeper import Keeper
from aims.provisioning.authority.service import AuthorityService
from aims.provisioning.authority.signing import Authority
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry.memory import Applied, Registry
from aims.provisioning.registry.model import NodeState
from aims.server.errors import ServerError
from aims.server.policy_activation import CHANGE_KIND as POLICY_CHANGED
from aims.server.settings import Settings
from aims.storage.database import Database
from aims.storage.feed import Event
from aims.storage.reading import StopRow
from aims.storage.write import Name

HEARTBEAT_SECONDS: Final = 2

_log = logging.getLogger("aims.server")


@dataclass(frozen=True, slots=True)
class ActivePolicy:
    """The bundle in force: Cedar's engine for whether, the tables for how much."""

    engine: Engine
    tables: Tables


@dataclass(frozen=True, slots=True)
class News:
    """What a line of the feed means for those who listen: a change of the registry, a stop, or keys; or everything."""

    seq: int
    applied: Applied | None = None
    stop: StopRow | None = None
    bundle: bool = False
    everything: bool = False


class Core:
    """The shared state of a worker's listeners. ``loaded`` is set once policy, registry and stops stand in memory."""

    def __init__(self, settings: Settings, *, clock: Clock, ids: IdSource, database: Database) -> None:
        self.settings = settings
        self.clock = clock
        self.ids = ids
        self.database = database
        self.trust_domain = TrustDomain(settings.trust_domain)
        self.server_uid = os.geteuid()
        self.loaded = asyncio.Event()
        self.stops: dict[Name, StopRow] = {}
        self.key_store = open_store(settings.keys_uri)
        self.keeper = Keeper(
            database,
            AuthorityService(self.key_store, settings.keys_uri, self.trust_domain, clock, ids),
            self.trust_domain,
        )
        self._policy: ActivePolicy | None = None
        self._registry: Registry | None = None
        self._listeners: list[Callable[[News], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def policy(self) -> ActivePolicy:
        """The policy in force.

        Raises:
            PolicyError: ``inactive`` before the first one is loaded: no policy, no decision.
        """
        if self._policy is None:
            raise PolicyError("inactive")
        return self._policy

    @property
    def tables(self) -> Tables:
        """The tables of the policy in force; raises as ``policy``."""
        return self.policy.tables

    @property
    def registry(self) -> Registry:
        """The registry.

        Raises:
            ServerError: ``starting`` before it is loaded.
        """
        if self._registry is None:
            raise ServerError("starting")
        return self._registry

    @property
    def authority(self) -> Authority:
        """The keys in force."""
        return self.keeper.authority

    @property
    def seq(self) -> int:
        """The number of the feed that this memory stands for: the epoch of what is issued from it."""
        return self.registry.seq

    @property
    def current(self) -> bool:
        """Whether this process has lately read the feed to its head; without it nothing may be decided."""
        return self.database.feed.fresh(MAX_STALE_LIMIT)

    def follow(self) -> None:
        """Load everything and follow the feed from then on."""
        self.database.feed.subscribe(self._learn, self._load)

    @contextmanager
    def hearing(self, listener: Callable[[News], None]) -> Iterator[None]:
        """Call ``listener`` for all news inside the context; it must not block."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    # --- nodes

    def node_is_live(self, node_id: str) -> bool:
        """Whether the node is known and not banned."""
        registry = self.registry
        return registry.has_node(node_id) and registry.node(node_id).state is not NodeState.BANNED

    def require_live_node(self, node_id: str) -> None:
        """Refuse a node that is unknown or banned.

        Raises:
            ProvisioningError: ``node_unknown``, ``node_banned``.
        """
        if self.registry.node(node_id).state is NodeState.BANNED:
            raise ProvisioningError("node_banned", node_id)

    @property
    def public_url(self) -> str:
        return f"https://localhost:{self.settings.public_port}"

    @property
    def mtls_url(self) -> str:
        return f"https://localhost:{self.settings.mtls_port}"

    def tls_ca_pem(self) -> bytes:
        """The certificate of the local authority behind the public listener."""
        return self.authority.tls_ca.public_bytes(Encoding.PEM)

    def node_settings(self) -> dict[str, Any]:
        """The ``settings`` that nodes pass on to what runs on them."""
        tables = self.tables
        return {
            "trust_domain": self.trust_domain.name,
            "issuer": self.public_url,
            "public_url": self.public_url,
            "mtls_url": self.mtls_url,
            "server": str(SpiffeId.service(self.trust_domain, "aims")),
            "tls_ca": self.tls_ca_pem().decode("ascii"),
            "resources": {
                row.url: {
                    "id": row.name,
                    "spiffe_id": str(tables.peer(row)),
                    "profile": row.profile,
                    "audiences": list(row.audiences),
                    "max_stale": row.max_stale,
                }
                for row in tables.rows.resources
            },
            "max_stale": MAX_STALE_LIMIT,
            "heartbeat": HEARTBEAT_SECONDS,
        }

    # --- the feed

    def _load(self) -> None:
        with self.database.reading() as connection:
            self._load_policy(connection)
            if self._registry is None:
                self._registry = Registry.load(connection, self.trust_domain)
            else:
                self._registry.reload(connection)
        self.stops = {row.name: row for row in self.database.stops().rows}
        if self._policy is not None:
            self.loaded.set()
        self._tell(News(self.registry.seq, everything=True))

    def _learn(self, event: Event) -> None:
        registry = self.registry
        if event.seq <= registry.seq:
            return
        applied: list[Applied] = []
        end = registry.watch(applied.append)
        try:
            registry.apply(event)
        finally:
            end()
        stop = None
        if event.stop is not None:
            stop = StopRow(event.stop.name, event.seq, event.stop.blocked)
            self.stops[stop.name] = stop
        if event.kind == POLICY_CHANGED:
            with self.database.reading() as connection:
                self._load_policy(connection)
            self._tell(News(event.seq, everything=True))
        elif event.kind == authority_store.CHANGED:
            task = asyncio.get_running_loop().create_task(self._refresh_keys(event.seq))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._tell(News(event.seq, applied[0] if applied else None, stop))

    async def _refresh_keys(self, seq: int) -> None:
        await self.keeper.refresh()
        self._tell(News(seq, bundle=True))

    def _tell(self, news: News) -> None:
        for listener in tuple(self._listeners):
            listener(news)

    def _load_policy(self, connection: Connection) -> None:
        bundle = active(connection)
        if bundle is None or (self._policy is not None and self._policy.engine.version == bundle.version):
            return
        self._policy = ActivePolicy(Engine(bundle), Tables(bundle.rows, self.settings.trust_domain))
        _log.info("policy in force", extra={"policy": bundle.version})
