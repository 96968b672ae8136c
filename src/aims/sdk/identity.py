"""`Identity`: who this process is, and what it can do with that.

    async with aims.Identity() as me, me.client() as http:
        answer = await http.post("https://localhost:8450/mcp", json={"question": 42})

The node gives the identity to the process that it launched (`aims run`); nothing is configured and no secret is kept.
Credentials rotate behind the same object. What was withdrawn is refused by the next call that needs it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeAlias
from weakref import WeakSet

import msgspec

from aims.authentication.errors import AuthenticationError
from aims.authentication.liveness import Liveness, names_of
from aims.authentication.peer import PeerRule, ResourceMap
from aims.authentication.target import covers
from aims.clock import Clock, IdSource, SystemClock, SystemIds
from aims.credentials.bundle import BundleSet
from aims.credentials.errors import CredentialError
from aims.credentials.mtls import expected_roots, peer_check, peer_svid
from aims.credentials.x509_svid import X509Svid
from aims.errors import AimsError
from aims.identifiers import IdentifierError, SpiffeId
from aims.sdk.errors import SdkError
from aims.sdk.issuer_keys import IssuerKeys
from aims.sdk.live import Live
from aims.sdk.material import TlsMaterial
from aims.sdk.node_state import Resource, Settings
from aims.sdk.proofs import Proof, RequestFacts, bound_token, wimse
from aims.sdk.workload_client import WorkloadClient
from aims.tls import Check, RotatingContext, public_server_context

if TYPE_CHECKING:
    import httpx2

    from aims.sdk.authorization_code import PersonAsked
    from aims.sdk.tokens import AuthorizationServer, Token

DEFAULT_SECONDS: Final = 10.0
MAX_NAMED: Final = 5
"""So many resources an error names."""

Peer: TypeAlias = SpiffeId | str | Collection[SpiffeId]
"""One SPIFFE ID, or several of which any is expected."""


class Identity:
    """The identity of this process. Use it as ``async with``; it belongs to that event loop.

    ``address`` is ``unix:///path`` of the Workload API, by default from ``SPIFFE_ENDPOINT_SOCKET``. Entering waits at
    most ``seconds`` for the node. ``max_stale`` (seconds) lowers how long this process believes that nobody was stopped
    without hearing so; it can never be raised.

    Raises: SdkError about the address; entering raises ``no_node``, ``not_entitled`` and what else the node answers.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        seconds: float = DEFAULT_SECONDS,
        max_stale: float | None = None,
        clock: Clock | None = None,
        ids: IdSource | None = None,
    ) -> None:
        self._address = address
        self._seconds = seconds
        self.clock = clock or SystemClock()
        self.ids = ids or SystemIds(self.clock)
        self._live = Live(address, self.clock, max_stale=max_stale)
        self._clients: dict[frozenset[SpiffeId], RotatingContext] = {}
        self._servers: WeakSet[ssl.SSLContext] = WeakSet()
        self._authorization: AuthorizationServer | None = None
        self._retired: list[AuthorizationServer] = []
        self._issuer_keys: IssuerKeys | None = None
        self._transaction_keys: IssuerKeys | None = None
        self._nonces: dict[str, str] = {}
        self._shown: TlsMaterial | None = None
        self._map: tuple[Settings, ResourceMap] | None = None
        self._live.on_change(self._rotate)

    async def __aenter__(self) -> Self:
        try:
            await self._live.start(self._seconds)
        except BaseException:
            await self._live.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for server in (*self._retired, *([] if self._authorization is None else [self._authorization])):
            await server.close()
        await self._live.stop()

    def __enter__(self) -> NoReturn:
        raise SdkError("not_started", "this identity is entered with `async with`")

    def __exit__(self, *_: object) -> None:
        """Never reached; without it ``with`` would complain before `__enter__` says what to do."""

    def __repr__(self) -> str:
        tls = self._live.tls
        return f"Identity({'' if tls is None else tls.spiffe_id})"

    @property
    def live(self) -> Live:
        """What the middleware of services works with."""
        return self._live

    @property
    def spiffe_id(self) -> SpiffeId:
        """Who this process is. Raises: SdkError ``not_started``, ``stopped``, ``expired``."""
        return self._live.require_tls().spiffe_id

    @property
    def settings(self) -> Settings:
        """What the node says about the server and the resources. Raises: SdkError ``no_node``."""
        return self._live.require_settings()

    def resource(self, url: str) -> Resource | None:
        """Return the resource that ``url`` belongs to by the policy's table: the one with the longest URL."""
        settings = self._live.settings
        found = [] if settings is None else [row for row in settings.resources if covers(row.url, url)]
        return max(found, key=lambda row: len(row.url), default=None)

    # Calling

    def auth(
        self,
        *,
        audience: str | None = None,
        profile: str | None = None,
        token: Token | None = None,
        txn_token: str | None = None,
    ) -> httpx2.Auth:
        """Return authentication for httpx2 that proves each request: by WIT and WPT, or by ``token`` and DPoP.

        ``txn_token`` (from `transaction`) goes beside WIT and WPT, and is covered by them; it goes to resources of the
        own trust domain alone (SdkError ``transaction_edge``, when a request is made).

        ``audience`` is a name that the called service is known to have; by default the request's own URL. ``profile``
        is ``wimse`` or ``wimse-method-bound``; by default what the resource map says for the URL, else ``wimse``.

        Raises: SdkError ``profile_unknown``, ``tokens_both``; a request then ``stopped``, ``expired``, ``no_wit``.
        """
        from aims.sdk.httpx2 import ProvedAuth

        return ProvedAuth(self.prover(audience, profile, token, txn_token))

    def ssl_context(self, peer: Peer | None = None, *, url: str | None = None) -> ssl.SSLContext:
        """Return a TLS context that lets no octet of a request leave for anybody but the expected peer.

        The peer is ``peer``, or else what the resource map says for ``url``; without both, the one peer that the whole
        map names. The context shows this process's X509-SVID where it is asked for, and rotates by itself.

        Raises: SdkError ``peer_unknown``, ``stopped``, ``expired``, ``not_started``.
        """
        expected = self._expected(peer, url)
        context = self._clients.get(expected)
        if context is None:
            tls = self._live.require_tls()
            try:
                context = RotatingContext.client(
                    tls.identity, expected_roots(tls.bundles, expected), self._check(expected)
                )
            except CredentialError as error:
                raise SdkError("peer_unknown", str(error)) from None
            self._clients[expected] = context
        return context

    def client(
        self,
        *,
        audience: str | None = None,
        profile: str | None = None,
        token: Token | None = None,
        txn_token: str | None = None,
        **options: Any,
    ) -> httpx2.AsyncClient:
        """Return an `httpx2.AsyncClient` that proves its requests and checks its peers by the resource map.

        ``options`` are those of `httpx2.AsyncClient`. Close it, best with ``async with``.

        Raises: as `auth`; a request then raises SdkError ``peer_unknown``, ``peer_unreachable``, ``peer_refused`` too.
        """
        from aims.sdk.httpx2 import client

        return client(
            self.prover(audience, profile, token, txn_token), lambda url: self.ssl_context(url=url), **options
        )

    async def jwt_svid(self, audience: str, seconds: float = DEFAULT_SECONDS) -> str:
        """Have the node make a JWT-SVID for one audience.

        Raises: SdkError ``denied``, ``unavailable``, ``deadline``, ``refused``.
        """
        async with WorkloadClient(self._address) as node:
            made = await node.fetch_jwt([audience], self.spiffe_id, seconds)
        return made[0].token

    # Rights

    async def token(self, *, resource: str, scope: str, details: str | None = None) -> Token:
        """Ask for an access token of this agent's own right at one resource, bound to its proof key.

        ``resource`` is the identifier or URL of a resource for tokens, ``scope`` what is needed there, separated by
        spaces, ``details`` RFC 9396 ``authorization_details`` as JSON text.

        Raises: `CallRefusedError` with the server's code; SdkError ``issuer_unreachable``, ``issuer_invalid``, and as
            `auth`.
        """
        form = {"grant_type": "client_credentials", "resource": resource, "scope": scope}
        return await self._asked(resource, form, details)

    async def exchange(self, subject: Token | str, *, resource: str, scope: str, details: str | None = None) -> Token:
        """Take up a right that was handed to this agent, or narrow one of its own (RFC 8693).

        Raises: as `token`.
        """
        return await self._asked(resource, {**_exchange(subject), "resource": resource, "scope": scope}, details)

    async def delegate(self, subject: Token | str, *, to: SpiffeId | str, scope: str) -> Token:
        """Hand a part of a right to another agent, who takes it up with `exchange`.

        The token is bound to this agent's key, so it is handed over in a request to ``to``, never merely sent along.

        Raises: as `token`.
        """
        return await self._asked(str(to), {**_exchange(subject), "audience": str(to), "scope": scope}, None)

    async def ask_person(self, *, resource: str, scope: str, redirect_uri: str) -> PersonAsked:
        """Prepare to ask a person for a right: send them to ``url`` of what this returns, then `redeem` the answer.

        ``redirect_uri`` is one that an administrator has registered for this agent.

        Raises: as `token`.
        """
        from aims.sdk.authorization_code import VERIFIER_OCTETS, ask_person

        endpoint = await self._server().authorization_endpoint()
        return ask_person(
            endpoint,
            issuer=self._live.require_settings().issuer,
            client_id=str(self.spiffe_id),
            resource=resource,
            scope=scope,
            redirect_uri=redirect_uri,
            state=self.ids.token(),
            verifier=self.ids.token(VERIFIER_OCTETS),
        )

    async def redeem(self, asked: PersonAsked, answer: str) -> Token:
        """Take up what a person approved. ``answer`` is the URL to which their browser was sent back.

        Raises: SdkError ``answer_invalid``; `CallRefusedError` where the person or the server refused; as `token`.
        """
        return await self._asked(asked.resource, dict(asked.redemption(asked.code_of(answer))), None)

    async def transaction(self, subject: Token | str, *, purpose: str, details: Mapping[str, Any]) -> str:
        """Have one approved action put into a Txn-Token, for the services inside of this trust domain.

        ``subject`` is this agent's own token, or one that it received as a service. ``details`` are the facts that must
        not change on the way. Send the token with `auth` or `client` (``txn_token``), never as a bearer token.

        Raises: as `token`.
        """
        form = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "requested_token_type": "urn:ietf:params:oauth:token-type:txn_token",
            "audience": self._live.require_settings().trust_domain.name,
            "scope": purpose,
            "subject_token": subject if isinstance(subject, str) else subject.text,
            "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "request_details": msgspec.json.encode(details).decode("utf-8"),
        }
        return await self._server().transaction(form, str(self.spiffe_id), self._live.require_proof())

    async def _asked(self, audience: str, form: dict[str, str], details: str | None) -> Token:
        if details is not None:
            form["authorization_details"] = details
        return await self._server().token(str(self.spiffe_id), audience, form, self._live.require_proof())

    def _server(self) -> AuthorizationServer:
        from aims.sdk.tokens import AuthorizationServer

        settings = self._live.require_settings()
        held = self._authorization
        same = held is not None and (held.settings.issuer, held.settings.mtls_url, held.settings.tls_ca) == (
            settings.issuer,
            settings.mtls_url,
            settings.tls_ca,
        )
        if held is None or not same:
            self._retired += [] if held is None else [held]
            held = AuthorizationServer(settings, self.ssl_context(settings.server), self.clock, self.ids)
            self._authorization = held
        return held

    def issuer_keys(self) -> IssuerKeys:
        """Return the keys that access tokens of the trust domain's issuer verify with; for services."""
        if self._issuer_keys is None:
            self._issuer_keys = IssuerKeys(lambda: self._server().keys(), self.clock)
        return self._issuer_keys

    def transaction_keys(self) -> IssuerKeys:
        """Return the keys that Txn-Tokens of the trust domain verify with; for inner services."""
        if self._transaction_keys is None:
            self._transaction_keys = IssuerKeys(lambda: self._server().transaction_keys(), self.clock)
        return self._transaction_keys

    def prover(
        self, audience: str | None, profile: str | None, token: Token | None, txn_token: str | None = None
    ) -> Callable[[RequestFacts], Proof]:
        """Return what `auth` proves with, for adapters to other HTTP libraries. Raises: as `auth`."""
        if profile not in {None, "wimse", "wimse-method-bound"}:
            raise SdkError("profile_unknown", str(profile))
        if token is not None and txn_token is not None:
            raise SdkError("tokens_both")

        def prove(request: RequestFacts) -> Proof:
            if token is not None:
                return bound_token(request, token.text, token.key, self.clock, self.ids, nonces=self._nonces)
            chosen, resource = profile, self.resource(request.url)
            if txn_token is not None and (
                resource is None or resource.peer.trust_domain != self.spiffe_id.trust_domain
            ):
                raise SdkError("transaction_edge", request.url)
            if chosen is None:
                chosen = "wimse" if resource is None else resource.profile
            return wimse(
                request,
                self._live.require_proof(),
                self.clock,
                self.ids,
                audience=audience,
                method_bound=chosen == "wimse-method-bound",
                txn_token=txn_token,
            )

        return prove

    def _expected(self, peer: Peer | None, url: str | None) -> frozenset[SpiffeId]:
        if peer is not None:
            return _identifiers(peer)
        settings = self._live.require_settings()
        if url is None:
            named = frozenset(row.peer for row in settings.resources)
            if len(named) != 1:
                raise SdkError("peer_unknown", f"the map names {len(named)} peers")
            return named
        if self._map is None or self._map[0] is not settings:
            self._map = settings, ResourceMap({row.url: PeerRule.of(row.peer) for row in settings.resources})
        try:
            return self._map[1].rule(url).expected
        except AuthenticationError:
            known = ", ".join(row.url for row in settings.resources[:MAX_NAMED]) or "none"
            more = " and others" if len(settings.resources) > MAX_NAMED else ""
            raise SdkError("peer_unknown", f"{url}; known: {known}{more}") from None

    # Serving

    def server_context(self) -> ssl.SSLContext:
        """Return the TLS context of a service: it shows this process's X509-SVID and rotates by itself.

        Clients are not asked for certificates: they prove themselves in each request.

        Raises: SdkError ``stopped``, ``expired``, ``not_started``.
        """
        tls = self._live.require_tls()
        context = public_server_context(tls.identity)
        self._servers.add(context)
        return context

    def _check(self, expected: frozenset[SpiffeId]) -> Check:
        own = self._live.require_tls().spiffe_id.trust_domain
        known = peer_check(self._bundles, self.clock, expected=expected, own=own)

        def check(chain: tuple[bytes, ...]) -> object:
            svid = known(chain)
            assert isinstance(svid, X509Svid)  # noqa: S101 -- what peer_check gives
            if self._is_stopped(svid):
                raise SdkError("peer_stopped", str(svid.spiffe_id))
            return svid

        return check

    def _is_stopped(self, svid: X509Svid) -> bool:
        enforcement = self._live.enforcement
        if enforcement is None or svid.fence is None:
            return False
        names = names_of(str(svid.spiffe_id), instance=svid.fence.instance)
        return enforcement.stops.check(names, svid.fence.epoch) is Liveness.STOPPED

    def _bundles(self) -> BundleSet:
        return self._live.require_tls().bundles

    def _rotate(self) -> None:
        tls, before = self._live.tls, self._shown
        self._shown = tls
        if tls is None:
            # Without an identity nobody is judged any more, so nobody is talked to.
            self._review(lambda _: False)
        elif tls is before:
            # What else is news can only be a stop; certificates need not be verified again for that.
            self._review(self._is_live)
        else:
            self._show(tls)

    def _show(self, tls: TlsMaterial) -> None:
        for expected, context in self._clients.items():
            try:
                context.update(tls.identity, expected_roots(tls.bundles, expected), self._check(expected))
            except AimsError:
                # The peer's trust domain is trusted no more: nobody is.
                context.update(tls.identity, (), self._check(expected))
        for server in self._servers:
            tls.identity.load_into(server)

    def _review(self, accepts: Callable[[ssl.SSLObject | ssl.SSLSocket], bool]) -> None:
        for context in self._clients.values():
            context.review(accepts)

    def _is_live(self, connection: ssl.SSLObject | ssl.SSLSocket) -> bool:
        return not self._is_stopped(peer_svid(connection))


def _exchange(subject: Token | str) -> dict[str, str]:
    return {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": subject if isinstance(subject, str) else subject.text,
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
    }


def _identifiers(peer: Peer) -> frozenset[SpiffeId]:
    try:
        if isinstance(peer, str):
            return frozenset({SpiffeId.parse_workload(peer)})
    except IdentifierError as error:
        raise SdkError("peer_unknown", error.code) from None
    found = frozenset({peer}) if isinstance(peer, SpiffeId) else frozenset(peer)
    if not found:
        raise SdkError("peer_unknown", "nobody is expected")
    return found
