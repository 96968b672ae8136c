"""The endpoints as raw ASGI callables: a body in, one commit, an answer out.

Which listener serves them is the server's to say; each endpoint knows its own URL and the peer that the listener
verified. Every answer forbids caching. An error has the OAuth code, a sentence without secrets, and our own stable code
in ``aims_error``.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

import msgspec

from aims.authentication.errors import AuthenticationError
from aims.authorization import records
from aims.authorization.errors import STATUS, AuthorizationError
from aims.authorization.flood import Gate, note
from aims.authorization.form import MAX_OCTETS
from aims.authorization.model import Client, Memory, Submission
from aims.authorization.revocation import Revocation
from aims.authorization.service import TokenService
from aims.credentials.x509_svid import X509Svid
from aims.errors import AimsError
from aims.provisioning.errors import ProvisioningError
from aims.storage.database import Database
from aims.storage.write import Claim, Write

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Peer: TypeAlias = Callable[[Scope], X509Svid | None]

TOKEN: Final = "/oauth/token"  # noqa: S105  a path
REVOCATION: Final = "/oauth/revoke"
JWKS: Final = "/oauth/jwks"

# What these layers raise says nothing about the request: nothing can be decided at present.
_UNAVAILABLE: Final = frozenset({"storage", "keys", "audit", "server", "provisioning", "policy", "jose"})
_NO_STORE: Final = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))

_encode = msgspec.json.Encoder().encode
_log = logging.getLogger("aims.authorization")


class Endpoint(ABC):
    """What the token endpoint and its kin share: reading a submission, answering, and counting floods of strangers.

    While the memory is not ``current`` every answer is 503 (``provisioning.behind``): stops may be missing in it.
    ``url`` is this endpoint's own on this listener; ``peer`` finds the verified certificate of a connection, or is None
    on a listener that asks for none.
    """

    def __init__(self, memory: Memory, database: Database, *, url: str, listener: str, peer: Peer | None) -> None:
        self.memory = memory
        self.database = database
        self._url = url
        self._listener = listener
        self._peer = peer
        self._gate = Gate(memory.clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            try:
                body = await _body(receive)
            except AuthorizationError as error:
                await note(scope, error)
                raise
            if not self.memory.current:
                raise ProvisioningError("behind")
            status, octets = 200, await self.respond(self._submission(scope, body))
        except AimsError as error:
            status, octets = failure(error)
            if status >= 500:
                _log.error("no decision", extra={"code": error.code, "detail": error.detail})
        retry = ((b"retry-after", b"1"),) if status == 503 else ()
        length = (b"content-length", str(len(octets)).encode("ascii"))
        await send({"type": "http.response.start", "status": status, "headers": [*_NO_STORE, length, *retry]})
        await send({"type": "http.response.body", "body": octets})

    @abstractmethod
    async def respond(self, sent: Submission) -> bytes:
        """Return the body of a 200. Raises: AimsError."""

    def unknown(self, error: AimsError) -> bool:
        """Whether the refusal of a stranger gets a record of its own."""
        return self._gate.passes(error.code)

    async def settle_floods(self) -> None:
        """Record what was counted in the seconds before. Raises: StorageError."""
        for code, count, since in self._gate.due():
            octets = records.flood(
                count,
                since,
                listener=self._listener,
                code=code,
                request_id=self.memory.ids.new(),
                now=self.memory.clock.now(),
            )
            await self.database.commit(Write(record=lambda _, octets=octets: octets))  # type: ignore[misc]  # bound now

    def _submission(self, scope: Scope, body: bytes) -> Submission:
        content_types: list[bytes] = []
        proofs: list[str] = []
        authorization = attestation = False
        for name, value in scope["headers"]:
            if name == b"content-type":
                content_types.append(value)
            elif name == b"dpop":
                proofs.append(value.decode("latin-1"))
            elif name == b"authorization":
                authorization = True
            elif name in {b"oauth-client-attestation", b"oauth-client-attestation-pop"}:
                attestation = True
        return Submission(
            body=body,
            content_type=content_types[0].decode("latin-1") if len(content_types) == 1 else None,
            query=bool(scope.get("query_string")),
            dpop=tuple(proofs),
            authorization=authorization,
            attestation=attestation,
            peer=None if self._peer is None else self._peer(scope),
            target_uri=self._url,
            listener=self._listener,
        )


class TokenEndpoint(Endpoint):
    """``POST /oauth/token``."""

    def __init__(
        self,
        service: TokenService,
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
        plan = await self._service.token(sent, self.unknown)
        outcome = await self.database.commit(plan.write)
        return _encode(plan.answer(outcome).members)


class RevocationEndpoint(Endpoint):
    """``POST /oauth/revoke`` (RFC 7009): 200 for what was ended, and for what is no token of ours."""

    def __init__(
        self,
        service: TokenService,
        revocation: Revocation,
        memory: Memory,
        database: Database,
        *,
        url: str,
        listener: str,
        peer: Peer | None,
    ) -> None:
        super().__init__(memory, database, url=url, listener=listener, peer=peer)
        self._service = service
        self._revocation = revocation

    async def respond(self, sent: Submission) -> bytes:
        await self.settle_floods()
        client: Client | None = None
        claims: tuple[Claim, ...] = ()
        try:
            known = await self._service.authenticate(sent)
            client, claims = known.client, known.claims
            await self._revocation.token(known.request, client, claims)
        except (AuthorizationError, AuthenticationError) as error:
            if client is not None or self.unknown(error):
                await self.database.commit(self._refused(error, client, claims))
            raise
        return b"{}"

    def _refused(self, error: AimsError, client: Client | None, claims: tuple[Claim, ...]) -> Write:
        octets = records.refused(
            error,
            action="token.revoke",
            client=client,
            claimed={},
            resource=None,
            scope_asked=None,
            request_id=self.memory.ids.new(),
            now=self.memory.clock.now(),
        )
        return Write(record=lambda _: octets, claims=claims)


def failure(error: AimsError) -> tuple[int, bytes]:
    """Return status and body for an error, in the words of RFC 6749 5.2; never its private detail."""
    standard = error.standard
    if not standard:
        standard = "temporarily_unavailable" if error.layer in _UNAVAILABLE else "invalid_request"
    members = {"error": standard, "error_description": error.sentence, "aims_error": error.code}
    if error.hint:
        members["aims_hint"] = error.hint
    return STATUS.get(standard, 400), _encode(members)


def document(octets: Callable[[], Awaitable[bytes]]) -> App:
    """Make an endpoint of a public JSON document, which any origin may read for five minutes."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            status, body = 200, await octets()
        except AimsError as error:
            status, body = failure(error)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode("ascii")),
            (b"cache-control", b"public, max-age=300" if status == 200 else b"no-store"),
            (b"access-control-allow-origin", b"*"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


async def _body(receive: Receive) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        whole: bytes = message.get("body", b"")
        if len(whole) > MAX_OCTETS:
            raise AuthorizationError("request_too_large")
        return whole
    parts, size = [], 0
    while True:
        if message["type"] != "http.request":
            raise AuthorizationError("request_malformed", "the client went away")
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_OCTETS:
            raise AuthorizationError("request_too_large")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()
