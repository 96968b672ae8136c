"""The values of the registry. Each exists only if it is valid; a change makes a new one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from aims.attestation import LaunchProfile, Selector
from aims.attestation.unix import MAX_ID
from aims.identifiers import SpiffeId, TrustDomain
from aims.provisioning.errors import ProvisioningError

MAX_X509_TTL: Final = 24 * 3600  # limit of an X509-SVID and a WIT
MAX_JWT_TTL: Final = 600  # a JWT-SVID with more left is refused by the authorization server
MIN_TTL: Final = 10
MAX_SELECTORS: Final = 64
MAX_NODES: Final = 256
MAX_LAUNCH_UIDS: Final = 64
MAX_HINT: Final = 128
MAX_CONTACT: Final = 256

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_ENTRY_ID = re.compile(r"[0-9a-v]{26}")
SERVER: Final = "aims"
"""The service that is the server itself: ``spiffe://TD/services/aims``."""

_OWN_TREES: Final = frozenset({"agents", "services", "nodes"})


def parse_name(text: str) -> str:
    """Return ``text`` if it is the name of an owner, agent, service or node.

    Lower case only, so that no two names differ in case alone; one path segment by construction.

    Raises: ProvisioningError ``name_malformed``.
    """
    if _NAME.fullmatch(text) is None:
        raise ProvisioningError("name_malformed", f"{text[:80]!r}")
    return text


class Kind(StrEnum):
    """What a workload is: an AI agent, or a tool or other protected resource."""

    AGENT = "agent"
    SERVICE = "service"


class State(StrEnum):
    """Life of a workload.

    ``active``: credentials are issued. ``suspended``: nothing is issued and live credentials are refused, until it is
    resumed. ``retired``: for good; the row stays as the tombstone of name and identifier.
    """

    ACTIVE = "active"
    SUSPENDED = "suspended"
    RETIRED = "retired"


