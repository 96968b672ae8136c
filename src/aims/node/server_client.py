"""The node's side of the node protocol (``docs/node-protocol.md``); the one module of the node with an HTTP client.

First contact believes nothing: over an unverified connection only a public certificate is fetched, and kept only if
its digest stands in the join token. The secret leaves over a second connection, which that certificate has verified.
Everything after it is mutual TLS, where each side checks the other's SPIFFE ID inside the handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Final, Literal, NoReturn, TypeVar

import httpx2
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from aims.jose import JoseError, base64url
from aims.jose.strict_json import read_object
from aims.node.errors import NodeError
from aims.provisioning.join_token import JoinToken, is_server_url
from aims.x509 import X509Error
from aims.x509.parse import parse_pem

VERSION: Final = "1"
CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 15.0
MAX_ANSWER: Final = 1024 * 1024
MAX_LINE: Final = 32 * 1024 * 1024
"""A ``state`` line holds every entry of the node with its launch profile."""

_CODE = re.compile(r"[a-z_]{1,64}\.[a-z_:A-Z]{1,64}")
_AGAIN: Final = frozenset({409, 429, 500, 502, 503, 504})


class ServerRefusedError(NodeError):
    """The server understood and said no; ``server_code`` is its stable code, the sentence and hint are its own."""

    def __init__(self, status: int, server_code: str, message: str, hint: str) -> None:
        super().__init__("server_refused", f"status {status}")
        self.server_code = server_code
        self.sentence = f"The server refused: {server_code}: {_printable(message)}"
        self.hint = _printable(hint)


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer: unknown members are refused, nothing is converted."""


class Welcome(_Strict, frozen=True):
    """The answer to a join or a renewal: the node's own X509-SVID (DER, leaf first, base64url) and what it believes."""

    spiffe_id: str
    svid: list[str]
    bundle: dict[str, Any]
    mtls_url: str
    expires_at: int
    trust_domain: str = ""

    def chain(self) -> tuple[bytes, ...]:
        """Return the certificates as DER. Raises: NodeError ``server_answer``."""
        return tuple(map(_octets, self.svid))


class Issued(_Strict, frozen=True):
    """The answer to an issue call."""

    spiffe_id: str
    svid: list[str]
    wit: str
    epoch: int
    expires_at: int

    def chain(self) -> tuple[bytes, ...]:
        """Return the certificates as DER. Raises: NodeError ``server_answer``."""
        return tuple(map(_octets, self.svid))


class IssuedToken(_Strict, frozen=True):
    """The answer to a JWT-SVID call."""

    spiffe_id: str
    svid: str
    expires_at: int


class _Refusal(msgspec.Struct, frozen=True, kw_only=True):
    error: str
    message: str = ""
    hint: str = ""


class _Nothing(_Strict, frozen=True):
    pass


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What the node saw, collected for one request."""

    kind: Literal["launch", "unix"]
    collected_at: int
    selectors: list[str]
    posture: str
    measurement: dict[str, Any] = {}


A = TypeVar("A", bound=msgspec.Struct)


async def join(token: JoinToken, csr: bytes) -> Welcome:
    """Use a join token up.

    Raises:
        NodeError: ``server_unreachable``, ``server_untrusted``, ``server_busy``, ``server_answer``, ``join_ca``,
            ``server_refused`` (a `ServerRefusedError`: the token was used, has expired, or is for another node).
    """
    # 1. over a connection that nothing verifies: nothing but this line leaves
    async with _client(_unverified()) as client:
        pem = await _octets_of(client, "GET", f"{token.url}/node/v1/ca")
    # 2. keep only what the token names
    authority = _named(pem, token.ca)
    # 3. over a new connection, verified by it and by the host's name
    async with _client(_verified(authority)) as client:
        body = {
            "secret": base64url.encode(token.secret).decode("ascii"),
            "node": token.node,
            "csr": base64url.encode(csr).decode("ascii"),
        }
        return _read(await _octets_of(client, "POST", f"{token.url}/node/v1/join", body), Welcome)


class ServerClient:
    """Calls over mutual TLS. ``context`` shows the node's SVID, checks the server's, and may rotate meanwhile.

    Every call raises NodeError ``server_unreachable``, ``server_untrusted``, ``server_busy``, ``server_answer`` or
    ``server_refused`` (a `ServerRefusedError`).
    """

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        self._url = base_url(url)
        self._context = context
        self._http = _client(context)

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def reconnect(self) -> None:
        """Close every connection, so that the server is judged anew; calls under way may end ``server_unreachable``."""
        before, self._http = self._http, _client(self._context)
        await before.aclose()

    async def renew(self, csr: bytes) -> Welcome:
        """Have the node's own SVID renewed, for the key of ``csr`` (PKCS#10 DER)."""
        return await self._call("/node/v1/renew", {"csr": base64url.encode(csr).decode("ascii")}, Welcome)

    async def issue(
        self, *, entry: str, instance: str, csr: bytes, proof_key: Mapping[str, str], evidence: Evidence
    ) -> Issued:
        """Have an X509-SVID and a WIT issued."""
        body = {
            "entry": entry,
            "instance": instance,
            "csr": base64url.encode(csr).decode("ascii"),
            "proof_key": proof_key,
            "evidence": evidence,
        }
        return await self._call("/node/v1/issue", body, Issued)

    async def jwt_svid(
        self, *, entry: str, instance: str, audiences: Sequence[str], jkt: str, evidence: Evidence
    ) -> IssuedToken:
        """Have one JWT-SVID issued, bound to the key whose thumbprint is ``jkt``."""
        body = {"entry": entry, "instance": instance, "audiences": audiences, "jkt": jkt, "evidence": evidence}
        return await self._call("/node/v1/jwt-svid", body, IssuedToken)

    async def launched(
        self,
        *,
        entry: str,
        instance: str,
        event: Literal["start", "end", "refuse"],
        detail: Mapping[str, str | int | bool],
    ) -> None:
        """Report that a launch began, ended or was refused."""
        body = {"entry": entry, "instance": instance, "event": event, "detail": detail}
        await self._call("/node/v1/launched", body, _Nothing)

    async def watch(self, silence: float) -> AsyncGenerator[bytes, None]:
        """Yield the lines of the stream of changes; ``silence`` is how many seconds without any octet are borne.

        Ends when the server ends the stream. Raises as every call.
        """
        timeout = httpx2.Timeout(CONNECT_SECONDS, read=silence)
        with _translated():
            async with self._http.stream("GET", f"{self._url}/node/v1/watch", timeout=timeout) as response:
                if response.status_code != 200:
                    _refuse(response.status_code, await _bounded(response))
                async for line in _lines(response.aiter_raw()):
                    yield line

    async def _call(self, path: str, body: object, kind: type[A]) -> A:
        return _read(await _octets_of(self._http, "POST", self._url + path, body), kind)


