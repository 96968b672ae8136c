"""Decisions about the registry. Each returns a ``Plan``: nothing has happened before its Write is committed.

Whether the caller may administer has been decided before; ``Cause`` carries that decision into the record. What is
decided here is whether the result may stand: names, namespaces of the policy, what entries demand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec

from aims.attestation import UNMEASURED, LaunchProfile, Selector
from aims.audit.record import recorder
from aims.clock import Clock, IdSource
from aims.identifiers import SpiffeId
from aims.policy.tables import Tables
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry import store
from aims.provisioning.registry.memory import Registry, Value
from aims.provisioning.registry.model import SERVER, Entry, Kind, Node, NodeState, Owner, State, Workload, workload_id
from aims.provisioning.registry.rules import check_entry
from aims.storage.intent import Plan
from aims.storage.write import Change, Effect, Name, Outcome, Record, Stop, Verdict, Write

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Who asked for a change and why, in the members of the audit record.

    ``operator`` is {role, uid, user}, ``decision`` what the policy said {effect, policy_digest, rules}.
    """

    operator: Mapping[str, Any]
    decision: Mapping[str, Any]
    request_id: str
    reason: str = ""

    @property
    def member(self) -> dict[str, str]:
        """The record's ``cause``."""
        who = str(self.operator.get("user") or self.operator["role"])
        return {"admin": who} | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What an administrator asks an entry to be."""

    selectors: frozenset[Selector]
    nodes: frozenset[str] = frozenset()
    node_selectors: frozenset[Selector] = frozenset()
    x509_ttl: int = 0
    jwt_ttl: int = 0
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What an administrator asks an agent or service to be; without ``nodes`` it gets no entry yet."""

    kind: Kind
    name: str
    owner: str
    spiffe_id: SpiffeId | None = None
    profile: LaunchProfile | None = None
    launch_uids: tuple[int, ...] = ()
    nodes: frozenset[str] = frozenset()
    x509_ttl: int = 0
    jwt_ttl: int = 0


@dataclass(frozen=True, slots=True)
class Registered:
    """A new agent or service with its first entry."""

    workload: Workload
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Also:
    """What a layer above has happen in the same Write, and the record's ``details`` about it."""

    effects: tuple[Effect, ...] = ()
    changes: tuple[Change, ...] = ()
    details: Mapping[str, str | int | bool | None] | None = None


@dataclass(slots=True)
class _Draft:
    """Effects and changes of one Write, gathered."""

    effects: list[Effect] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def put(self, effect: Effect, kind: str, key: str, value: Value | None, stop: Stop | None = None) -> None:
        self.effects.append(effect)
        self.changes.append(replace(store.changed(kind, key, value), stop=stop))


