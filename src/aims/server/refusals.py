"""Refusals that fall before a route has anything to decide: a foreign Host, another version, too much, a closed watch.

Nobody is authenticated by them but whom the TLS handshake verified; what else the caller said stands in ``claimed``.
A path is said only if it is one of the listener's own: any other could hold a secret that was sent to a wrong place.
Strangers cannot fill the log: ten refusals a second get a record of their own, the others are counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from aims.audit.record import body
from aims.authorization.flood import Gate
from aims.clock import Clock, IdSource
from aims.credentials.x509_svid import X509Svid
from aims.errors import AimsError
from aims.server.http import Scope
from aims.storage.database import Database
from aims.storage.write import Write

ACTION: Final = "request"
_SAID: Final = ((b"host", "host"), (b"aims-node-version", "version"))

_log = logging.getLogger("aims.server")


class Refusals:
    """The refusals of one listener of one worker. ``peer`` finds whom the handshake verified, None for nobody."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        ids: IdSource,
        *,
        listener: str,
        peer: Callable[[Scope], X509Svid | None],
    ) -> None:
        self._database = database
        self._clock = clock
        self._ids = ids
        self._listener = listener
        self._peer = peer
        self._gate = Gate(clock)

    async def note(self, scope: Scope, error: AimsError, path: str | None) -> None:
        """Record a refusal, or count it; ``path`` is the route that was meant, if the listener has it.

        The request is refused whatever becomes of the record: that it could not be written is logged.
        """
        await self.settle()
        if self._gate.passes(error.code):
            await self._commit(self._record(scope, error, path))

    async def settle(self) -> None:
        """Record what was counted in the seconds before."""
        for code, count, since in self._gate.due():
            request_id = self._ids.new()
            octets = body(
                type="request.refuse",
                outcome="refused",
                time=self._clock.now(),
                id=request_id,
                request_id=request_id,
                action=ACTION,
                decision={"effect": "deny", "reason": code},
                flood={"count": count, "since": int(since), "listener": self._listener},
            )
            await self._commit(octets)

    def _record(self, scope: Scope, error: AimsError, path: str | None) -> bytes:
        peer = self._peer(scope)
        request_id = self._ids.new()
        claimed = {
            name: value.decode("latin-1")
            for header, name in _SAID
            for value in [next((text for key, text in scope["headers"] if key == header), b"")]
            if value
        }
        return body(
            type="request.refuse",
            outcome="refused",
            time=self._clock.now(),
            id=request_id,
            request_id=request_id,
            agent=None if peer is None else {"id": str(peer.spiffe_id)},
            claimed=claimed,
            action=ACTION if path is None else f"{scope['method']} {path}",
            decision={"effect": "deny", "reason": error.code},
            details={"listener": self._listener},
        )

    async def _commit(self, octets: bytes) -> None:
        try:
            await self._database.commit(Write(record=lambda _: octets))
        except AimsError as error:
            _log.error("a refusal has no record", extra={"code": error.code})  # no trace needed
