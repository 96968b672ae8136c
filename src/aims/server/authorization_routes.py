"""The authorization server's endpoints, built from what a worker holds in memory."""

from __future__ import annotations

from typing import Final

from aims.authorization.keys import TokenKeys
from aims.authorization.metadata import WELL_KNOWN, server_metadata
from aims.authorization.revocation import Revocation
from aims.authorization.routes import JWKS, REVOCATION, TOKEN, RevocationEndpoint, TokenEndpoint, document
from aims.authorization.service import TokenService
from aims.keys.store import KeyStore
from aims.provisioning.instances import Instances
from aims.server.core import Core
from aims.server.http import App
from aims.server.node_stream import peer_svid
from aims.server.people_routes import AUTHORIZATION

Routes = dict[tuple[str, str], App]

PUBLIC: Final = "public"
MTLS: Final = "mtls"


class AuthorizationRoutes:
    """``public`` and ``mtls`` are routes for the two listeners.

    ``store`` is the key store of the authority. Core must be loaded and its keeper open.
    """

    def __init__(self, core: Core, store: KeyStore) -> None:
        issuer = core.public_url
        self.keys = TokenKeys(issuer, lambda: core.authority, store)
        self.service = TokenService(issuer, core, self.keys, Instances(core.database), core.database)
        self.revocation = Revocation(core, self.keys, core.database)
        self._core = core
        self.public: Routes = self._routes(PUBLIC, issuer)
        self.mtls: Routes = self._routes(MTLS, core.mtls_url)
        self.public["GET", WELL_KNOWN] = document(self._metadata)
        self.public["GET", JWKS] = document(self._jwks)

    def _routes(self, listener: str, url: str) -> Routes:
        core, peer = self._core, peer_svid if listener == MTLS else None
        return {
            ("POST", TOKEN): TokenEndpoint(
                self.service, core, core.database, url=url + TOKEN, listener=listener, peer=peer
            ),
            ("POST", REVOCATION): RevocationEndpoint(
                self.service, self.revocation, core, core.database, url=url + REVOCATION, listener=listener, peer=peer
            ),
        }

    async def _metadata(self) -> bytes:
        core = self._core
        endpoint = core.public_url + AUTHORIZATION
        return server_metadata(core.public_url, core.mtls_url, core.tables, authorization_endpoint=endpoint)

    async def _jwks(self) -> bytes:
        return (await self.keys.current()).jwks