class RegistryService:
    """Registers, approves, changes and bans, by the registry in memory and the tables of the policy in force."""

    def __init__(self, registry: Registry, tables: Callable[[], Tables], clock: Clock, ids: IdSource) -> None:
        self._registry = registry
        self._tables = tables
        self._clock = clock
        self._ids = ids

    def register_owner(self, *, name: str, kind: str, contact: str, cause: Cause) -> Plan[Owner]:
        """Register the person (``person``) or team (``team``) that answers for agents.

        Raises: ProvisioningError ``name_malformed``, ``owner_malformed``; on commit ``name_taken``.
        """
        owner = Owner(name=name, kind=kind, contact=contact, created=self._now())
        draft = _Draft()
        draft.put(store.insert_owner(owner), "owner", owner.name, owner)
        record = self._record("admin.action", "owner.register", f"owner:{name}", cause, after=owner)
        return self._plan(draft, record, owner, "name_taken")

    def register(self, wanted: Registration, cause: Cause) -> Plan[Registered]:
        """Register an agent or a service and, where nodes are named, the entry that lets them launch it.

        Without ``profile`` that entry says ``launch:unmeasured``. Of concurrent registrations of a name one succeeds;
        a name that is live, suspended or retired is never given again.

        Raises: ProvisioningError ``name_malformed``, ``name_reserved``, ``name_taken``, ``owner_unknown``,
            ``launch_uids`` and what ``check_entry`` says; PolicyError ``identifier``; on commit ``name_taken``.
        """
        registry = self._registry
        spiffe_id = workload_id(registry.trust_domain, wanted.kind, wanted.name, wanted.spiffe_id)
        if wanted.name == SERVER:
            raise ProvisioningError("name_reserved", wanted.name)
        if registry.is_taken(wanted.name, spiffe_id):
            raise ProvisioningError("name_taken", str(spiffe_id))
        registry.owner(wanted.owner)
        self._tables().identifier(wanted.kind.value, spiffe_id)
        workload = Workload(
            kind=wanted.kind,
            name=wanted.name,
            spiffe_id=spiffe_id,
            owner=wanted.owner,
            profile=wanted.profile,
            launch_uids=wanted.launch_uids,
            created=self._now(),
        )
        draft = _Draft()
        draft.put(store.insert_workload(workload), "workload", str(spiffe_id), workload)
        entry = None
        if wanted.nodes:
            demand = Demand(
                selectors=frozenset({_launch(wanted.profile)}),
                nodes=wanted.nodes,
                x509_ttl=wanted.x509_ttl,
                jwt_ttl=wanted.jwt_ttl,
            )
            entry = self._new_entry(draft, workload, demand)
        record = self._record("identity.register", f"{wanted.kind}.register", str(spiffe_id), cause, after=workload)
        return self._plan(draft, record, Registered(workload, entry), "name_taken")

    def approve(
        self, *, name: str, profile: LaunchProfile | None, cause: Cause, launch_uids: tuple[int, ...] | None = None
    ) -> Plan[Workload]:
        """Replace the approved launch (None: unmeasured) and, if given, who may ask for it.

        Entries that demanded the old profile demand the new one. Identities that were issued live on to their end.

        Raises: ProvisioningError ``identity_unknown``, ``identity_retired``, and what ``check_entry`` says; on commit
            ``changed``.
        """
        before = self._living(name)
        after = replace(
            before,
            profile=profile,
            launch_uids=before.launch_uids if launch_uids is None else launch_uids,
            revision=before.revision + 1,
        )
        draft = _Draft()
        draft.put(store.update_workload(before, after), "workload", str(after.spiffe_id), after)
        for entry in self._registry.entries_of(before):
            if entry.launch is None:
                continue
            selectors = entry.selectors
            if entry.launch == _launch(before.profile):
                selectors = selectors - {entry.launch} | {_launch(profile)}
            new = replace(entry, selectors=selectors, revision=entry.revision + 1)
            check_entry(new, after, self._registry.live_entries())
            draft.put(store.update_entry(entry, new), "entry", new.id, new)
            draft.effects.extend(store.use_uids(new, after))
        record = self._record("identity.approve", f"{before.kind}.approve", str(before.spiffe_id), cause, before, after)
        return self._plan(draft, record, after, "changed")

    def create_entry(self, *, name: str, demand: Demand, cause: Cause) -> Plan[Entry]:
        """Bind an agent or service to selectors and nodes.

        Raises: ProvisioningError ``identity_unknown``, ``identity_retired`` and what ``Entry`` and ``check_entry`` say;
            on commit ``entry_uid_shared``.
        """
        workload = self._living(name)
        draft = _Draft()
        entry = self._new_entry(draft, workload, demand)
        record = self._entry_record("entry.create", entry, cause, None, entry)
        return self._plan(draft, record, entry, "entry_uid_shared")

    def update_entry(self, *, entry_id: str, demand: Demand, cause: Cause) -> Plan[Entry]:
        """Replace what an entry demands. Raises: as ``create_entry``, ``entry_unknown``; on commit ``changed``."""
        before = self._registry.entry(entry_id)
        workload = self._living(self._registry.workload_by_id(before.spiffe_id).name)
        after = _entry(before.id, workload, demand, before.revision + 1)
        check_entry(after, workload, self._registry.live_entries())
        draft = _Draft()
        draft.put(store.update_entry(before, after), "entry", after.id, after)
        draft.effects += (store.free_uids(before), *store.use_uids(after, workload))
        return self._plan(draft, self._entry_record("entry.update", after, cause, before, after), after, "changed")

    def delete_entry(self, *, entry_id: str, cause: Cause) -> Plan[Entry]:
        """Delete an entry: nothing is issued by it any more. Raises: ``entry_unknown``; on commit ``changed``."""
        entry = self._registry.entry(entry_id)
        draft = _Draft()
        draft.put(store.delete_entry(entry), "entry", entry.id, None)
        draft.effects.append(store.free_uids(entry))
        return self._plan(draft, self._entry_record("entry.delete", entry, cause, entry, None), entry, "changed")

    def ban_node(self, *, node_id: str, cause: Cause, also: Also = Also()) -> Plan[Node]:
        """Ban a node for good: nothing is issued on it, and everything issued on it is dead at once.

        Raises: ProvisioningError ``node_unknown``, ``node_banned``; on commit ``changed``.
        """
        before = self._registry.node(node_id)
        if before.state is NodeState.BANNED:
            raise ProvisioningError("node_banned", node_id)
        after = replace(before, state=NodeState.BANNED)
        draft = _Draft()
        stop = Stop(Name("node", node_id), blocked=True)
        draft.put(store.ban_node(node_id), "node", node_id, after, stop)
        draft.effects += also.effects
        draft.changes += also.changes
        record = self._record("node.ban", "node.ban", str(before.spiffe_id), cause, before, after, also.details)
        return self._plan(draft, record, after, "changed")

    # --- parts

    def _new_entry(self, draft: _Draft, workload: Workload, demand: Demand) -> Entry:
        entry = _entry(self._ids.new(), workload, demand, 1)
        check_entry(entry, workload, self._registry.live_entries())
        draft.put(store.insert_entry(entry), "entry", entry.id, entry)
        draft.effects.extend(store.use_uids(entry, workload))
        return entry

    def _living(self, name: str) -> Workload:
        workload = self._registry.workload(name)
        if workload.state is State.RETIRED:
            raise ProvisioningError("identity_retired", name)
        return workload

    def _now(self) -> int:
        return int(self._clock.now())

    def _entry_record(
        self, action: str, entry: Entry, cause: Cause, before: Entry | None, after: Entry | None
    ) -> Record:
        resource = str(entry.spiffe_id)
        return self._record("identity.change", action, resource, cause, before, after, {"entry": entry.id})

    def _record(  # noqa: PLR0917  one line per record, read side by side
        self,
        kind: str,
        action: str,
        resource: str,
        cause: Cause,
        before: Value | None = None,
        after: Value | None = None,
        details: Mapping[str, str | int | bool | None] | None = None,
    ) -> Record:
        return recorder(
            refuse="admin.refuse",
            type=kind,
            outcome="success",
            time=self._clock.now(),
            id=self._ids.new(),
            resource=resource,
            action=action,
            decision=cause.decision,
            request_id=cause.request_id,
            operator=cause.operator,
            cause=cause.member,
            prev_state_digest=digest(before),
            new_state_digest=digest(after),
            details=details,
        )

    def _plan(self, draft: _Draft, record: Record, value: T, conflict: str) -> Plan[T]:
        write = Write(record=record, effects=tuple(draft.effects), changes=tuple(draft.changes))
        return Plan(write, lambda outcome: settled(outcome, value, conflict))


