"""One exchange: resolve, judge, connect to what was judged, send, and take no more than was allowed.

 1. The URL is https and well-formed; the headers are ours to send.
 2. The name is resolved once, and every address that it has is judged.
 3. The connection goes to a judged address; SNI, certificate check and Host keep the URL's name.
 4. The head of the answer: bounded, no redirect, one way of framing, not compressed, no more promised than allowed.
 5. The body: bounded, complete, nothing behind it. The type of a good answer is one that was asked for.

All of it within one span of time.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Literal

import h11

from aims.fetch.address import allowed
from aims.fetch.errors import FetchError
from aims.fetch.url import Endpoint, parse_url

MAX_ADDRESSES: Final = 16
MAX_HEADERS: Final = 64
MAX_INTERIM: Final = 4
_READ: Final = 16 * 1024
_OURS: Final = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "te", "upgrade"}
)

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""From name and port to addresses."""
Dialler = Callable[[str, int, ssl.SSLContext, str], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""From address, port, TLS context and expected name to an open connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds of the whole exchange, and octets of body and head of the answer."""

    seconds: float = 10.0
    body: int = 64 * 1024
    head: int = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is sent, and what may come back.

    ``ca`` is PEM that is trusted for this request *instead of* the system's authorities. ``private`` lists the hosts
    and ports whose addresses may be private or loopback, because an administrator said so. ``accept`` are the media
    types of a good answer's body; empty means that a body is not wanted and is thrown away.
    """

    url: str
    method: Literal["GET", "POST"] = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)
    accept: frozenset[str] = frozenset()
    ca: str = field(default="", repr=False)
    private: frozenset[tuple[str, int]] = frozenset()
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Response:
    """What came back: the status as it is (but never a redirect), lower-case headers, and the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def media_type(self) -> str:
        """The media type without parameters, lower case; "" without one."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Fetcher:
    """Makes exchanges. ``resolve`` and ``dial`` are the machine's own unless a test brings others."""

    def __init__(self, resolve: Resolver | None = None, dial: Dialler | None = None) -> None:
        self._resolve = resolve or _resolve
        self._dial = dial or _dial

    async def fetch(self, request: Request) -> Response:
        """Make one exchange.

        Raises: FetchError with the first thing that was wrong; see the steps above.
        """
        # 1
        endpoint = parse_url(request.url)
        head = _head(request, endpoint)
        try:
            async with asyncio.timeout(request.limits.seconds):
                return await self._exchange(request, endpoint, head)
        except TimeoutError as error:
            raise FetchError("slow", endpoint.authority) from error
        except ssl.SSLError as error:
            raise FetchError("tls", str(error)[:200]) from error
        except (OSError, UnicodeError) as error:
            raise FetchError("unreachable", str(error)[:200]) from error
        except h11.RemoteProtocolError as error:
            raise FetchError("malformed", str(error)[:200]) from error

    async def _exchange(self, request: Request, endpoint: Endpoint, head: h11.Request) -> Response:
        addresses = await self._addresses(endpoint, private=(endpoint.host, endpoint.port) in request.private)
        # 3
        reader, writer = await self._connect(addresses, endpoint, _context(request.ca))
        try:
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=request.limits.head)
            parts = [connection.send(head)]
            if request.body:
                parts.append(connection.send(h11.Data(data=request.body)))
            parts.append(connection.send(h11.EndOfMessage()))
            writer.writelines([part for part in parts if part])
            await writer.drain()
            return await _Answer(connection, reader, request).read()
        finally:
            # Nothing is owed to the other side any more; a polite goodbye could be kept waiting.
            writer.transport.abort()

    async def _addresses(self, endpoint: Endpoint, *, private: bool) -> Sequence[str]:
        # 2
        try:
            addresses = await self._resolve(endpoint.host, endpoint.port)
        except OSError as error:
            raise FetchError("unresolved", endpoint.host) from error
        if not addresses:
            raise FetchError("unresolved", endpoint.host)
        for address in addresses:
            # One bad address spoils the name: whoever controls it chooses the order.
            if not allowed(address, private=private):
                raise FetchError("address", f"{endpoint.host} is {address[:64]}")
        return addresses[:MAX_ADDRESSES]

    async def _connect(
        self, addresses: Sequence[str], endpoint: Endpoint, context: ssl.SSLContext
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        failure: OSError | None = None
        for address in addresses:
            try:
                return await self._dial(address, endpoint.port, context, endpoint.host)
            except ssl.SSLError:
                raise
            except OSError as error:
                failure = error
        raise failure or OSError("no address")


class _Answer:
    """Steps 4 and 5."""

    def __init__(self, connection: h11.Connection, reader: asyncio.StreamReader, request: Request) -> None:
        self._connection = connection
        self._reader = reader
        self._request = request
        self._interim = 0

    async def read(self) -> Response:
        response = await self._response()
        headers = self._judge(response)
        wanted = self._request.accept
        good = 200 <= response.status_code < 300
        answer = Response(response.status_code, headers, b"")
        if not wanted or (not good and answer.media_type not in wanted):
            return answer
        body = await self._body()
        if body and answer.media_type not in wanted:
            raise FetchError("content_type", ascii(answer.media_type)[:100])
        return Response(answer.status, headers, body)

    async def _response(self) -> h11.Response:
        while True:
            event = await self._event()
            if isinstance(event, h11.Response):
                return event
            self._interim += 1
            if not isinstance(event, h11.InformationalResponse) or self._interim > MAX_INTERIM:
                raise FetchError("malformed", "no answer")

    def _judge(self, response: h11.Response) -> Mapping[str, str]:
        if 300 <= response.status_code < 400:
            raise FetchError("redirect", str(response.status_code))
        if len(response.headers) > MAX_HEADERS:
            raise FetchError("too_large", "headers")
        names = [name for name, _ in response.headers]
        if b"content-length" in names and b"transfer-encoding" in names:
            raise FetchError("malformed", "two ways of framing")
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in response.headers}
        for name in ("content-type", "content-length", "retry-after"):
            if names.count(name.encode()) > 1:
                raise FetchError("malformed", f"two of {name}")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise FetchError("malformed", "compressed")
        length = headers.get("content-length", "0")
        if len(length) > 15 or int(length) > self._request.limits.body:
            raise FetchError("too_large", "promised")
        return MappingProxyType(headers)

    async def _body(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            event = await self._event()
            if isinstance(event, h11.Data):
                size += len(event.data)
                if size > self._request.limits.body:
                    raise FetchError("too_large", "body")
                parts.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                if self._connection.trailing_data[0] or event.headers:
                    raise FetchError("malformed", "something behind the body")
                return b"".join(parts)
            else:
                raise FetchError("malformed", "the connection ended")

    async def _event(self) -> object:
        while True:
            event = self._connection.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._connection.receive_data(await self._reader.read(_READ))


def _head(request: Request, endpoint: Endpoint) -> h11.Request:
    if request.body and request.method == "GET":
        raise FetchError("request", "a body with GET")
    for name, value in request.headers:
        if name.lower() in _OURS or not name.isascii() or not value.isascii() or not value.isprintable():
            raise FetchError("request", ascii(name)[:100])
    headers = [("host", endpoint.authority), ("connection", "close"), ("accept-encoding", "identity"), *request.headers]
    if request.method == "POST":
        headers.append(("content-length", str(len(request.body))))
    try:
        return h11.Request(method=request.method, target=endpoint.target, headers=headers)
    except h11.LocalProtocolError as error:
        raise FetchError("request", str(error)[:100]) from error


@lru_cache(maxsize=16)
def _context(ca: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=ca or None)
    except ssl.SSLError as error:
        raise FetchError("tls", "the authorities cannot be read") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


async def _resolve(host: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def _dial(
    address: str, port: int, context: ssl.SSLContext, name: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(address, port, ssl=context, server_hostname=name, limit=_READ)
