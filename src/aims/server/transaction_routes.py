"""The Txn-Token service's endpoints, built from what a worker holds in memory.

Its issuer is ``.../txn``, with a key set of its own. Who asks is only known on the mTLS listener; on the public one the
endpoint says so.
"""

from __future__ import annotations

from aims.authorization.access_token import AccessTokenVerifier
from aims.authorization.keys import TokenKeys
from aims.authorization.principals import Principals
from aims.authorization.routes import document
from aims.authorization.transactions.keys import TransactionKeys
from aims.authorization.transactions.routes import ISSUER, JWKS, TOKEN, TransactionEndpoint
from aims.authorization.transactions.service import TransactionService
from aims.provisioning.instances import Instances
from aims.server.core import Core
from aims.server.http import App
from aims.server.node_stream import peer_svid

Routes = dict[tuple[str, str], App]


class TransactionRoutes:
    """``public`` and ``mtls`` are routes for the two listeners. Core must be loaded and its keeper open.

    ``access_keys`` are those of the authorization server, by which subject tokens are read.
    """

    def __init__(self, core: Core, access_keys: TokenKeys) -> None:
        self._access_keys = access_keys
        self.keys = TransactionKeys(core.public_url + ISSUER, lambda: core.authority, core.key_store)
        self.service = TransactionService(
            core,
            self.keys,
            access_tokens=self._access_tokens,
            standing=Instances(core.database).find,
            principals=Principals(core.database),
        )
        self.public: Routes = {
            ("POST", TOKEN): TransactionEndpoint(
                self.service, core, core.database, url=core.public_url + TOKEN, listener="public", peer=None
            ),
            ("GET", JWKS): document(self._jwks),
        }
        self.mtls: Routes = {
            ("POST", TOKEN): TransactionEndpoint(
                self.service, core, core.database, url=core.mtls_url + TOKEN, listener="mtls", peer=peer_svid
            ),
        }

    async def _jwks(self) -> bytes:
        return (await self.keys.current()).jwks

    async def _access_tokens(self) -> AccessTokenVerifier:
        return (await self._access_keys.current()).verifier
