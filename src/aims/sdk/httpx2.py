"""Authentication for httpx2, and a transport that knows whom it calls.

async with aims.Identity() as me, me.client() as http:
    answer = await http.post("https://localhost:8450/mcp", json=...)
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Final

import httpx2
import msgspec

from aims.sdk.errors import CallRefusedError, SdkError
from aims.sdk.open_connections import BlockingEndingTransport, EndingTransport
from aims.sdk.proofs import AnswerFacts, Proof, RequestFacts
from aims.tls import PeerRefused

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 30.0

ProofOf = Callable[[RequestFacts], Proof]


class ProvedAuth(httpx2.Auth):
    """Proves each request that it sees anew; works with both clients of httpx2."""

    def __init__(self, proof_of: ProofOf) -> None:
        self._proof_of = proof_of

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        proof = self._proof_of(RequestFacts(request.method, str(request.url)))
        fields = next(proof)
        while True:
            for name, value in fields.items():
                request.headers[name] = value
            response = yield request
            try:
                fields = proof.send(AnswerFacts(response.status_code, response.headers))
            except StopIteration:
                return


class KnowingTransport(httpx2.AsyncBaseTransport):
    """Sends each request over TLS that was made for the peer behind its URL; without one nothing leaves.

    ``context_of`` gives the context for a URL, the same one for the same peer. Neither proxies nor certificates of the
    environment are used.
    """

    def __init__(self, context_of: Callable[[str], ssl.SSLContext]) -> None:
        self._context_of = context_of
        self._transports: dict[ssl.SSLContext, EndingTransport] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        context = self._context_of(str(request.url))
        transport = self._transports.get(context)
        if transport is None:
            transport = EndingTransport(context)
            self._transports[context] = transport
        with _peers_named(request.url):
            return await transport.handle_async_request(request)

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()


class BlockingTransport(httpx2.BaseTransport):
    """`KnowingTransport` for `httpx2.Client`."""

    def __init__(self, context_of: Callable[[str], ssl.SSLContext]) -> None:
        self._context_of = context_of
        self._transports: dict[ssl.SSLContext, BlockingEndingTransport] = {}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        context = self._context_of(str(request.url))
        transport = self._transports.get(context)
        if transport is None:
            transport = BlockingEndingTransport(context)
            self._transports[context] = transport
        with _peers_named(request.url):
            return transport.handle_request(request)

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close()


@contextmanager
def _peers_named(url: httpx2.URL) -> Iterator[None]:
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        origin = f"{url.scheme}://{url.netloc.decode('ascii')}"
        refused = _refused(error)
        if refused is None:
            raise SdkError("peer_unreachable", f"{origin}: {error}"[:300]) from None
        detail = refused.refusal.detail
        said = f"{refused.refusal.code}: {refused.refusal.sentence}" + (f" {detail}" if detail else "")
        raise SdkError("peer_refused", f"{origin}: {said}") from None


def refusal(response: httpx2.Response) -> CallRefusedError | None:
    """Return what a service's middleware said no with; None for every other answer. The body must have been read."""
    if response.status_code < 400:
        return None
    try:
        said = msgspec.json.decode(response.content, type=_Refusal)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return CallRefusedError(response.status_code, said.error, said.message, said.hint, said.stop)


class _Refusal(msgspec.Struct, frozen=True, kw_only=True):
    error: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9_]{1,64}\.[A-Za-z0-9_:-]{1,64}\Z")]
    message: Annotated[str, msgspec.Meta(max_length=1024)]
    hint: Annotated[str, msgspec.Meta(max_length=1024)]
    stop: dict[str, str | int | bool] | None = None


def _refused(error: BaseException) -> PeerRefused | None:
    """Find what our own check of the peer said, below what the libraries above made of it."""
    below: BaseException | None = error
    for _ in range(16):
        if below is None or isinstance(below, PeerRefused):
            return below
        below = below.__cause__ or below.__context__
    return None


def client(proof_of: ProofOf, context_of: Callable[[str], ssl.SSLContext], **options: Any) -> httpx2.AsyncClient:
    """Return a client that proves its requests and checks its peers; ``options`` are those of `httpx2.AsyncClient`."""
    return httpx2.AsyncClient(**_options(proof_of, KnowingTransport(context_of), options))


def blocking_client(proof_of: ProofOf, context_of: Callable[[str], ssl.SSLContext], **options: Any) -> httpx2.Client:
    """Return the same for code without an event loop."""
    return httpx2.Client(**_options(proof_of, BlockingTransport(context_of), options))


def _options(proof_of: ProofOf, transport: object, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "auth": ProvedAuth(proof_of),
        "transport": transport,
        "timeout": httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
        "trust_env": False,
        **options,
    }
