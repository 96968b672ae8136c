"""Tables, rows and statements of the registry.

Uniqueness is the database's: ``workload`` keeps every identifier and name that was ever given, so of any number of
concurrent registrations exactly one succeeds, and a retired row goes on holding its name. Updates name the revision
that was read, so that two administrators never overwrite each other unseen.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import sqlalchemy as sa

from aims.attestation import LaunchProfile, Selector
from aims.identifiers import SpiffeId
from aims.provisioning.registry.model import Entry, Kind, Node, NodeState, Owner, State, Workload
from aims.storage.schema import Number, metadata
from aims.storage.write import Change, Effect

owner = sa.Table(
    "owner",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("contact", sa.String(256), nullable=False),
    sa.Column("created", Number, nullable=False),
)

workload = sa.Table(
    "workload",
    metadata,
    sa.Column("spiffe_id", sa.String(2048), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("name", sa.String(63), nullable=False, unique=True),
    sa.Column("owner", sa.String(63), sa.ForeignKey("owner.name"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("profile", sa.Text()),
    sa.Column("launch_uids", sa.Text(), nullable=False),
    sa.Column("created", Number, nullable=False),
    sa.Column("revision", Number, nullable=False),
)
"""Agents and services, the retired ones too: rows are never deleted."""

node = sa.Table(
    "node",
    metadata,
    sa.Column("id", sa.String(63), primary_key=True),
    sa.Column("spiffe_id", sa.String(2048), nullable=False, unique=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("selectors", sa.Text(), nullable=False),
    sa.Column("created", Number, nullable=False),
    sa.Column("last_seen", Number, nullable=False),
)

entry = sa.Table(
    "entry",
    metadata,
    sa.Column("id", sa.String(26), primary_key=True),
    sa.Column("spiffe_id", sa.String(2048), sa.ForeignKey("workload.spiffe_id"), nullable=False),
    sa.Column("selectors", sa.Text(), nullable=False),
    sa.Column("nodes", sa.Text(), nullable=False),
    sa.Column("node_selectors", sa.Text(), nullable=False),
    sa.Column("x509_ttl", Number, nullable=False),
    sa.Column("jwt_ttl", Number, nullable=False),
    sa.Column("hint", sa.String(128), nullable=False),
    sa.Column("revision", Number, nullable=False),
)

LAUNCHES: Final = "launch"

uid_use = sa.Table(
    "uid_use",
    metadata,
    sa.Column("uid", Number, primary_key=True, autoincrement=False),
    sa.Column("used_by", sa.String(26), nullable=False),
)
"""Which uids tell a workload apart: ``used_by`` is that entry's id, or ``launch`` where launched programs run or an
entry names the uid beside its launch. A uid is never both."""

_INSERT_OWNER: Final = sa.insert(owner)
_INSERT_WORKLOAD: Final = sa.insert(workload)
_UPDATE_WORKLOAD: Final = (
    sa.update(workload)
    .where(workload.c.spiffe_id == sa.bindparam("of_spiffe_id"), workload.c.revision == sa.bindparam("of_revision"))
    .values(
        state=sa.bindparam("new_state"),
        profile=sa.bindparam("new_profile"),
        launch_uids=sa.bindparam("new_launch_uids"),
        revision=sa.bindparam("new_revision"),
    )
)
_INSERT_ENTRY: Final = sa.insert(entry)
_UPDATE_ENTRY: Final = (
    sa.update(entry)
    .where(entry.c.id == sa.bindparam("of_id"), entry.c.revision == sa.bindparam("of_revision"))
    .values(
        selectors=sa.bindparam("new_selectors"),
        nodes=sa.bindparam("new_nodes"),
        node_selectors=sa.bindparam("new_node_selectors"),
        x509_ttl=sa.bindparam("new_x509_ttl"),
        jwt_ttl=sa.bindparam("new_jwt_ttl"),
        hint=sa.bindparam("new_hint"),
        revision=sa.bindparam("new_revision"),
    )
)
_DELETE_ENTRY: Final = sa.delete(entry).where(
    entry.c.id == sa.bindparam("of_id"), entry.c.revision == sa.bindparam("of_revision")
)
_INSERT_NODE: Final = sa.insert(node)
_UPDATE_NODE: Final = (
    sa.update(node)
    .where(node.c.id == sa.bindparam("of_id"), node.c.state != NodeState.BANNED.value)
    .values(selectors=sa.bindparam("new_selectors"))
)
_BAN_NODE: Final = (
    sa.update(node)
    .where(node.c.id == sa.bindparam("of_id"), node.c.state != NodeState.BANNED.value)
    .values(state=NodeState.BANNED.value)
)
_JOIN_NODE: Final = (
    sa.update(node)
    .where(node.c.id == sa.bindparam("of_id"), node.c.state != NodeState.BANNED.value)
    .values(state=NodeState.ACTIVE.value, last_seen=sa.bindparam("new_last_seen"))
)
_INSERT_UID: Final = sa.insert(uid_use)
_LAUNCH_UID: Final = sa.insert(uid_use).from_select(
    ["uid", "used_by"],
    sa.select(sa.bindparam("new_uid", type_=Number), sa.literal(LAUNCHES, sa.String(26), literal_execute=False)).where(
        ~sa.exists().where(uid_use.c.uid == sa.bindparam("of_uid", type_=Number))
    ),
)
_SHARE_UID: Final = (
    sa.update(uid_use)
    .where(uid_use.c.uid == sa.bindparam("of_uid"), uid_use.c.used_by == LAUNCHES)
    .values(used_by=LAUNCHES)
)
_FREE_UID: Final = sa.delete(uid_use).where(uid_use.c.used_by == sa.bindparam("of_entry"))


def insert_owner(value: Owner) -> Effect:
    """A new owner; a name that exists refuses the Write."""
    row = {"name": value.name, "kind": value.kind, "contact": value.contact, "created": value.created}
    return Effect(_INSERT_OWNER, row, must_match=True)


def insert_workload(value: Workload) -> Effect:
    """A new agent or service; an identifier or name that was ever given refuses the Write."""
    row = {
        "spiffe_id": str(value.spiffe_id),
        "kind": value.kind.value,
        "name": value.name,
        "owner": value.owner,
        "state": value.state.value,
        "profile": _profile_text(value.profile),
        "launch_uids": _texts(value.launch_uids),
        "created": value.created,
        "revision": value.revision,
    }
    return Effect(_INSERT_WORKLOAD, row, must_match=True)


def update_workload(before: Workload, after: Workload) -> Effect:
    """Replace state, profile and launch uids of what was read; its revision must be the next one.

    Suspending, resuming and retiring go through this statement too. They belong into one Write with the ``Stop`` of
    the workload's name (see ``changed``), so that nothing issued before works on.
    """
    row = {
        "of_spiffe_id": str(before.spiffe_id),
        "of_revision": before.revision,
        "new_state": after.state.value,
        "new_profile": _profile_text(after.profile),
        "new_launch_uids": _texts(after.launch_uids),
        "new_revision": after.revision,
    }
    return Effect(_UPDATE_WORKLOAD, row, must_match=True)


def insert_entry(value: Entry) -> Effect:
    """A new entry; its workload must exist."""
    row = {"id": value.id, "spiffe_id": str(value.spiffe_id), "revision": value.revision} | _entry_columns(value)
    return Effect(_INSERT_ENTRY, row, must_match=True)


def update_entry(before: Entry, after: Entry) -> Effect:
    """Replace an entry that was read."""
    row = {f"new_{name}": column for name, column in _entry_columns(after).items()}
    row |= {"of_id": before.id, "of_revision": before.revision, "new_revision": after.revision}
    return Effect(_UPDATE_ENTRY, row, must_match=True)


def delete_entry(value: Entry) -> Effect:
    """Delete an entry that was read."""
    return Effect(_DELETE_ENTRY, {"of_id": value.id, "of_revision": value.revision}, must_match=True)


def insert_node(value: Node) -> Effect:
    """A new node."""
    row = {
        "id": value.id,
        "spiffe_id": str(value.spiffe_id),
        "state": value.state.value,
        "selectors": _selector_texts(value.selectors),
        "created": value.created,
        "last_seen": value.last_seen,
    }
    return Effect(_INSERT_NODE, row, must_match=True)


def update_node(value: Node) -> Effect:
    """Replace the selectors of a node that is not banned."""
    row = {"of_id": value.id, "new_selectors": _selector_texts(value.selectors)}
    return Effect(_UPDATE_NODE, row, must_match=True)


def ban_node(node_id: str) -> Effect:
    """Ban a node for good; the Write that does so carries the ``Stop`` of its name."""
    return Effect(_BAN_NODE, {"of_id": node_id}, must_match=True)


def join_node(node_id: str, now: int) -> Effect:
    """Note that a node joined or renewed; a banned one refuses the Write.

    The feed does not carry it: whether a node may be issued to depends on its certificate and on bans, not on this.
    """
    return Effect(_JOIN_NODE, {"of_id": node_id, "new_last_seen": now}, must_match=True)


def use_uids(value: Entry, owner_of: Workload) -> tuple[Effect, ...]:
    """Hold the uids of a new entry: alone without ``launch``, else together with other launches."""
    if value.launch is None:
        rows = ({"uid": uid, "used_by": value.id} for uid in sorted(value.uids))
        return tuple(Effect(_INSERT_UID, row, must_match=True) for row in rows)
    uids = sorted(value.uids | frozenset(owner_of.launch_uids))
    return (
        *(Effect(_LAUNCH_UID, {"new_uid": uid, "of_uid": uid}) for uid in uids),
        *(Effect(_SHARE_UID, {"of_uid": uid}, must_match=True) for uid in uids),
    )


def free_uids(value: Entry) -> Effect:
    """Give back the uids that the entry held alone; those of launches stay shared."""
    return Effect(_FREE_UID, {"of_entry": value.id})


def changed(kind: str, key: str, value: Owner | Workload | Node | Entry | None) -> Change:
    """The line of the change feed that carries the new value, None for deleted."""
    return Change(kind, key, msgspec.json.encode(value))


class Rows(msgspec.Struct, frozen=True):
    """One consistent snapshot of the registry."""

    owners: tuple[Owner, ...]
    workloads: tuple[Workload, ...]
    nodes: tuple[Node, ...]
    entries: tuple[Entry, ...]


def read(connection: sa.Connection) -> Rows:
    """Read everything, inside the caller's transaction."""
    return Rows(
        owners=tuple(Owner(**row._mapping) for row in connection.execute(sa.select(owner))),  # noqa: SLF001  SQLAlchemy's public name
        workloads=tuple(_workload(row) for row in connection.execute(sa.select(workload))),
        nodes=tuple(_node(row) for row in connection.execute(sa.select(node))),
        entries=tuple(_entry(row) for row in connection.execute(sa.select(entry))),
    )


