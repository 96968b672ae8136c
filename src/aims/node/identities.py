"""What the Workload API serves, and the ports behind it: who a caller is, and what that caller is entitled to.

The values hold octets that are ready for the wire. None shows a key or a token in its repr.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from aims.errors import AimsError
from aims.identifiers import SpiffeId, TrustDomain
from aims.node.workload_errors import WorkloadApiError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Identity:
    """One X509-SVID with its key.

    ``chain``: DER certificates, leaf first, concatenated. ``key``: DER PKCS#8, not encrypted.
    """

    spiffe_id: SpiffeId
    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)
    hint: str = ""

    def __post_init__(self) -> None:
        _require(bool(self.spiffe_id.path and self.chain and self.key), "an X.509 identity lacks a part")


@dataclass(frozen=True, slots=True, kw_only=True)
class WitIdentity:
    """One WIT (compact JWS) with its private key (JWK text)."""

    spiffe_id: SpiffeId
    token: str = field(repr=False)
    key: str = field(repr=False)
    hint: str = ""

    def __post_init__(self) -> None:
        _require(bool(self.spiffe_id.path and self.token and self.key), "a WIT identity lacks a part")


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtIdentity:
    """One JWT-SVID (compact JWS), made for the audiences of one request."""

    spiffe_id: SpiffeId
    token: str = field(repr=False)
    hint: str = ""

    def __post_init__(self) -> None:
        _require(bool(self.spiffe_id.path and self.token), "a JWT identity lacks a part")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityState:
    """Everything that one caller is entitled to now: always the whole, never a difference (R-WA-01).

    The first identity of each kind is the caller's default one (R-WA-13). Each map of bundles holds the own trust
    domain and those federated for this caller: CA certificates (DER, concatenated), JWK Sets with JWT-SVID keys
    alone, JWK Sets with WIT keys alone (R-WA-08, R-WA-09).

    Raises:
        WorkloadApiError: ``state_invalid`` if an identity is of another trust domain, or has no bundle of its kind.
    """

    trust_domain: TrustDomain
    x509: tuple[X509Identity, ...] = ()
    wit: tuple[WitIdentity, ...] = ()
    x509_bundles: Mapping[TrustDomain, bytes] = field(default_factory=dict)
    jwt_bundles: Mapping[TrustDomain, bytes] = field(default_factory=dict)
    wit_bundles: Mapping[TrustDomain, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("x509_bundles", "jwt_bundles", "wit_bundles"):
            bundles: Mapping[TrustDomain, bytes | str] = getattr(self, name)
            _require(all(bundles.values()), f"an empty bundle in {name}")
            object.__setattr__(self, name, MappingProxyType(dict(bundles)))
        for spiffe_id in (*(i.spiffe_id for i in self.x509), *(i.spiffe_id for i in self.wit)):
            _require(spiffe_id.is_member_of(self.trust_domain), "an identity of another trust domain")
        _require(not self.x509 or self.trust_domain in self.x509_bundles, "no X.509 bundle of the own trust domain")
        _require(not self.wit or self.trust_domain in self.wit_bundles, "no WIT bundle of the own trust domain")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatedJwtSvid:
    """A JWT-SVID that held; ``claims`` always has ``sub``, ``exp`` and ``aud`` (a list)."""

    spiffe_id: SpiffeId
    claims: Mapping[str, object]


class Caller(Protocol):
    """The process at the other end of one connection. Opaque here."""

    def close(self) -> None:
        """Give back what recognition holds (a pidfd): the connection has ended. Called once."""
        ...


C = TypeVar("C", bound=Caller)
C_contra = TypeVar("C_contra", bound=Caller, contravariant=True)

PeerOf = Callable[[socket.socket], C]
"""Says who connected a socket (a duplicate, closed afterwards), from what the kernel knows; `aims.node.peer.peer_of`.

Asked at the first request of a connection, and again only after a refusal. Raises ``AimsError`` (the caller gets
PERMISSION_DENIED unless the reason's ``standard`` names another status) or ``OSError`` (UNAVAILABLE).
"""


class Identities(Protocol[C_contra]):
    """What callers are entitled to. Implemented by the node's cache of SVIDs.

    Every method judges anew whether the caller still lives and is what it was, and raises ``WorkloadApiError``
    ``not_entitled`` (nothing for this caller, or not what it asks for) or ``not_ready`` (cannot say now). Another
    ``AimsError`` counts as a refusal of the caller, except one of the store, the fetcher or the keys (UNAVAILABLE).
    """

    def subscribe(self, caller: C_contra) -> AsyncGenerator[IdentityState, None]:
        """Give the present state at once, then the newest one after each change.

        A consumer that is slow misses the states between. ``not_entitled`` is raised also later, when the last
        identity is withdrawn. Ends only by an exception.
        """
        ...

    async def jwt_svids(
        self, caller: C_contra, audiences: tuple[str, ...], spiffe_id: SpiffeId | None
    ) -> tuple[JwtIdentity, ...]:
        """Make one JWT-SVID for each identity of the caller, or for ``spiffe_id`` alone, default identity first."""
        ...

    async def validate_jwt_svid(self, caller: C_contra, audience: str, token: str) -> ValidatedJwtSvid:
        """Validate by SPIFFE JWT-SVID 5 against the bundle of the token's trust domain.

        Raises ``AimsError`` of another class than ``WorkloadApiError`` when the token does not hold.
        """
        ...


class Latest(Generic[T]):
    """One value that changes, for any number of watchers: each sees the newest, none can hold up another.

    Belongs to one event loop.
    """

    __slots__ = ("_changed", "_error", "_value", "_version")

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._value: T | None = None
        self._error: AimsError | None = None
        self._version = 0

    def set(self, value: T) -> None:
        """Replace the value; an equal one is no change. Lifts an earlier ``fail``."""
        if self._version and self._error is None and self._value == value:
            return
        self._value, self._error = value, None
        self._wake()

    def fail(self, error: AimsError) -> None:
        """Take the value away: every watcher ends with ``error``, and so does one that comes later."""
        self._value, self._error = None, error
        self._wake()

    async def watch(self) -> AsyncGenerator[T, None]:
        """Yield the value at once (waiting for the first one), then after each change the newest."""
        seen = 0
        while True:
            changed = self._changed
            if self._error is not None:
                raise self._error
            if self._version == seen:
                await changed.wait()
                continue
            seen, value = self._version, self._value
            assert value is not None  # noqa: S101 -- a version without an error has a value
            yield value

    def _wake(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()


def _require(holds: bool, detail: str) -> None:
    if not holds:
        raise WorkloadApiError("state_invalid", detail)
