"""What agent.sock gave: frozen values made from its messages. A message that breaks its form is dropped whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from aims.authentication.liveness import DEFAULT_MAX_STALE, StopLine
from aims.identifiers import IdentifierError, SpiffeId, TrustDomain
from aims.proto import node_pb2 as pb
from aims.sdk.errors import SdkError

MAX_RESOURCES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A protected resource: the one call profile that it accepts, and who must stand behind its URL."""

    url: str
    id: str
    peer: SpiffeId
    profile: str
    audiences: frozenset[str]
    max_stale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where everything is. ``max_stale`` and ``heartbeat`` are in seconds; ``tls_ca`` is PEM."""

    trust_domain: TrustDomain
    issuer: str
    public_url: str
    mtls_url: str
    server: SpiffeId
    tls_ca: str = field(repr=False)
    resources: tuple[Resource, ...]
    max_stale: float
    heartbeat: float

    def of_peer(self, peer: SpiffeId) -> tuple[Resource, ...]:
        """Return the resources that ``peer`` serves."""
        return tuple(resource for resource in self.resources if resource.peer == peer)


@dataclass(frozen=True, slots=True)
class Everything:
    """The full state, as it was at change ``seq``."""

    seq: int
    stops: tuple[StopLine, ...]
    settings: Settings


@dataclass(frozen=True, slots=True)
class Line:
    """One line after it: a stop, or, with ``heartbeat``, that ``seq`` is the head; ``age`` is in seconds."""

    after: int
    seq: int
    stop: StopLine | None = None
    heartbeat: bool = False
    age: float = 0.0


def settings(message: pb.Settings) -> Settings:
    """Read a ``Settings`` message. Raises: SdkError ``response_invalid``."""
    if len(message.resources) > MAX_RESOURCES:
        raise SdkError("response_invalid", "too many resources")
    try:
        return Settings(
            trust_domain=TrustDomain(message.trust_domain),
            issuer=message.issuer,
            public_url=message.public_url,
            mtls_url=message.mtls_url,
            server=SpiffeId.parse_workload(message.server),
            tls_ca=message.tls_ca,
            resources=tuple(map(_resource, message.resources)),
            max_stale=stale(message.max_stale),
            heartbeat=message.heartbeat,
        )
    except IdentifierError as error:
        raise SdkError("response_invalid", error.code) from error


def everything(seq: int, stops: Iterable[pb.Stop], message: pb.Settings) -> Everything:
    """Put the parts of a full state together. Raises: SdkError ``response_invalid``."""
    return Everything(seq, tuple(map(_stop, stops)), settings(message))


def line(message: pb.WatchResponse) -> Line:
    """Read any line but a full state. Raises: SdkError ``response_invalid``."""
    kind = message.WhichOneof("line")
    if kind not in {"stop", "heartbeat", "bundles"} or message.seq < message.after:
        raise SdkError("response_invalid", "a line of the watch")
    return Line(
        after=message.after,
        seq=message.seq,
        stop=_stop(message.stop) if kind == "stop" else None,
        heartbeat=kind == "heartbeat",
        age=message.age_ms / 1000,
    )


def stale(seconds: float) -> float:
    """Return ``seconds`` as a ``max_stale``, which may only be lowered. Raises: SdkError ``response_invalid``."""
    if not math.isfinite(seconds) or seconds <= 0:
        raise SdkError("response_invalid", "max_stale")
    return min(seconds, DEFAULT_MAX_STALE)


def _resource(message: pb.Resource) -> Resource:
    return Resource(
        url=message.url,
        id=message.id,
        peer=SpiffeId.parse_workload(message.spiffe_id),
        profile=message.profile,
        audiences=frozenset(message.audiences),
        max_stale=stale(message.max_stale),
    )


def _stop(message: pb.Stop) -> StopLine:
    try:
        return StopLine(message.kind, message.id, message.seq, message.blocked)
    except ValueError as error:
        raise SdkError("response_invalid", "a stop") from error
