"""The endpoint of the Txn-Token service, and its own key set."""

from __future__ import annotations

from typing import Final

import msgspec

from aims.authorization.model import Memory, Submission
from aims.authorization.routes import Endpoint, Peer
from aims.authorization.transactions.service import TransactionService
from aims.storage.database import Database

ISSUER: Final = "/txn"
TOKEN: Final = "/txn/token"  # noqa: S105  a path
JWKS: Final = "/txn/jwks"

_encode = msgspec.json.Encoder().encode


class TransactionEndpoint(Endpoint):
    """``POST /txn/token``."""

    def __init__(
        self,
        service: TransactionService,
        memory: Memory,
        database: Database,
        *,
        url: str,
        listener: str,
        peer: Peer | None,
    ) -> None:
        super().__init__(memory, database, url=url, listener=listener, peer=peer)
        self._service = service

    async def respond(self, sent: Submission) -> bytes:
        await self.settle_floods()
        plan = await self._service.transact(sent, self.unknown)
        outcome = await self.database.commit(plan.write)
        return _encode(plan.answer(outcome).response())
