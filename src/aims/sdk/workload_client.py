"""Client of the SPIFFE Workload API over its unix socket.

    async with WorkloadClient() as client:
        async for event in client.watch_x509():
            ...  # X509State, Withdrawn or Interrupted

A watch reconnects for ever: at once when a stream that had lived ends, otherwise after a growing time with jitter
(R-WA-05, R-WA-06). It ends only with an error for which asking again does not help.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from grpclib.client import Channel
from grpclib.metadata import Deadline

from aims.identifiers import SpiffeId, TrustDomain
from aims.proto import workload_pb2 as pb
from aims.proto import workload_service as service
from aims.sdk import workload_state as read
from aims.sdk.endpoint import workload_endpoint
from aims.sdk.errors import SdkError
from aims.sdk.grpc_call import BoundedStream, translated
from aims.sdk.workload_state import Interrupted, JwtMaterial, Withdrawn, WitState, X509State

T = TypeVar("T")

DEFAULT_SECONDS = 10.0
_CHANCE: Final = secrets.SystemRandom().random

_AGAIN = frozenset({"denied", "unavailable", "deadline"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """When a watch asks again, in seconds: ``first``, doubled up to ``most``, each time half of it by chance.

    A stream that had lived for ``settled`` is taken up again at once.
    """

    first: float = 0.1
    most: float = 5.0
    settled: float = 1.0

    def delay(self, attempt: int, chance: float) -> float:
        """Return the pause before attempt number ``attempt`` (from 0); ``chance`` is in [0, 1)."""
        grown: float = self.first * 2 ** min(attempt, 30)
        return min(self.most, grown) * (0.5 + chance / 2)


class WorkloadClient:
    """Asks one Workload API. Belongs to the event loop that first uses it.

    ``address`` is ``unix:///path``; without it ``SPIFFE_ENDPOINT_SOCKET`` is read. Raises ``SdkError`` for a bad one.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        backoff: Backoff | None = None,
        chance: Callable[[], float] = _CHANCE,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._path = workload_endpoint(address)
        self._backoff = backoff or Backoff()
        self._chance = chance
        self._pause = pause
        self._channel: Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls in progress end with ``unavailable``."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    # Once. Each raises SdkError: denied, unavailable, deadline, refused, unsupported, or about the response.

    async def fetch_x509(self, seconds: float = DEFAULT_SECONDS) -> X509State:
        """Return the X509-SVIDs of this process."""
        return await self._first(service.FETCH_X509_SVID, pb.X509SVIDRequest(), read.x509_state, seconds)

    async def fetch_x509_bundles(self, seconds: float = DEFAULT_SECONDS) -> Mapping[TrustDomain, bytes]:
        """Return the CA certificates (DER, concatenated) of each trust domain that this process may trust."""
        return await self._first(service.FETCH_X509_BUNDLES, pb.X509BundlesRequest(), read.x509_bundles, seconds)

    async def fetch_jwt_bundles(self, seconds: float = DEFAULT_SECONDS) -> Mapping[TrustDomain, bytes]:
        """Return the JWK Set with JWT-SVID keys of each trust domain."""
        return await self._first(service.FETCH_JWT_BUNDLES, pb.JWTBundlesRequest(), read.jwt_bundles, seconds)

    async def fetch_wit(self, spiffe_id: SpiffeId | None = None, seconds: float = DEFAULT_SECONDS) -> WitState:
        """Return the WITs of this process, or the one for ``spiffe_id``."""
        return await self._first(service.FETCH_WIT_SVID, _wit_request(spiffe_id), read.wit_state, seconds)

    async def fetch_wit_bundles(self, seconds: float = DEFAULT_SECONDS) -> Mapping[TrustDomain, str]:
        """Return the JWK Set with WIT keys of each trust domain."""
        return await self._first(service.FETCH_WIT_BUNDLES, pb.WITBundlesRequest(), read.wit_bundles, seconds)

    async def fetch_jwt(
        self, audiences: Sequence[str], spiffe_id: SpiffeId | None = None, seconds: float = DEFAULT_SECONDS
    ) -> tuple[JwtMaterial, ...]:
        """Have JWT-SVIDs made for ``audiences``, for every identity of this process or for ``spiffe_id``."""
        request = pb.JWTSVIDRequest(audience=audiences, spiffe_id="" if spiffe_id is None else str(spiffe_id))
        return await self._first(service.FETCH_JWT_SVID, request, read.jwt_svids, seconds)

    async def validate_jwt(
        self, audience: str, token: str, seconds: float = DEFAULT_SECONDS
    ) -> tuple[SpiffeId, Mapping[str, Any]]:
        """Have the node validate a JWT-SVID; return whose it is, and its claims (numbers as floats)."""
        request = pb.ValidateJWTSVIDRequest(audience=audience, svid=token)
        answer = await self._first(service.VALIDATE_JWT_SVID, request, _same, seconds)
        return read.validated(answer), MessageToDict(answer.claims)

    # For ever.

    def watch_x509(self) -> AsyncGenerator[X509State | Withdrawn | Interrupted, None]:
        """Yield the X509-SVIDs of this process and each later state."""
        return self._watch(service.FETCH_X509_SVID, pb.X509SVIDRequest(), read.x509_state)

    def watch_x509_bundles(self) -> AsyncGenerator[Mapping[TrustDomain, bytes] | Withdrawn | Interrupted, None]:
        """Yield the X.509 bundles and each later state."""
        return self._watch(service.FETCH_X509_BUNDLES, pb.X509BundlesRequest(), read.x509_bundles)

    def watch_jwt_bundles(self) -> AsyncGenerator[Mapping[TrustDomain, bytes] | Withdrawn | Interrupted, None]:
        """Yield the JWT bundles and each later state."""
        return self._watch(service.FETCH_JWT_BUNDLES, pb.JWTBundlesRequest(), read.jwt_bundles)

    def watch_wit(self, spiffe_id: SpiffeId | None = None) -> AsyncGenerator[WitState | Withdrawn | Interrupted, None]:
        """Yield the WITs of this process and each later state."""
        return self._watch(service.FETCH_WIT_SVID, _wit_request(spiffe_id), read.wit_state)

    def watch_wit_bundles(self) -> AsyncGenerator[Mapping[TrustDomain, str] | Withdrawn | Interrupted, None]:
        """Yield the WIT bundles and each later state."""
        return self._watch(service.FETCH_WIT_BUNDLES, pb.WITBundlesRequest(), read.wit_bundles)

    async def _first(self, method: service.Method, request: Message, parse: Callable[[Any], T], seconds: float) -> T:
        async with aclosing(self._messages(method, request, Deadline.from_timeout(seconds))) as messages:
            async for message in messages:
                return parse(message)
        raise SdkError("response_invalid", "no message")

    async def _watch(
        self, method: service.Method, request: Message, parse: Callable[[Any], T]
    ) -> AsyncGenerator[T | Withdrawn | Interrupted, None]:
        attempt = 0
        told: type[Withdrawn | Interrupted] | None = None
        while True:
            began = asyncio.get_running_loop().time()
            error = SdkError("unavailable", "the node ended the stream")
            try:
                async with aclosing(self._messages(method, request, None)) as messages:
                    async for message in messages:
                        attempt, told = 0, None
                        yield _event(parse, message)
            except SdkError as caught:
                error = caught
            if error.reason not in _AGAIN:
                raise error
            kind = Withdrawn if error.reason == "denied" else Interrupted
            if kind is not told:
                told = kind
                yield kind(error)
            lived = asyncio.get_running_loop().time() - began
            if attempt or lived < self._backoff.settled:
                await self._pause(self._backoff.delay(attempt, self._chance()))
            attempt += 1

    async def _messages(
        self, method: service.Method, request: Message, deadline: Deadline | None
    ) -> AsyncGenerator[Message, None]:
        if self._channel is None:
            self._channel = Channel(path=str(self._path))
        with translated():
            async with BoundedStream(self._channel, method, deadline) as call:
                await call.send_message(request, end=True)
                while (message := await call.recv_message()) is not None:
                    yield message
                await call.recv_trailing_metadata()


def _event(parse: Callable[[Any], T], message: Message) -> T | Interrupted:
    try:
        return parse(message)
    except SdkError as error:
        return Interrupted(error)


def _wit_request(spiffe_id: SpiffeId | None) -> pb.WITSVIDRequest:
    return pb.WITSVIDRequest(spiffe_id="" if spiffe_id is None else str(spiffe_id))


def _same(message: pb.ValidateJWTSVIDResponse) -> pb.ValidateJWTSVIDResponse:
    return message
