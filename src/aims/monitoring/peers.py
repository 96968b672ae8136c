"""The parties of the signal exchange in memory: whose events are heard, with which keys, and who is told.

Keys come from an administrator and from nowhere else: never from a token, never by a fetch that a token asks for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

import sqlalchemy as sa

from aims.errors import AimsError
from aims.jose import KeySet
from aims.jose.jwks import parse_jwks
from aims.monitoring import store
from aims.monitoring.errors import MonitoringError
from aims.monitoring.model import Receiver
from aims.monitoring.set import PROFILE
from aims.storage.database import Database
from aims.storage.feed import Event

_log = logging.getLogger("aims.monitoring")

MAX_KEYS: Final = 16
MAX_JWKS: Final = 32 * 1024


class Peers:
    """Transmitters and the receiver; ``follow`` keeps them as the feed says."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._keys: Mapping[str, KeySet] | None = None
        self.receiver: Receiver | None = None
        """Who is told, None while nobody is."""

    def load(self) -> None:
        """Read everything. Raises: StorageError."""
        with self._database.reading() as connection:
            self._read(connection)

    def follow(self) -> Callable[[], None]:
        """Read again whenever an administrator changed something; returns what ends it."""
        return self._database.feed.subscribe(self._learn, self.load)

    def keys(self, issuer: str) -> KeySet:
        """Return the keys of a transmitter.

        Raises: MonitoringError ``set_issuer``, or ``starting`` before anything was read.
        """
        if self._keys is None:
            raise MonitoringError("starting")
        keys = self._keys.get(issuer)
        if keys is None:
            raise MonitoringError("set_issuer", ascii(issuer)[:200])
        return keys

    @property
    def transmitters(self) -> Mapping[str, KeySet]:
        """Keys by issuer."""
        return self._keys or {}

    def _read(self, connection: sa.Connection) -> None:
        keys = {}
        for issuer, jwks in store.read_transmitters(connection).items():
            try:
                keys[issuer] = key_set(jwks)
            except AimsError as error:
                # Keys that an older version took: this transmitter is not heard, the others are.
                _log.error("the keys of a transmitter cannot be used: %s", error, extra={"issuer": issuer})
        self._keys = keys
        self.receiver = store.read_receiver(connection)

    def _learn(self, event: Event) -> None:
        if event.kind == store.CHANGED:
            self.load()


def key_set(jwks: str) -> KeySet:
    """Return the keys of a JWK Set, every one of them fit to verify a SET.

    Raises: MonitoringError ``jwks_malformed`` for an empty set, more than 16 keys, and an entry that is private, weak,
        of another use, without ``kid`` or for algorithms that no SET has; JoseError for what is no JWK Set.
    """
    parsed = parse_jwks(jwks, max_octets=MAX_JWKS, max_entries=MAX_KEYS)
    keys = parsed.keys("sig", None)
    if not len(keys) or len(keys) != len(parsed.entries):
        raise MonitoringError("jwks_malformed", f"{len(keys)} of {len(parsed.entries)} entries can be used")
    if any(not key.algorithms & PROFILE.algorithms for key in keys):
        raise MonitoringError("jwks_malformed", "algorithm")
    return keys
