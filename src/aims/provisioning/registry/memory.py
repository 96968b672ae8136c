"""The whole registry in memory: what every decision reads.

It begins with one consistent snapshot and follows the change feed line by line; ``seq`` is the number it has reached,
and thereby the ``epoch`` of whatever is issued from it. One event loop uses it; nothing here waits or does I/O.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
import sqlalchemy as sa

from aims.identifiers import SpiffeId, TrustDomain
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry import store
from aims.provisioning.registry.model import Entry, Node, NodeState, Owner, State, Workload
from aims.storage.feed import Event
from aims.storage.schema import feed_head

Value: TypeAlias = Owner | Workload | Node | Entry
V = TypeVar("V")

_TYPES: Final[dict[str, type[Value]]] = {"owner": Owner, "workload": Workload, "node": Node, "entry": Entry}


@dataclass(frozen=True, slots=True)
class Applied:
    """A line of the feed as the registry understood it; None stands for what was not there, or is no more.

    ``kind`` is ``owner``, ``workload``, ``node``, ``entry``, or ``reload``: everything may have changed.
    """

    seq: int
    kind: str
    id: str
    before: Value | None
    after: Value | None


class Registry:
    """Owners, workloads, nodes and entries of one trust domain, by every key that a decision asks for."""

    def __init__(self, trust_domain: TrustDomain, rows: store.Rows, seq: int) -> None:
        self.trust_domain = trust_domain
        self._watchers: list[Callable[[Applied], None]] = []
        self._begin(rows, seq)

    @classmethod
    def load(cls, connection: sa.Connection, trust_domain: TrustDomain) -> Registry:
        """Read rows and the feed's number from one snapshot: the caller's transaction."""
        return cls(trust_domain, store.read(connection), _head(connection))

    def reload(self, connection: sa.Connection) -> None:
        """Begin again from a snapshot, at the start and after a gap in the feed; watchers hear ``reload``."""
        self._begin(store.read(connection), _head(connection))
        self._tell(Applied(self.seq, "reload", "", None, None))

    def _begin(self, rows: store.Rows, seq: int) -> None:
        self.seq = seq
        self._owners = {value.name: value for value in rows.owners}
        self._workloads = {value.name: value for value in rows.workloads}
        self._by_id = {str(value.spiffe_id): value for value in rows.workloads}
        self._nodes = {value.id: value for value in rows.nodes}
        self._entries = {value.id: value for value in rows.entries}

    # --- the feed

    def apply(self, event: Event) -> None:
        """Take one line of the feed; lines of other rooms only move ``seq``. Lines already seen are passed over."""
        if event.seq <= self.seq:
            return
        self.seq = event.seq
        kind = _TYPES.get(event.kind)
        if kind is None:
            return
        after = None if event.body == b"null" else msgspec.json.decode(event.body, type=kind)
        before = self._put(event.kind, event.id, after)
        self._tell(Applied(event.seq, event.kind, event.id, before, after))

    def watch(self, watcher: Callable[[Applied], None]) -> Callable[[], None]:
        """Call ``watcher`` after each line that changed the registry; returns what ends it."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher) if watcher in self._watchers else None

    def _tell(self, applied: Applied) -> None:
        for watcher in tuple(self._watchers):
            watcher(applied)

    def _put(self, kind: str, key: str, after: Any) -> Value | None:
        if kind == "workload":
            # never deleted, so there is always a value
            self._by_id[key] = after
            return _replace(self._workloads, after.name, after)
        if kind == "owner":
            return _replace(self._owners, key, after)
        return _replace(self._nodes, key, after) if kind == "node" else _replace(self._entries, key, after)

    # --- looking up

    @property
    def owners(self) -> tuple[Owner, ...]:
        return tuple(self._owners.values())

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """Agents and services, retired ones too."""
        return tuple(self._workloads.values())

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(self._nodes.values())

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries.values())

    def owner(self, name: str) -> Owner:
        """Raises: ProvisioningError ``owner_unknown``."""
        return _found(self._owners.get(name), "owner_unknown", name)

    def workload(self, name: str) -> Workload:
        """Return an agent or service by name, in whatever state. Raises: ProvisioningError ``identity_unknown``."""
        return _found(self._workloads.get(name), "identity_unknown", name)

    def workload_by_id(self, spiffe_id: SpiffeId | str) -> Workload:
        """Return an agent or service by its whole SPIFFE ID. Raises: ProvisioningError ``identity_unknown``."""
        return _found(self._by_id.get(str(spiffe_id)), "identity_unknown", str(spiffe_id))

    def is_taken(self, name: str, spiffe_id: SpiffeId) -> bool:
        """Tell whether the name or the identifier was ever given to an agent or service."""
        return name in self._workloads or str(spiffe_id) in self._by_id

    def node(self, node_id: str) -> Node:
        """Raises: ProvisioningError ``node_unknown``."""
        return _found(self._nodes.get(node_id), "node_unknown", node_id)

    def has_node(self, node_id: str) -> bool:
        return node_id in self._nodes

    def entry(self, entry_id: str) -> Entry:
        """Raises: ProvisioningError ``entry_unknown``."""
        return _found(self._entries.get(entry_id), "entry_unknown", entry_id)

    def entries_of(self, workload: Workload) -> tuple[Entry, ...]:
        """Return the entries that give a workload its identity."""
        return tuple(entry for entry in self._entries.values() if entry.spiffe_id == workload.spiffe_id)

    def live_entries(self) -> Iterator[tuple[Entry, Workload]]:
        """Yield every entry whose workload is not retired."""
        for entry in self._entries.values():
            workload = self._by_id[str(entry.spiffe_id)]
            if workload.state is not State.RETIRED:
                yield entry, workload

    def entries_for(self, node_id: str) -> tuple[Entry, ...]:
        """Return the entries that may be issued on a node: all that it is ever told. A banned node has none.

        Raises: ProvisioningError ``node_unknown``.
        """
        node = self.node(node_id)
        if node.state is NodeState.BANNED:
            return ()
        return tuple(entry for entry, _ in self.live_entries() if entry.is_bound_to(node))

    # --- what nodes are told

    def entry_message(self, entry: Entry) -> dict[str, Any]:
        """Return the entry in the form of the node protocol."""
        workload = self._by_id[str(entry.spiffe_id)]
        profile = workload.profile
        return {
            "id": entry.id,
            "spiffe_id": str(entry.spiffe_id),
            "agent": workload.name,
            "selectors": sorted(map(str, entry.selectors)),
            "profile": None if profile is None else json.loads(profile.canonical()),
            "launch_uids": list(workload.launch_uids),
            "x509_ttl": entry.x509_ttl,
            "jwt_ttl": entry.jwt_ttl,
            "hint": entry.hint,
            "state": workload.state.value,
        }

    def difference(self, applied: Applied, node_id: str) -> tuple[tuple[Entry, ...], tuple[str, ...]] | None:
        """Return the entries to set and the ids to remove on a node after a line of the feed.

        Two empty tuples mean that the line does not concern it, None that everything has to be sent: the node itself
        changed, or the registry was loaded anew.
        """
        if applied.kind == "reload":
            return None
        if applied.kind == "node":
            return None if applied.id == node_id else ((), ())
        mine = {entry.id: entry for entry in self.entries_for(node_id)}
        if applied.kind == "workload":
            concerned = [entry for entry in self._entries.values() if str(entry.spiffe_id) == applied.id]
        elif applied.kind == "entry":
            concerned = [value for value in (applied.after or applied.before,) if isinstance(value, Entry)]
        else:
            concerned = []
        node = self.node(node_id)
        gone = tuple(
            entry.id
            for entry in concerned
            if entry.id not in mine and (entry.is_bound_to(node) or _was_bound(applied.before, node))
        )
        return tuple(mine[entry.id] for entry in concerned if entry.id in mine), gone


def _was_bound(before: Value | None, node: Node) -> bool:
    return isinstance(before, Entry) and before.is_bound_to(node)


def _replace(table: dict[str, V], key: str, after: V | None) -> V | None:
    before = table.pop(key, None)
    if after is not None:
        table[key] = after
    return before


def _head(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(feed_head.c.seq)).scalar_one())


def _found(value: V | None, reason: str, key: str) -> V:
    if value is None:
        raise ProvisioningError(reason, f"{key[:200]!r}")
    return value