def read_nodes(connection: sa.Connection) -> tuple[Node, ...]:
    """Read the nodes by id, with when they last joined or renewed, which memory does not know."""
    return tuple(_node(row) for row in connection.execute(sa.select(node).order_by(node.c.id)))


def _workload(row: sa.Row[Any]) -> Workload:
    return Workload(
        kind=Kind(row.kind),
        name=row.name,
        spiffe_id=SpiffeId.parse(row.spiffe_id),
        owner=row.owner,
        state=State(row.state),
        profile=None if row.profile is None else LaunchProfile.parse(row.profile.encode("utf-8")),
        launch_uids=msgspec.json.decode(row.launch_uids, type=tuple[int, ...]),
        created=row.created,
        revision=row.revision,
    )


def _node(row: sa.Row[Any]) -> Node:
    return Node(
        id=row.id,
        spiffe_id=SpiffeId.parse(row.spiffe_id),
        state=NodeState(row.state),
        selectors=_selectors(row.selectors),
        created=row.created,
        last_seen=row.last_seen,
    )


def _entry(row: sa.Row[Any]) -> Entry:
    return Entry(
        id=row.id,
        spiffe_id=SpiffeId.parse(row.spiffe_id),
        selectors=_selectors(row.selectors),
        nodes=msgspec.json.decode(row.nodes, type=frozenset[str]),
        node_selectors=_selectors(row.node_selectors),
        x509_ttl=row.x509_ttl,
        jwt_ttl=row.jwt_ttl,
        hint=row.hint,
        revision=row.revision,
    )


def _entry_columns(value: Entry) -> dict[str, Any]:
    return {
        "selectors": _selector_texts(value.selectors),
        "nodes": _texts(sorted(value.nodes)),
        "node_selectors": _selector_texts(value.node_selectors),
        "x509_ttl": value.x509_ttl,
        "jwt_ttl": value.jwt_ttl,
        "hint": value.hint,
    }


def _profile_text(profile: LaunchProfile | None) -> str | None:
    return None if profile is None else profile.canonical().decode("utf-8")


def _selector_texts(selectors: frozenset[Selector]) -> str:
    return _texts(sorted(map(str, selectors)))


def _selectors(text: str) -> frozenset[Selector]:
    return frozenset(map(Selector.parse, msgspec.json.decode(text, type=tuple[str, ...])))


def _texts(values: object) -> str:
    return msgspec.json.encode(values).decode("utf-8")
