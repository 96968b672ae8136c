"""What the authorization server decides on: the memory of its process, a request, and the client that made it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, TypeAlias

import msgspec

from aims.authentication.liveness import Named, names_of
from aims.authorization.form import Form
from aims.clock import Clock, IdSource
from aims.credentials.model import Fence
from aims.credentials.x509_svid import X509Svid
from aims.identifiers import SpiffeId, TrustDomain
from aims.policy.tables import Tables
from aims.provisioning.authority.signing import Authority
from aims.provisioning.instances import Standing
from aims.provisioning.registry.memory import Registry
from aims.provisioning.registry.model import Workload
from aims.provisioning.stages import Policy
from aims.storage.reading import StopRow
from aims.storage.write import Name, StopKind

Method: TypeAlias = Literal["spiffe_x509", "spiffe_jwt"]


class Memory(Protocol):
    """What one process knows. ``stops`` holds every stop up to ``seq``, the number of the feed that was read."""

    @property
    def trust_domain(self) -> TrustDomain: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def ids(self) -> IdSource: ...
    @property
    def registry(self) -> Registry: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def authority(self) -> Authority: ...
    @property
    def stops(self) -> Mapping[Name, StopRow]: ...
    @property
    def seq(self) -> int: ...
    @property
    def current(self) -> bool:
        """Whether the feed was lately read to its head: else stops may be missing, and nothing may be decided."""
        ...


class Submission(msgspec.Struct, frozen=True, gc=False):
    """A POST as it came: nothing in it is parsed. ``peer`` is what the mTLS handshake verified, None elsewhere.

    ``target_uri`` is the endpoint's own URL on this listener, never what the client says it is.
    """

    body: bytes
    content_type: str | None
    query: bool
    dpop: tuple[str, ...]
    authorization: bool
    attestation: bool
    peer: X509Svid | None
    target_uri: str
    listener: str

    def __repr__(self) -> str:
        return f"Submission({self.target_uri})"


class Request(msgspec.Struct, frozen=True, gc=False):
    """A submission whose form was read."""

    form: Form
    sent: Submission


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """An agent that authenticated. ``expires`` (Unix seconds) is the end of its credential.

    ``certificate`` is the thumbprint of its certificate, or None; ``jkt`` that of the key that its assertion is bound
    to, or None.
    """

    workload: Workload
    id: str
    method: Method
    fence: Fence
    expires: float
    certificate: str | None = None
    jkt: str | None = None

    @property
    def spiffe_id(self) -> SpiffeId:
        return self.workload.spiffe_id

    @property
    def names(self) -> tuple[Name, ...]:
        """Everything whose stop ends its credential."""
        return _names(self.id, self.fence.instance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """A request of an authenticated client, with one moment of everything that a grant is computed from."""

    form: Form
    client: Client
    standing: Standing
    tables: Tables
    registry: Registry
    trust_domain: TrustDomain
    stops: Mapping[Name, StopRow]
    seen: int
    ids: IdSource
    now: float


def dead(names: Iterable[Name], epoch: int, stops: Mapping[Name, StopRow]) -> Name | None:
    """Return the first name by which a stop ends something issued at ``epoch``, None if nothing does."""
    if stops:
        for name in names:
            stop = stops.get(name)
            if stop is not None and (stop.blocked or epoch < stop.seq):
                return name
    return None


@lru_cache(maxsize=4096)
def _names(spiffe_id: str, instance: str) -> tuple[Name, ...]:
    return stored(names_of(spiffe_id, instance=instance))


_KINDS: Mapping[str, StopKind] = {kind: kind for kind in ("agent", "person", "grant", "node", "instance")}


# The names of a token are the same in each of its uses.
@lru_cache(maxsize=4096)
def stored(names: tuple[Named, ...]) -> tuple[Name, ...]:
    """Return names in the form that the store fences."""
    return tuple(dict.fromkeys(Name(_KINDS[name.kind], name.id) for name in names))
