"""The signal exchange on the public listener, and the parts of monitoring that one worker holds."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from typing import Final

import msgspec

from aims.errors import AimsError
from aims.fetch import Fetcher
from aims.monitoring import store
from aims.monitoring.configuration import Configuration
from aims.monitoring.delivery import Courier
from aims.monitoring.errors import MonitoringError
from aims.monitoring.handed_on import HandedOn
from aims.monitoring.keys import SetKeys
from aims.monitoring.peers import Peers
from aims.monitoring.receiver import SignalReceiver
from aims.monitoring.remediation import Remediation
from aims.monitoring.set import MAX_OCTETS
from aims.monitoring.transmitter import Transmitter, metadata
from aims.provisioning.errors import ProvisioningError
from aims.server.core import Core
from aims.server.http import Answer, App, Scope, answering, header, json_answer

EVENTS: Final = "/signals/events"
JWKS: Final = "/signals/jwks"
METADATA: Final = "/.well-known/ssf-configuration/signals"
TURN_SECONDS: Final = 1.0
TENDING_TURNS: Final = 3600

_STATUS: Final = {
    "set_media_type": 415,
    "set_rate": 429,
    "busy": 503,
    "changed": 503,
    "refused": 503,
    "starting": 503,
}
_RETRY: Final = ((b"retry-after", b"1"),)
_log = logging.getLogger("aims.server")


class Monitoring:
    """What monitoring needs in one worker: peers in memory, remediation with its second look, receiver, courier."""

    def __init__(self, core: Core) -> None:
        self._core = core
        issuer = f"{core.public_url}/signals"
        self.issuer = issuer
        self.peers = Peers(core.database)
        self.peers.load()
        self.peers.follow()
        self.keys = SetKeys(lambda: core.authority, core.key_store)
        transmitter = Transmitter(
            issuer=issuer,
            as_issuer=core.public_url,
            receiver=lambda: self.peers.receiver,
            clock=core.clock,
            ids=core.ids,
        )
        self.remediation = Remediation(clock=core.clock, ids=core.ids, outgoing=transmitter.outgoing)
        self.handed_on = HandedOn(core.database, core.clock, core.ids)
        self.receiver = SignalReceiver(
            database=core.database,
            peers=self.peers,
            registry=lambda: core.registry,
            policy=lambda: core.policy,
            remediation=self.remediation,
            audience=issuer,
            as_issuer=core.public_url,
            clock=core.clock,
            ids=core.ids,
        )
        self.courier = Courier(
            database=core.database,
            peers=self.peers,
            keys=self.keys,
            fetcher=Fetcher(),
            clock=core.clock,
            ids=core.ids,
            folder=core.settings.server_dir,
        )

    async def keep(self) -> None:
        """Finish stops that nobody finished; then deliver what waits and write what was counted, until cancelled.

        What fails is tried again.
        """
        turns, caught_up = 0, False
        try:
            while True:
                try:
                    caught_up = caught_up or await self._caught_up()
                    while await self.courier.turn():
                        continue
                    await self.receiver.tend()
                    if turns % TENDING_TURNS == 0:
                        await self._forget()
                except Exception:  # noqa: BLE001  whatever went wrong must not end the worker; what waits, waits
                    _log.exception("signals could not be tended")
                turns += 1
                await asyncio.sleep(TURN_SECONDS)
        finally:
            self.courier.close()

    async def _caught_up(self) -> bool:
        try:
            await self.handed_on.catch_up()
        except AimsError as error:
            _log.error("a stop could not be finished: %s", error)
            return False
        return True

    async def _forget(self) -> None:
        now = int(self._core.clock.now())
        if await self._core.database.read(lambda connection: store.count_old(connection, now)):
            await self._core.database.commit(Configuration(self._core.clock, self._core.ids).forget())


@lru_cache(maxsize=4)
def monitoring_of(core: Core) -> Monitoring:
    """The monitoring of a worker, one in a process; the first call reads the database. Raises: StorageError."""
    return Monitoring(core)


def monitoring_routes(core: Core) -> dict[tuple[str, str], App]:
    """What the public listener serves of monitoring: pushed events in, keys and metadata out."""
    monitoring = monitoring_of(core)
    document = msgspec.json.encode(metadata(monitoring.issuer))

    async def events(scope: Scope, body: bytes) -> Answer:
        if not core.current:
            return refusal(ProvisioningError("behind"))
        client = scope.get("client")
        media_type = header(scope, b"content-type") or ""
        try:
            await monitoring.receiver.receive(body, media_type, client[0] if client else "")
        except MonitoringError as error:
            return refusal(error)
        except AimsError as error:
            # 400 would say that the SET is at fault, and it would never come again.
            _log.error("an event could not be taken: %s", error)
            return refusal(MonitoringError("refused"))
        # RFC 8935 2.2: an empty body
        return Answer(202, b"")

    async def jwks(_scope: Scope, _body: bytes) -> Answer:
        held = await monitoring.keys.current()
        return Answer(200, held.jwks, b"application/jwk-set+json", ((b"cache-control", b"public, max-age=300"),))

    async def configuration(_scope: Scope, _body: bytes) -> Answer:
        return Answer(200, document, headers=((b"cache-control", b"public, max-age=300"),))

    return {
        ("POST", EVENTS): answering(events, MAX_OCTETS + 1),
        ("GET", JWKS): answering(jwks, 0),
        ("GET", METADATA): answering(configuration, 0),
    }


def refusal(error: AimsError) -> Answer:
    """Answer a refused SET as RFC 8935 2.3 says: 400 with ``err`` where the SET is at fault, else a status alone."""
    status = _STATUS.get(error.reason, 400 if error.standard else 503)
    headers = ((b"content-language", b"en"), *(_RETRY if status in {429, 503} else ()))
    answer = json_answer({"err": error.standard or "temporarily_unavailable", "description": error.sentence}, status)
    return Answer(answer.status, answer.body, headers=headers)
