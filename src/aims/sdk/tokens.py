"""Access tokens of this process: asked for at the authorization server, bound to the proof key, presented with DPoP.

The token endpoint is asked over mutual TLS, where the X509-SVID says who asks (``spiffe_x509``), with a DPoP proof by
the key that the token shall be bound to. What the server says about itself (RFC 8414) is believed only if it names the
issuer that the node named.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final
from urllib.parse import urlencode

import httpx2
import msgspec

from aims.authentication import dpop
from aims.authentication.target import covers
from aims.clock import Clock, IdSource
from aims.jose import JoseError, KeySet
from aims.jose.jwks import parse_jwks
from aims.sdk.errors import CallRefusedError, SdkError
from aims.sdk.material import ProofKey
from aims.sdk.node_state import Settings
from aims.sdk.open_connections import EndingTransport

WELL_KNOWN: Final = "/.well-known/oauth-authorization-server"
TRANSACTIONS: Final = "/txn/token"
TXN_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:txn_token"  # noqa: S105  a name
MAX_ANSWER: Final = 256 * 1024
SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An access token for one audience, good only with ``key``, until ``expires`` (Unix seconds)."""

    text: str = field(repr=False)
    audience: str
    scopes: frozenset[str]
    expires: float
    key: ProofKey = field(repr=False)


class _Aliases(msgspec.Struct, frozen=True):
    token_endpoint: str


class _Metadata(msgspec.Struct, frozen=True):
    issuer: str
    jwks_uri: str
    mtls_endpoint_aliases: _Aliases
    authorization_endpoint: str = ""


class _Answer(msgspec.Struct, frozen=True):
    access_token: Annotated[str, msgspec.Meta(min_length=1, max_length=16384)]
    token_type: str
    expires_in: Annotated[int, msgspec.Meta(gt=0, le=3600)]
    scope: str | None = None


class _Transaction(msgspec.Struct, frozen=True):
    access_token: Annotated[str, msgspec.Meta(min_length=1, max_length=16384)]
    token_type: str
    issued_token_type: str


class _Refusal(msgspec.Struct, frozen=True):
    error: Annotated[str, msgspec.Meta(max_length=64)]
    error_description: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    aims_error: Annotated[str, msgspec.Meta(max_length=128)] = ""
    aims_hint: Annotated[str, msgspec.Meta(max_length=1024)] = ""


