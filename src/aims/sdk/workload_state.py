"""What the Workload API gave: frozen values made from its messages, and the events of a watch.

A message that lacks what the specification demands is dropped with ``SdkError`` ``response_invalid`` (R-WA-04).
Certificates, keys and tokens are as they came; whoever uses them parses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from aims.identifiers import IdentifierError, SpiffeId, TrustDomain
from aims.proto import workload_pb2 as pb
from aims.sdk.errors import SdkError


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Material:
    """An X509-SVID: ``chain`` and ``bundle`` are concatenated DER certificates, ``key`` is DER PKCS#8."""

    spiffe_id: SpiffeId
    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)
    bundle: bytes = field(repr=False)
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class X509State:
    """All X509-SVIDs of this process; ``svids[0]`` is the default one. Replaces everything given before."""

    svids: tuple[X509Material, ...]
    federated: Mapping[TrustDomain, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class WitMaterial:
    """A WIT (compact JWS) with its private key (JWK text)."""

    spiffe_id: SpiffeId
    token: str = field(repr=False)
    key: str = field(repr=False)
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WitState:
    """All WITs of this process; ``wits[0]`` is the default one. Replaces everything given before."""

    wits: tuple[WitMaterial, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtMaterial:
    """A JWT-SVID (compact JWS) for the audiences that were asked for."""

    spiffe_id: SpiffeId
    token: str = field(repr=False)
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """This process has no identity now: stop using what was given before (R-WA-06). The watch goes on."""

    error: SdkError


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The node cannot be heard: what was given before stays good until it expires. The watch goes on."""

    error: SdkError


V = TypeVar("V", bytes, str)
T = TypeVar("T")


def x509_state(message: pb.X509SVIDResponse) -> X509State:
    """Read a ``X509SVIDResponse``."""
    found = [
        X509Material(
            spiffe_id=_spiffe_id(svid.spiffe_id),
            chain=_present(svid.x509_svid),
            key=_present(svid.x509_svid_key),
            bundle=_present(svid.bundle),
            hint=hint,
        )
        for svid, hint in _with_hints(message.svids, lambda svid: svid.hint)
    ]
    federated = _bundles(message.federated_bundles) if message.federated_bundles else MappingProxyType({})
    return X509State(svids=_some(found), federated=federated)


def x509_bundles(message: pb.X509BundlesResponse) -> Mapping[TrustDomain, bytes]:
    """Read a ``X509BundlesResponse``."""
    return _bundles(message.bundles)


def jwt_bundles(message: pb.JWTBundlesResponse) -> Mapping[TrustDomain, bytes]:
    """Read a ``JWTBundlesResponse``."""
    return _bundles(message.bundles)


def wit_bundles(message: pb.WITBundlesResponse) -> Mapping[TrustDomain, str]:
    """Read a ``WITBundlesResponse``."""
    return _bundles(message.bundles)


def wit_state(message: pb.WITSVIDResponse) -> WitState:
    """Read a ``WITSVIDResponse``."""
    found = [
        WitMaterial(
            spiffe_id=_spiffe_id(svid.spiffe_id),
            token=_present(svid.wit_svid),
            key=_present(svid.wit_svid_key),
            hint=hint,
        )
        for svid, hint in _with_hints(message.svids, lambda svid: svid.hint)
    ]
    return WitState(wits=_some(found))


def jwt_svids(message: pb.JWTSVIDResponse) -> tuple[JwtMaterial, ...]:
    """Read a ``JWTSVIDResponse``."""
    found = [
        JwtMaterial(spiffe_id=_spiffe_id(svid.spiffe_id), token=_present(svid.svid), hint=hint)
        for svid, hint in _with_hints(message.svids, lambda svid: svid.hint)
    ]
    return _some(found)


def validated(message: pb.ValidateJWTSVIDResponse) -> SpiffeId:
    """Read whose token a ``ValidateJWTSVIDResponse`` says it was."""
    return _spiffe_id(message.spiffe_id)


def _present(value: V) -> V:
    if not value:
        raise SdkError("response_invalid", "an empty mandatory field")
    return value


def _some(found: list[T]) -> tuple[T, ...]:
    if not found:
        raise SdkError("response_invalid", "no identity")
    return tuple(found)


def _spiffe_id(text: str) -> SpiffeId:
    try:
        return SpiffeId.parse_workload(text)
    except IdentifierError as error:
        raise SdkError("response_invalid", "spiffe_id") from error


def _bundles(found: Mapping[str, V]) -> Mapping[TrustDomain, V]:
    if not found:
        raise SdkError("response_invalid", "no bundle")
    try:
        return MappingProxyType({TrustDomain.parse(uri): _present(bundle) for uri, bundle in found.items()})
    except IdentifierError as error:
        raise SdkError("response_invalid", "trust domain of a bundle") from error


def _with_hints(svids: Iterable[T], hint_of: Callable[[T], str]) -> Iterable[tuple[T, str]]:
    """Pair each SVID with its hint; of equal hints the first one counts (R-WA-14)."""
    seen: set[str] = set()
    for svid in svids:
        hint = hint_of(svid)
        yield svid, "" if hint in seen else hint
        seen.add(hint)