def base_url(text: str) -> str:
    """Return ``text`` if it is ``https://HOST[:PORT]`` and nothing more. Raises: NodeError ``server_answer``."""
    if not is_server_url(text):
        raise NodeError("server_answer", "a URL")
    return text


def _client(context: ssl.SSLContext) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=64, max_keepalive_connections=8, keepalive_expiry=30.0)
    # no proxy, no .netrc and no certificates that the environment names
    transport = httpx2.AsyncHTTPTransport(verify=context, trust_env=False, limits=limits)
    return httpx2.AsyncClient(
        transport=transport,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
        headers={"aims-node-version": VERSION, "accept-encoding": "identity", "user-agent": "aims-node"},
    )


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _verified(authority: x509.Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    context.load_verify_locations(cadata=authority.public_bytes(Encoding.DER))
    return context


def _named(pem: bytes, digest: bytes) -> x509.Certificate:
    try:
        shown = parse_pem(pem)
    except X509Error as error:
        raise NodeError("join_ca", str(error)) from error
    for certificate in shown:
        if hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest() == digest:
            return certificate
    raise NodeError("join_ca", "another digest")


async def _octets_of(client: httpx2.AsyncClient, method: str, url: str, body: object | None = None) -> bytes:
    content = None if body is None else msgspec.json.encode(body)
    headers = None if body is None else {"content-type": "application/json"}
    with _translated():
        async with (
            asyncio.timeout(ANSWER_SECONDS),
            client.stream(method, url, content=content, headers=headers) as response,
        ):
            octets = await _bounded(response)
    if response.status_code != 200:
        _refuse(response.status_code, octets)
    return octets


async def _bounded(response: httpx2.Response) -> bytes:
    octets = bytearray()
    async for part in response.aiter_raw():
        octets += part
        if len(octets) > MAX_ANSWER:
            raise NodeError("server_answer", "too long")
    return bytes(octets)


async def _lines(parts: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    rest = bytearray()
    async for part in parts:
        # what stands before has been searched already
        at = part.find(b"\n")
        while at >= 0:
            yield bytes(rest + part[:at])
            rest.clear()
            part = part[at + 1 :]  # noqa: PLW2901  the line is taken off
            at = part.find(b"\n")
        rest += part
        if len(rest) > MAX_LINE:
            raise NodeError("server_answer", "a line too long")


@contextlib.contextmanager
def _translated() -> Any:
    try:
        yield
    except (httpx2.TransportError, TimeoutError, OSError) as error:
        reason = "server_untrusted" if _judged(error) else "server_unreachable"
        raise NodeError(reason, f"{type(error).__name__}: {error}"[:300]) from error
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        raise NodeError("server_answer", type(error).__name__) from error


def _judged(error: BaseException | None) -> bool:
    """Tell whether the connection ended because of who the server is."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _refuse(status: int, octets: bytes) -> NoReturn:
    try:
        said = msgspec.json.decode(octets, type=_Refusal)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise NodeError("server_answer", f"status {status}") from error
    if _CODE.fullmatch(said.error) is None:
        raise NodeError("server_answer", f"status {status} without a code")
    if status in _AGAIN:
        raise NodeError("server_busy", said.error)
    raise ServerRefusedError(status, said.error, said.message, said.hint)


def _read(octets: bytes, kind: type[A]) -> A:
    try:
        return msgspec.convert(read_object(octets), kind, strict=True)
    except (JoseError, msgspec.ValidationError) as error:
        raise NodeError("server_answer", str(error)[:200]) from error


def _octets(text: str) -> bytes:
    try:
        return base64url.decode(text.encode("ascii"))
    except (JoseError, UnicodeEncodeError) as error:
        raise NodeError("server_answer", "not base64url") from error


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:300])