class AuthorizationServer:
    """The authorization server of ``settings``; ``mtls`` is the context of its mTLS listener.

    Every call raises SdkError: ``issuer_unreachable``, ``issuer_invalid``, and `CallRefusedError` for a refusal.
    """

    def __init__(self, settings: Settings, mtls: ssl.SSLContext, clock: Clock, ids: IdSource) -> None:
        self.settings = settings
        self._clock = clock
        self._ids = ids
        self._public = _client(_public(settings.tls_ca))
        self._mtls = _client(mtls)
        self._metadata: _Metadata | None = None
        self._asking = asyncio.Lock()

    async def close(self) -> None:
        """Close every connection."""
        await self._public.aclose()
        await self._mtls.aclose()

    async def keys(self) -> KeySet:
        """Return the keys that access tokens of this issuer verify with, as they are published now."""
        metadata = await self._known()
        octets = await _octets(self._public, "GET", metadata.jwks_uri)
        try:
            return parse_jwks(octets).keys(None, "sig")
        except JoseError as error:
            raise SdkError("issuer_invalid", error.code) from error

    async def token(self, client_id: str, audience: str, form: Mapping[str, str], key: ProofKey) -> Token:
        """Ask for a token for ``audience``, bound to ``key``."""
        url = (await self._known()).mtls_endpoint_aliases.token_endpoint
        octets = await self._posted(url, {**form, "client_id": client_id}, key)
        try:
            answer = msgspec.json.decode(octets, type=_Answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SdkError("issuer_invalid", "the answer of the token endpoint") from error
        if answer.token_type.lower() != "dpop":
            raise SdkError("issuer_invalid", f"asked for a DPoP token, got {answer.token_type[:32]}")
        return Token(
            text=answer.access_token,
            audience=audience,
            scopes=frozenset((answer.scope or form.get("scope", "")).split()),
            expires=self._clock.now() + answer.expires_in,
            key=key,
        )

    async def authorization_endpoint(self) -> str:
        """Where a person is sent. Raises: SdkError ``issuer_invalid`` too, where nobody can be asked."""
        endpoint = (await self._known()).authorization_endpoint
        if not covers(self.settings.issuer, endpoint):
            raise SdkError("issuer_invalid", "no authorization endpoint")
        return endpoint

    async def transaction(self, form: Mapping[str, str], client_id: str, key: ProofKey) -> str:
        """Ask the Txn-Token service for a token (draft-ietf-oauth-transaction-tokens-11, section 11)."""
        url = self.settings.mtls_url + TRANSACTIONS
        octets = await self._posted(url, {**form, "client_id": client_id}, key)
        try:
            answer = msgspec.json.decode(octets, type=_Transaction)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SdkError("issuer_invalid", "the answer of the Txn-Token service") from error
        if answer.token_type != "N_A" or answer.issued_token_type != TXN_TOKEN_TYPE:  # noqa: S105  names
            raise SdkError("issuer_invalid", "no Txn-Token")
        return answer.access_token

    async def transaction_keys(self) -> KeySet:
        """Return the keys of the Txn-Token service; no other token verifies with them."""
        octets = await _octets(self._public, "GET", f"{self.settings.issuer}/txn/jwks")
        try:
            return parse_jwks(octets).keys(None, "sig")
        except JoseError as error:
            raise SdkError("issuer_invalid", error.code) from error

    async def _posted(self, url: str, form: Mapping[str, str], key: ProofKey) -> bytes:
        claims = dpop.build_claims("POST", url, token_id=self._ids.token(), now=self._clock.now())
        fields = {
            "content-type": "application/x-www-form-urlencoded",
            "dpop": dpop.issue_now(claims, key, key.public),
        }
        return await _octets(self._mtls, "POST", url, content=urlencode(form).encode("ascii"), headers=fields)

    async def _known(self) -> _Metadata:
        async with self._asking:
            if self._metadata is None:
                issuer = self.settings.issuer
                octets = await _octets(self._public, "GET", issuer + WELL_KNOWN)
                try:
                    found = msgspec.json.decode(octets, type=_Metadata)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    raise SdkError("issuer_invalid", "metadata") from error
                ours = covers(self.settings.mtls_url, found.mtls_endpoint_aliases.token_endpoint)
                if found.issuer != issuer or not covers(issuer, found.jwks_uri) or not ours:
                    raise SdkError("issuer_invalid", "the metadata is of another issuer")
                self._metadata = found
        return self._metadata


def _public(tls_ca: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if tls_ca:
        context.load_verify_locations(cadata=tls_ca)
    else:
        context.load_default_certs()
    return context


def _client(context: ssl.SSLContext) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        transport=EndingTransport(context),
        trust_env=False,
        timeout=SECONDS,
        follow_redirects=False,
        headers={"accept-encoding": "identity", "user-agent": "aims-sdk"},
    )


async def _octets(
    client: httpx2.AsyncClient,
    method: str,
    url: str,
    *,
    content: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    octets = bytearray()
    try:
        async with asyncio.timeout(SECONDS), client.stream(method, url, content=content, headers=headers) as response:
            async for part in response.aiter_raw():
                octets += part
                if len(octets) > MAX_ANSWER:
                    raise SdkError("issuer_invalid", "too long")
    except (httpx2.HTTPError, TimeoutError, OSError) as error:
        raise SdkError("issuer_unreachable", f"{type(error).__name__}: {error}"[:300]) from None
    if response.status_code != 200:
        raise _refused(response.status_code, bytes(octets))
    return bytes(octets)


def _refused(status: int, octets: bytes) -> SdkError:
    try:
        said = msgspec.json.decode(octets, type=_Refusal)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return SdkError("issuer_unreachable" if status >= 500 else "issuer_invalid", f"status {status}")
    return CallRefusedError(status, said.aims_error or said.error, said.error_description, said.aims_hint)
