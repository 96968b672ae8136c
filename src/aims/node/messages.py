"""The lines of the server's stream, as values: what this node may issue, whom it believes, and what was stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from aims.attestation import UNMEASURED, AttestationError, LaunchProfile, Selector, parse_selectors
from aims.authentication.liveness import MAX_STOPS
from aims.credentials.bundle import Bundle
from aims.credentials.errors import CredentialError
from aims.errors import AimsError
from aims.identifiers import IdentifierError, SpiffeId, TrustDomain
from aims.jose import JoseError
from aims.jose.strict_json import read_object
from aims.node.approvals import Approved
from aims.node.errors import NodeError

MAX_ENTRIES: Final = 100_000

Number = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=86_400)]
StopKey: TypeAlias = tuple[str, str]
"""Kind and id of what was stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the server may issue on this node; lifetimes in seconds, 0 for the policy's."""

    id: str
    spiffe_id: SpiffeId
    agent: str
    selectors: frozenset[Selector]
    profile: LaunchProfile | None
    launch_uids: frozenset[int]
    x509_ttl: int
    jwt_ttl: int
    hint: str
    active: bool

    @property
    def launched(self) -> bool:
        """Whether the workload must have been started by the node."""
        return any(selector.type == "launch" for selector in self.selectors)

    def approved(self) -> Approved | None:
        """Return what this entry lets the launcher start; None where its profile is not the one that it demands."""
        if self.profile is None:
            profile: LaunchProfile | Literal["unmeasured"] = "unmeasured"
            demanded = UNMEASURED
        else:
            profile, demanded = self.profile, self.profile.selector()
        if not self.active or demanded not in self.selectors:
            return None
        return Approved(profile=profile, launch_uids=self.launch_uids, spiffe_id=self.spiffe_id)


@dataclass(frozen=True, slots=True)
class Stop:
    """The last stop or resumption of one name, with its number in the change feed."""

    key: StopKey
    seq: int
    blocked: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """What the node passes on: as the server sent it, and the two numbers that the node itself needs, in seconds."""

    document: Mapping[str, Any]
    max_stale: float
    heartbeat: float


@dataclass(frozen=True, slots=True)
class FullState:
    seq: int
    entries: tuple[Entry, ...]
    bundle: Bundle
    stops: tuple[Stop, ...]
    settings: Settings


@dataclass(frozen=True, slots=True)
class EntriesChanged:
    seq: int
    entries: tuple[Entry, ...]
    removed: frozenset[str]


@dataclass(frozen=True, slots=True)
class BundleChanged:
    bundle: Bundle


@dataclass(frozen=True, slots=True)
class Stopped:
    stop: Stop


@dataclass(frozen=True, slots=True)
class Heartbeat:
    seq: int


Message: TypeAlias = FullState | EntriesChanged | BundleChanged | Stopped | Heartbeat


def read(line: bytes, trust_domain: TrustDomain) -> Message:
    """Read one line of the stream of a server of ``trust_domain``.

    Raises: NodeError ``server_answer``.
    """
    try:
        document = read_object(line)
        kind = _KINDS[str(document.pop("type", ""))]
        return msgspec.convert(document, kind, strict=True).value(trust_domain)
    except KeyError as error:
        raise NodeError("server_answer", "a line of unknown type") from error
    except (msgspec.ValidationError, JoseError, AttestationError, CredentialError, IdentifierError) as error:
        detail = error.code if isinstance(error, AimsError) else str(error)
        raise NodeError("server_answer", detail[:200]) from error


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class _Entry(_Strict, frozen=True):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    spiffe_id: str
    agent: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    selectors: list[str]
    profile: dict[str, Any] | None
    launch_uids: list[int]
    x509_ttl: Seconds
    jwt_ttl: Seconds
    hint: Annotated[str, msgspec.Meta(max_length=1024)]
    state: Literal["active", "suspended"]

    def value(self, trust_domain: TrustDomain) -> Entry:
        spiffe_id = SpiffeId.parse_workload(self.spiffe_id)
        if not spiffe_id.is_member_of(trust_domain):
            raise NodeError("server_answer", "an entry of another trust domain")
        return Entry(
            id=self.id,
            spiffe_id=spiffe_id,
            agent=self.agent,
            selectors=parse_selectors(self.selectors),
            profile=None if self.profile is None else _profile(self.profile),
            launch_uids=frozenset(self.launch_uids),
            x509_ttl=self.x509_ttl,
            jwt_ttl=self.jwt_ttl,
            hint=self.hint,
            active=self.state == "active",
        )


