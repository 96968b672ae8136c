"""A Txn-Token service beside the authorization server, and services that ask it."""

from __future__ import annotations

from typing import Any

from tests.flows.people_world import PeopleWorld
from tests.flows.token_world import ISSUER, MTLS, Agent, Answer, open_token_world

from aims.authorization.access_token import TOKEN_TYPE as ACCESS
from aims.authorization.principals import Principals
from aims.authorization.routes import Endpoint
from aims.authorization.transactions.keys import TransactionKeys
from aims.authorization.transactions.request import GRANT_TYPE
from aims.authorization.transactions.routes import ISSUER as PLACE
from aims.authorization.transactions.routes import TOKEN as PATH
from aims.authorization.transactions.routes import TransactionEndpoint
from aims.authorization.transactions.service import TransactionService
from aims.authorization.transactions.transaction_token import TOKEN_TYPE, TransactionToken
from aims.clock import IdSource, SystemClock
from aims.keys import KeyStore
from aims.provisioning.registry.model import Kind
from aims.storage.database import Database

URL = MTLS + PATH
DETAILS = '{"note":"n-1","copies":3}'


class TransactionWorld(PeopleWorld):
    """A people world with the Txn-Token service, whose edge is the service ``notes``."""

    edge: Agent
    inner: Agent
    key_store: KeyStore
    mtls_url = MTLS

    async def begin(self, *, refuse_loops: bool = False) -> None:
        """Open the service, and run the edge and a service behind it."""
        store = self.key_store = self.world.keeper._service._keys
        self.txn_keys = TransactionKeys(ISSUER + PLACE, lambda: self.authority, store)

        async def verifier() -> Any:
            return (await self.keys.current()).verifier

        self.txn_service = TransactionService(
            self,
            self.txn_keys,
            access_tokens=verifier,
            standing=self.instances.find,
            principals=Principals(self.database),
            refuse_loops=refuse_loops,
        )
        self.txn_mtls = self._endpoint(MTLS, "mtls")
        self.txn_public = self._endpoint(ISSUER, "public")
        self.edge = await self.run_service("notes")
        self.inner = await self.run_service("inner")

    def _endpoint(self, url: str, listener: str) -> Endpoint:
        peer = (lambda scope: scope["peer"]) if listener == "mtls" else None
        return TransactionEndpoint(self.txn_service, self, self.database, url=url + PATH, listener=listener, peer=peer)

    async def run_service(self, name: str) -> Agent:
        """A running service."""
        return await self.agent(name, kind=Kind.SERVICE)

    async def ask(self, who: Agent, subject: str, *, proof: bool = False, **changes: Any) -> Answer:
        """Ask for a Txn-Token; None leaves a parameter out, ``kind`` is the subject token's type."""
        wanted: dict[str, Any] = {
            "grant_type": GRANT_TYPE,
            "requested_token_type": TOKEN_TYPE,
            "audience": "local.test",
            "scope": "notes:share",
            "subject_token": subject,
            "subject_token_type": changes.pop("kind", ACCESS),
            "request_details": DETAILS,
            **changes,
        }
        headers = [(b"dpop", self.proof(who.key, URL).encode())] if proof else []
        parameters = {name: value for name, value in wanted.items() if value is not None}
        return await self.post(self.txn_mtls, parameters, headers=headers, peer=who.svid)

    async def replace(self, who: Agent, subject: str, **changes: Any) -> Answer:
        """Ask for a replacement; the details stay unless they are given."""
        return await self.ask(who, subject, **{"kind": TOKEN_TYPE, "request_details": None, **changes})

    async def txn(self, text: str) -> TransactionToken:
        """What a Txn-Token says, verified."""
        return (await self.txn_keys.current()).verifier.read(text, now=self.clock.now())


async def open_transaction_world(
    database: Database, clock: SystemClock, ids: IdSource, *, refuse_loops: bool = False
) -> TransactionWorld:
    world = TransactionWorld((await open_token_world(database, clock, ids)).world)
    world.follow()
    await world.begin(refuse_loops=refuse_loops)
    return world


__all__ = ["ACCESS", "DETAILS", "TOKEN_TYPE", "URL", "TransactionWorld", "open_transaction_world"]