def state_change(registry: Registry, workload: Workload, state: State) -> tuple[tuple[Effect, ...], tuple[Change, ...]]:
    """Return what suspends, resumes or retires a workload; the caller adds the record and its own effects.

    The change carries the stop: suspended and retired names are blocked, a resumed one is not, but what was issued
    before stays dead. Retiring also ends the entries, and gives back the uids that they held alone.

    Raises: ProvisioningError ``identity_retired`` for a retired workload, ``changed`` for the state that it has.
    """
    if workload.state is State.RETIRED:
        raise ProvisioningError("identity_retired", workload.name)
    if workload.state is state:
        raise ProvisioningError("changed", f"{workload.name} is {state}")
    after = replace(workload, state=state, revision=workload.revision + 1)
    stop = Stop(Name("agent", str(workload.spiffe_id)), blocked=state is not State.ACTIVE)
    draft = _Draft()
    draft.put(store.update_workload(workload, after), "workload", str(workload.spiffe_id), after, stop)
    for entry in registry.entries_of(workload) if state is State.RETIRED else ():
        draft.put(store.delete_entry(entry), "entry", entry.id, None)
        draft.effects.append(store.free_uids(entry))
    return tuple(draft.effects), tuple(draft.changes)


def settled(outcome: Outcome, value: T, conflict: str) -> T:
    """Return ``value`` if the Write was committed.

    Raises: ProvisioningError with the reason ``conflict``, ``stopped``, or ``store_refused`` for any other verdict.
    """
    if outcome.verdict is Verdict.COMMITTED:
        return value
    reason = {Verdict.CONFLICT: conflict, Verdict.STOPPED: "stopped"}.get(outcome.verdict, "store_refused")
    raise ProvisioningError(reason, f"{outcome.verdict}: {outcome.culprit}")


def digest(value: Value | None) -> str | None:
    """Return the audit's digest of a registry value, None for None.

    An owner's contact is left out: a digest of something so short would give it away.
    """
    if isinstance(value, Owner):
        value = replace(value, contact="-")
    return None if value is None else hashlib.sha256(msgspec.json.encode(value)).hexdigest()


def _launch(profile: LaunchProfile | None) -> Selector:
    return UNMEASURED if profile is None else profile.selector()


def _entry(entry_id: str, workload: Workload, demand: Demand, revision: int) -> Entry:
    return Entry(
        id=entry_id,
        spiffe_id=workload.spiffe_id,
        selectors=demand.selectors,
        nodes=demand.nodes,
        node_selectors=demand.node_selectors,
        x509_ttl=demand.x509_ttl,
        jwt_ttl=demand.jwt_ttl,
        hint=demand.hint,
        revision=revision,
    )