class _Stop(_Strict, frozen=True):
    kind: Literal["agent", "person", "grant", "node", "instance"]
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    seq: Number
    blocked: bool

    def value(self, _: TrustDomain) -> Stopped:
        return Stopped(Stop((self.kind, self.id), self.seq, self.blocked))


class _State(_Strict, frozen=True):
    seq: Number
    entries: Annotated[list[_Entry], msgspec.Meta(max_length=MAX_ENTRIES)]
    bundle: dict[str, Any]
    stops: Annotated[list[_Stop], msgspec.Meta(max_length=MAX_STOPS)]
    settings: dict[str, Any]

    def value(self, trust_domain: TrustDomain) -> FullState:
        return FullState(
            self.seq,
            tuple(entry.value(trust_domain) for entry in self.entries),
            _bundle(self.bundle, trust_domain),
            tuple(stop.value(trust_domain).stop for stop in self.stops),
            _settings(self.settings, trust_domain),
        )


class _Entries(_Strict, frozen=True):
    seq: Number
    set: Annotated[list[_Entry], msgspec.Meta(max_length=MAX_ENTRIES)]
    removed: Annotated[list[str], msgspec.Meta(max_length=MAX_ENTRIES)]

    def value(self, trust_domain: TrustDomain) -> EntriesChanged:
        entries = tuple(entry.value(trust_domain) for entry in self.set)
        return EntriesChanged(self.seq, entries, frozenset(self.removed))


class _Bundle(_Strict, frozen=True):
    seq: Number
    bundle: dict[str, Any]

    def value(self, trust_domain: TrustDomain) -> BundleChanged:
        return BundleChanged(_bundle(self.bundle, trust_domain))


class _Heartbeat(_Strict, frozen=True):
    seq: Number

    def value(self, _: TrustDomain) -> Heartbeat:
        return Heartbeat(self.seq)


_KINDS: Final[Mapping[str, type[_State | _Entries | _Bundle | _Stop | _Heartbeat]]] = {
    "state": _State,
    "entries": _Entries,
    "bundle": _Bundle,
    "stop": _Stop,
    "heartbeat": _Heartbeat,
}


def bundle_of(document: Mapping[str, Any], trust_domain: TrustDomain) -> Bundle:
    """Read a bundle that the server sent; one that believes nobody is refused.

    Raises: NodeError ``server_answer``.
    """
    try:
        return _bundle(document, trust_domain)
    except CredentialError as error:
        raise NodeError("server_answer", error.code) from error


def _bundle(document: Mapping[str, Any], trust_domain: TrustDomain) -> Bundle:
    bundle = Bundle.parse(trust_domain, msgspec.json.encode(document))
    if not bundle.x509_authorities:
        raise NodeError("server_answer", "a bundle without authorities")
    return bundle


def _profile(document: Mapping[str, Any]) -> LaunchProfile:
    octets = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return LaunchProfile.parse(octets.encode("utf-8"))


def _settings(document: Mapping[str, Any], trust_domain: TrustDomain) -> Settings:
    max_stale, heartbeat = document.get("max_stale"), document.get("heartbeat")
    if document.get("trust_domain") != trust_domain.name:
        raise NodeError("server_answer", "settings of another trust domain")
    if type(max_stale) is not int or type(heartbeat) is not int or not 0 < heartbeat < max_stale <= 3600:
        raise NodeError("server_answer", "max_stale or heartbeat")
    return Settings(document, float(max_stale), float(heartbeat))
