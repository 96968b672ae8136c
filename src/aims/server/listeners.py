"""The TCP listeners: what each serves, and the certificates that they show, renewed before they end.

*public* asks for no client certificate and shows the certificate of ``localhost``; *mTLS* requires an X509-SVID and
shows the server's own. Both are TLS 1.3 without tickets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from typing import Final, Literal

from aims.credentials.bundle import BundleSet
from aims.credentials.mtls import renew, spiffe_server_context
from aims.errors import AimsError
from aims.provisioning.authority.local import Shown, localhost, own_svid
from aims.provisioning.bundles import domain_bundle
from aims.provisioning.issuance import IssuanceService
from aims.provisioning.join import JoinService
from aims.provisioning.routes import MAX_BODY, NodeRoutes, Route
from aims.server.authorization_routes import AuthorizationRoutes
from aims.server.core import Core, News
from aims.server.documents import document_routes
from aims.server.http import Answer, App, KeepRefusal, Listener, Scope, answering
from aims.server.monitoring_routes import monitoring_routes
from aims.server.node_stream import NodeStreams, peer_svid, refused_version
from aims.server.people_routes import people_routes
from aims.server.refusals import Refusals
from aims.server.transaction_routes import TransactionRoutes
from aims.tls import RotatingContext, public_server_context

KEEPING_SECONDS: Final = 30.0

_log = logging.getLogger("aims.server")


class Listeners:
    """Both TCP listeners of one worker: ``open`` them, keep ``keep`` running beside the servers."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._public_shown: Shown
        self._mtls_shown: Shown
        self.public_context: ssl.SSLContext
        self.mtls_context: RotatingContext
        self.public: Listener
        self.mtls: Listener
        self._kept: list[Refusals] = []
        self._trusting = True  # whether the mTLS listener judges by what is known

    async def open(self) -> None:
        """Issue the certificates and build the routes."""
        core = self._core
        self._public_shown = await self._localhost()
        self.public_context = public_server_context(self._public_shown.identity)
        self._mtls_shown = await self._own_svid()
        self.mtls_context = spiffe_server_context(self._mtls_shown.identity, self._bundles(), core.clock)
        joins = JoinService(core.registry, lambda: core.tables, lambda: core.authority, core.clock, core.ids)
        issuance = IssuanceService(
            registry=core.registry,
            policy=lambda: core.policy,
            authority=lambda: core.authority,
            issuer=f"{core.public_url}/spiffe",
            clock=core.clock,
            ids=core.ids,
        )
        nodes = NodeRoutes(
            database=core.database,
            registry=core.registry,
            authority=lambda: core.authority,
            joins=joins,
            issuance=issuance,
            mtls_url=core.mtls_url,
            public_ca=core.tls_ca_pem,
            clock=core.clock,
            ids=core.ids,
            current=lambda: core.current,
        )
        authorization = AuthorizationRoutes(core, core.key_store)
        transactions = TransactionRoutes(core, authorization.keys)
        public = {
            **self._routes(nodes, "public"),
            **document_routes(core),
            **authorization.public,
            **transactions.public,
            **people_routes(core),
            **monitoring_routes(core),
        }
        self.public = Listener(_hosts(core.settings.public_port), public, self._refusals("public"))
        _write_public_ca(core)
        mtls = {**self._routes(nodes, "mtls"), **authorization.mtls, **transactions.mtls}
        mtls["GET", "/node/v1/watch"] = NodeStreams(core)
        self.mtls = Listener(_hosts(core.settings.mtls_port), mtls, self._refusals("mtls"))

    async def keep(self) -> None:
        """Renew certificates when due and follow changes of the bundle, until cancelled."""
        changed = asyncio.Event()

        def hear(news: News) -> None:
            if news.bundle or news.everything:
                changed.set()

        with self._core.hearing(hear):
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), KEEPING_SECONDS)
                self._trusting = self._trusting and not changed.is_set()
                changed.clear()
                try:
                    # First, and again until it is done: who was withdrawn must not stay because a renewal failed.
                    if not self._trusting:
                        self._trust()
                    await self._turn()
                except AimsError:
                    # The old certificate serves until it ends; the next turn tries again.
                    _log.exception("a certificate could not be renewed")

    def _trust(self) -> None:
        """Judge the peers of the mTLS listener, also those that are connected, by the bundle of now."""
        renew(self.mtls_context, self._mtls_shown.identity, self._bundles(), self._core.clock)
        self._trusting = True

    def _refusals(self, listener: str) -> KeepRefusal:
        core = self._core
        kept = Refusals(core.database, core.clock, core.ids, listener=listener, peer=peer_svid)
        self._kept.append(kept)
        return kept.note

    async def _turn(self) -> None:
        core = self._core
        for refusals in self._kept:
            await refusals.settle()
        now = core.clock.now()
        await core.keeper.turn(now)
        if now >= self._public_shown.renew_at:
            self._public_shown = await self._localhost()
            self._public_shown.identity.load_into(self.public_context)
        if now >= self._mtls_shown.renew_at:
            self._mtls_shown = await self._own_svid()
            self._trusting = False
            self._trust()

    async def _localhost(self) -> Shown:
        plan = localhost(self._core.authority, clock=self._core.clock, ids=self._core.ids)
        return plan.answer(await self._core.database.commit(plan.write))

    async def _own_svid(self) -> Shown:
        plan = own_svid(self._core.authority, epoch=self._core.seq, clock=self._core.clock, ids=self._core.ids)
        return plan.answer(await self._core.database.commit(plan.write))

    def _bundles(self) -> BundleSet:
        return BundleSet([domain_bundle(self._core.authority)])

    def _routes(self, nodes: NodeRoutes, listener: Literal["public", "mtls"]) -> dict[tuple[str, str], App]:
        return {(route.method, route.path): _node_app(route) for route in nodes.routes() if route.listener == listener}


def _write_public_ca(core: Core) -> None:
    """Leave the certificate of the local authority where people find it; every worker writes the same octets."""
    path = core.settings.public_ca
    pem = core.tls_ca_pem()
    if path.exists() and path.read_bytes() == pem:
        return
    temporary = path.with_suffix(f".{core.ids.new()}")
    temporary.write_bytes(pem)
    temporary.replace(path)


def _node_app(route: Route) -> App:
    content_type = route.content_type.encode("ascii")

    async def handle(scope: Scope, body: bytes) -> Answer:
        refused = await refused_version(scope)
        status, octets = refused or await route.handle(body, peer_svid(scope))
        return Answer(status, octets, content_type if status == 200 else b"application/json")

    return answering(handle, MAX_BODY)


def _hosts(port: int) -> frozenset[str]:
    return frozenset({f"localhost:{port}"})
