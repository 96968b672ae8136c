"""`Identity` for code without an event loop: the same object, kept by a thread of its own.

with BlockingIdentity() as me, me.client() as http:
    answer = http.post("https://localhost:8450/mcp", json={"question": 42})
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ssl
import threading
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from aims.identifiers import SpiffeId
from aims.sdk.errors import SdkError
from aims.sdk.identity import Identity, Peer

if TYPE_CHECKING:
    import httpx2

    from aims.sdk.authorization_code import PersonAsked
    from aims.sdk.tokens import Token

T = TypeVar("T")

CALL_SECONDS: Final = 30.0


class BlockingIdentity:
    """The identity of this process, for any thread. ``options`` and errors are those of `Identity`.

    What waits for the node or the server does so for thirty seconds at most: SdkError ``deadline``.
    """

    def __init__(self, address: str | None = None, **options: Any) -> None:
        self._identity = Identity(address, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="aims-identity", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._wait(self._identity.__aenter__())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._wait(self._identity.__aexit__(kind, error, at))
        finally:
            self._end()

    def __repr__(self) -> str:
        return f"Blocking{self._identity!r}"

    @property
    def spiffe_id(self) -> SpiffeId:
        """As `Identity.spiffe_id`."""
        return self._identity.spiffe_id

    def auth(self, **options: Any) -> httpx2.Auth:
        """As `Identity.auth`."""
        return self._identity.auth(**options)

    def ssl_context(self, peer: Peer | None = None, *, url: str | None = None) -> ssl.SSLContext:
        """As `Identity.ssl_context`."""
        return self._wait(self._context(peer, url))

    def client(
        self,
        *,
        audience: str | None = None,
        profile: str | None = None,
        token: Token | None = None,
        txn_token: str | None = None,
        **options: Any,
    ) -> httpx2.Client:
        """As `Identity.client`, for `httpx2.Client`."""
        from aims.sdk.httpx2 import blocking_client

        prover = self._identity.prover(audience, profile, token, txn_token)
        return blocking_client(prover, lambda url: self.ssl_context(url=url), **options)

    def jwt_svid(self, audience: str) -> str:
        """As `Identity.jwt_svid`."""
        return self._wait(self._identity.jwt_svid(audience))

    def token(self, *, resource: str, scope: str, details: str | None = None) -> Token:
        """As `Identity.token`."""
        return self._wait(self._identity.token(resource=resource, scope=scope, details=details))

    def exchange(self, subject: Token | str, *, resource: str, scope: str, details: str | None = None) -> Token:
        """As `Identity.exchange`."""
        return self._wait(self._identity.exchange(subject, resource=resource, scope=scope, details=details))

    def delegate(self, subject: Token | str, *, to: SpiffeId | str, scope: str) -> Token:
        """As `Identity.delegate`."""
        return self._wait(self._identity.delegate(subject, to=to, scope=scope))

    def ask_person(self, *, resource: str, scope: str, redirect_uri: str) -> PersonAsked:
        """As `Identity.ask_person`."""
        return self._wait(self._identity.ask_person(resource=resource, scope=scope, redirect_uri=redirect_uri))

    def redeem(self, asked: PersonAsked, answer: str) -> Token:
        """As `Identity.redeem`."""
        return self._wait(self._identity.redeem(asked, answer))

    def transaction(self, subject: Token | str, *, purpose: str, details: Mapping[str, Any]) -> str:
        """As `Identity.transaction`."""
        return self._wait(self._identity.transaction(subject, purpose=purpose, details=details))

    async def _context(self, peer: Peer | None, url: str | None) -> ssl.SSLContext:
        # Made where the identity is kept, so that no rotation falls in between.
        return self._identity.ssl_context(peer, url=url)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if not self._thread.is_alive():
            work.close()
            raise SdkError("not_started")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(CALL_SECONDS)
        except concurrent.futures.TimeoutError as error:
            future.cancel()
            raise SdkError("deadline") from error

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
