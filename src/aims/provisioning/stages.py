"""The stages through which every request for a credential goes, and the list of them.

Each is a small function that fills in one part of the application or refuses it:

    1. match     the entry exists, is bound to the node that asks, and its workload is active (T1)
    2. identify  the instance is one of that node
    3. appraise  the evidence is fresh, of a kind that the entry demands, and shows every selector
    4. decide    the policy permits this credential in this posture
    5. limit     the life is the lowest of entry, policy, hard limit and the end of the signing key

They read one moment of registry, policy and authority and do not wait, so nothing changes between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Protocol

from aims.attestation import UNMEASURED, Separation
from aims.credentials.model import Fence
from aims.errors import AimsError
from aims.keys import Purpose
from aims.policy.engine import Engine
from aims.policy.question import Decision, Entity, Question
from aims.policy.rows import CREDENTIAL_LIMITS, Credential
from aims.policy.tables import Tables
from aims.provisioning.authority.signing import Authority
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.evidence import MAX_AGE, MAX_AHEAD, Evidence
from aims.provisioning.registry.memory import Registry
from aims.provisioning.registry.model import Entry, Node, NodeState, State, Workload

_KEYS: Final[Mapping[Credential, Purpose]] = {
    "x509-svid": Purpose.X509_CA,
    "wit": Purpose.WIT_SVID,
    "jwt-svid": Purpose.JWT_SVID,
}
SEPARATIONS: Final = frozenset(each.value for each in Separation)
"""The postures that a node may report; the policy must know them too."""
_RESOURCES: Final = {name: Entity("Resource", name, {"kind": "credential"}) for name in _KEYS}


class Policy(Protocol):
    """The policy in force."""

    @property
    def engine(self) -> Engine: ...
    @property
    def tables(self) -> Tables: ...


@dataclass(frozen=True, slots=True)
class Grounds:
    """What every stage decides on: one moment of registry, policy and authority."""

    registry: Registry
    policy: Policy
    authority: Authority
    now: int


@dataclass(slots=True, kw_only=True)
class Application:
    """A request for credentials on its way through the stages, which fill in what follows ``credentials``."""

    node_id: str
    entry_id: str
    instance: str
    evidence: Evidence
    credentials: tuple[Credential, ...]
    node: Node = field(init=False)
    entry: Entry = field(init=False)
    workload: Workload = field(init=False)
    fence: Fence = field(init=False)
    decision: Decision = field(init=False)
    lifetime: int = 0


def match(application: Application, grounds: Grounds) -> None:
    """Find the entry and hold it against the node that asks, by the name in that node's certificate alone."""
    registry = grounds.registry
    node = registry.node(application.node_id)
    if node.state is NodeState.BANNED:
        raise ProvisioningError("node_banned", node.id)
    entry = registry.entry(application.entry_id)
    if not entry.is_bound_to(node):
        raise ProvisioningError("node_not_bound", f"entry {entry.id} on node {node.id}")
    workload = registry.workload_by_id(entry.spiffe_id)
    if workload.state is not State.ACTIVE:
        retired = workload.state is State.RETIRED
        raise ProvisioningError("identity_retired" if retired else "identity_suspended", workload.name)
    application.node, application.entry, application.workload = node, entry, workload


def identify(application: Application, grounds: Grounds) -> None:
    """Take the instance if it begins with the node's own name, and join it with the number of the feed."""
    node_id, _, rest = application.instance.partition(":")
    if node_id != application.node.id or len(rest) != 26:
        raise ProvisioningError("instance_malformed", repr(application.instance[:100]))
    try:
        application.fence = Fence(application.instance, grounds.registry.seq)
    except AimsError as error:
        raise ProvisioningError("instance_malformed", str(error)) from error


def appraise(application: Application, grounds: Grounds) -> None:
    """Hold the evidence against the entry: fresh, from the attestor that the entry names, every selector shown."""
    evidence, entry = application.evidence, application.entry
    age = grounds.now - evidence.collected_at
    if not -MAX_AHEAD <= age <= MAX_AGE:
        raise ProvisioningError("evidence_stale", f"{age} s old")
    if entry.launch is not None and evidence.kind != "launch":
        raise ProvisioningError("evidence_mismatch", f"the entry demands launch, not {evidence.kind}")
    missing = entry.selectors - evidence.selectors
    if missing:
        raise ProvisioningError("evidence_mismatch", "not shown: " + ", ".join(sorted(map(str, missing))[:4]))
    if evidence.posture not in SEPARATIONS or evidence.posture not in grounds.policy.tables.postures:
        raise ProvisioningError("posture_unknown", repr(evidence.posture[:100]))


def decide(application: Application, grounds: Grounds) -> None:
    """Ask the policy for each credential; all must be permitted."""
    workload = application.workload
    agent, node, posture = str(workload.spiffe_id), str(application.node.spiffe_id), application.evidence.posture
    for name in application.credentials:
        application.decision = _decision(grounds.policy.engine, agent, workload.owner, node, posture, name)
        if not application.decision.allow:
            raise ProvisioningError("policy_refused", f"{application.decision.code}: {name}")


def limit(application: Application, grounds: Grounds) -> None:
    """Cut the life to the lowest of all limits; each kind of credential must leave at least a second.

    A program that nobody measured also has the limits of the posture ``unmeasured``, whatever else keeps it apart.
    """
    entry, tables = application.entry, grounds.policy.tables
    postures = {application.evidence.posture} | ({UNMEASURED.value} if entry.launch == UNMEASURED else set())
    limits = []
    for name in application.credentials:
        own = entry.jwt_ttl if name == "jwt-svid" else entry.x509_ttl
        limits += [
            own or CREDENTIAL_LIMITS[name],
            CREDENTIAL_LIMITS[name],
            *(_seconds(tables, name, posture) for posture in postures),
            grounds.authority.ends(_KEYS[name]) - grounds.now,
        ]
    application.lifetime = min(limits)
    if application.lifetime < 1:
        raise ProvisioningError("lifetime", f"{application.lifetime} s")


# Both are pure: one bundle gives one answer. Asking anew for each renewal would cost as much as a signature.
@lru_cache(maxsize=4096)
def _decision(  # noqa: PLR0917  the key of the cache
    engine: Engine, agent: str, owner: str, node: str, posture: str, name: Credential
) -> Decision:
    return engine.decide(
        Question(
            principal=Entity("Agent", agent, {"owner": owner}),
            action="issue",
            resource=_RESOURCES[name],
            context={"node": node, "posture": posture},
        )
    )


@lru_cache(maxsize=256)
def _seconds(tables: Tables, name: Credential, posture: str) -> int:
    return tables.lifetime(name, posture).seconds


STAGES: Final[tuple[Callable[[Application, Grounds], None], ...]] = (match, identify, appraise, decide, limit)