class NodeState(StrEnum):
    """``expected``: a join token was made. ``active``: it has joined. ``banned``: for good."""

    EXPECTED = "expected"
    ACTIVE = "active"
    BANNED = "banned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The person or team that answers for agents. ``contact`` is a role's address, never in the audit.

    Raises: ProvisioningError ``name_malformed``, ``owner_malformed``.
    """

    name: str
    kind: str
    contact: str
    created: int

    def __post_init__(self) -> None:
        parse_name(self.name)
        if self.kind not in {"person", "team"}:
            raise ProvisioningError("owner_malformed", f"kind {self.kind[:40]!r}")
        if not 1 <= len(self.contact) <= MAX_CONTACT or not self.contact.isprintable():
            raise ProvisioningError("owner_malformed", "contact")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """An agent or a service: one name, one SPIFFE ID, for ever.

    ``profile`` is the approved launch, None for ``launch:unmeasured``; ``launch_uids``, sorted, may ask a node to
    launch it. A workload that no node launches has neither.

    Raises: ProvisioningError ``name_malformed``, ``launch_uids``; IdentifierError ``empty_path``.
    """

    kind: Kind
    name: str
    spiffe_id: SpiffeId
    owner: str
    state: State = State.ACTIVE
    profile: LaunchProfile | None = None
    launch_uids: tuple[int, ...] = ()
    created: int
    revision: int = 1

    def __post_init__(self) -> None:
        parse_name(self.name)
        parse_name(self.owner)
        SpiffeId.parse_workload(str(self.spiffe_id))
        uids = self.launch_uids
        if len(uids) > MAX_LAUNCH_UIDS or list(uids) != sorted(set(uids)):
            raise ProvisioningError("launch_uids")
        if not all(0 <= uid <= MAX_ID for uid in uids):
            raise ProvisioningError("launch_uids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A host's daemon. ``selectors`` are facts that the administrator bound to it with the join token.

    ``last_seen`` is the time of the last join or renewal, 0 before. In memory it is as old as the last other change,
    and so is ``expected`` against ``active``; ``store.read_nodes`` knows both.
    """

    id: str
    spiffe_id: SpiffeId
    state: NodeState
    selectors: frozenset[Selector] = frozenset()
    created: int
    last_seen: int = 0

    def __post_init__(self) -> None:
        parse_name(self.id)
        if len(self.selectors) > MAX_SELECTORS or any(selector.type != "node" for selector in self.selectors):
            raise ProvisioningError("entry_selector_type", "selectors of a node begin with node:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a workload must show, and where, to be given ``spiffe_id``.

    It may be issued on a node that ``nodes`` names, or that has every one of ``node_selectors`` (if there are any).
    Lifetimes are seconds, 0 for what the policy says.

    Raises: ProvisioningError ``entry_nodes``, ``entry_selectors``, ``entry_lifetime``, ``entry_hint``.
    """

    id: str
    spiffe_id: SpiffeId
    selectors: frozenset[Selector]
    nodes: frozenset[str] = frozenset()
    node_selectors: frozenset[Selector] = frozenset()
    x509_ttl: int = 0
    jwt_ttl: int = 0
    hint: str = ""
    revision: int = 1

    def __post_init__(self) -> None:
        if _ENTRY_ID.fullmatch(self.id) is None:
            raise ProvisioningError("entry_unknown", f"{self.id[:40]!r}")
        if not 1 <= len(self.selectors) <= MAX_SELECTORS:
            raise ProvisioningError("entry_selectors", f"{len(self.selectors)} selectors")
        if not 1 <= len(self.nodes) + len(self.node_selectors) <= MAX_NODES:
            raise ProvisioningError("entry_nodes")
        for node in self.nodes:
            parse_name(node)
        if any(selector.type != "node" for selector in self.node_selectors):
            raise ProvisioningError("entry_selector_type", "selectors of nodes begin with node:")
        for ttl, limit in ((self.x509_ttl, MAX_X509_TTL), (self.jwt_ttl, MAX_JWT_TTL)):
            if ttl and not MIN_TTL <= ttl <= limit:
                raise ProvisioningError("entry_lifetime", str(ttl))
        if len(self.hint) > MAX_HINT or (self.hint and not self.hint.isprintable()):
            raise ProvisioningError("entry_hint")

    def is_bound_to(self, node: Node) -> bool:
        """Tell whether the entry may be issued on ``node``."""
        return node.id in self.nodes or (bool(self.node_selectors) and self.node_selectors <= node.selectors)

    @property
    def launch(self) -> Selector | None:
        """The selector by which a node vouches for having started the workload, if the entry has one."""
        return next((selector for selector in self.selectors if selector.type == "launch"), None)

    @property
    def uids(self) -> frozenset[int]:
        """The uids that the entry names."""
        return frozenset(uid for selector in self.selectors if (uid := uid_of(selector)) is not None)


def uid_of(selector: Selector) -> int | None:
    """Return N of ``unix:uid:N``, None for another selector.

    Raises: ProvisioningError ``entry_selector_type`` for a uid that is not the plain decimal of one.
    """
    if selector.type != "unix" or not selector.value.startswith("uid:"):
        return None
    text = selector.value.removeprefix("uid:")
    if not text.isascii() or not text.isdecimal() or len(text) > 10 or str(int(text)) != text or int(text) > MAX_ID:
        raise ProvisioningError("entry_selector_type", str(selector)[:80])
    return int(text)


def workload_id(trust_domain: TrustDomain, kind: Kind, name: str, wanted: SpiffeId | None) -> SpiffeId:
    """Return the identifier of a new workload: the default path, or ``wanted`` where it takes nobody's place.

    Raises: ProvisioningError ``name_malformed``, ``name_reserved`` (another trust domain, a path in the trees of
        agents, services and nodes that is not its own).
    """
    parse_name(name)
    own = SpiffeId.build(trust_domain, f"{kind}s", name)
    if wanted is None or wanted == own:
        return own
    if wanted.trust_domain != trust_domain or not wanted.path or wanted.segments[0] in _OWN_TREES:
        raise ProvisioningError("name_reserved", str(wanted)[:200])
    return wanted
