"""The administrator's calls on the registry: owners, agents and services, entries, nodes."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, Literal

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from aims.attestation import LaunchProfile, Selector
from aims.identifiers import SpiffeId
from aims.monitoring.handed_on import HandedOn, ending, given
from aims.provisioning.join import JoinService
from aims.provisioning.join_token import JoinToken
from aims.provisioning.registry import store
from aims.provisioning.registry.model import Entry, Kind, Node, NodeState, Owner, Workload
from aims.provisioning.registry.service import Also, Demand, Registered, Registration, RegistryService
from aims.server.admin import AdminCall, AdminRoute, Body, Nothing, Text, reading
from aims.server.admin_monitoring import cause_of
from aims.server.core import Core
from aims.storage.intent import Plan
from aims.storage.write import Name

Texts = Annotated[tuple[Text, ...], msgspec.Meta(max_length=64)]
Uids = Annotated[tuple[int, ...], msgspec.Meta(max_length=64)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=24 * 3600)]
MOST_PROFILE: Final = 200_000


class RegisterOwner(Body, frozen=True):
    """``contact`` is how the owner is reached; it is never recorded."""

    name: Text
    kind: Literal["person", "team"] = "team"
    contact: Annotated[str, msgspec.Meta(max_length=256)] = ""


class Register(Body, frozen=True):
    """An agent or service; ``profile`` is canonical JSON, or left out for a launch that nobody measured."""

    name: Text
    owner: Text
    kind: Literal["agent", "service"] = "agent"
    spiffe_id: Text | None = None
    profile: Annotated[str, msgspec.Meta(max_length=MOST_PROFILE)] | None = None
    launch_uids: Uids = ()
    nodes: Texts = ()
    x509_ttl: Seconds = 0
    jwt_ttl: Seconds = 0


class Approve(Body, frozen=True):
    """Another launch for an agent that is registered."""

    name: Text
    profile: Annotated[str, msgspec.Meta(max_length=MOST_PROFILE)] | None = None
    launch_uids: Uids | None = None


class CreateEntry(Body, frozen=True):
    """Bind an agent or service to selectors, on nodes that are named or that have selectors."""

    name: Text
    selectors: Texts
    nodes: Texts = ()
    node_selectors: Texts = ()
    x509_ttl: Seconds = 0
    jwt_ttl: Seconds = 0
    hint: Annotated[str, msgspec.Meta(max_length=128)] = ""


class EntryId(Body, frozen=True):
    id: Text


class NodeToken(Body, frozen=True):
    """``lifetime`` in seconds, 0 for what the policy says. ``selectors`` null: a known node keeps those that it has."""

    node: Text
    lifetime: Annotated[int, msgspec.Meta(ge=0, le=3600)] = 0
    selectors: Texts | None = ()


class NodeId(Body, frozen=True):
    node: Text


class RegistryCalls:
    """The administrator's calls over ``core``."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._service = RegistryService(core.registry, lambda: core.tables, core.clock, core.ids)
        self._handed_on = HandedOn(core.database, core.clock, core.ids)
        self._joins = JoinService(core.registry, lambda: core.tables, lambda: core.authority, core.clock, core.ids)

    def routes(self) -> tuple[AdminRoute, ...]:
        """Every route of the registry."""
        return (
            AdminRoute("owner.register", "POST", "/admin/v1/owners", RegisterOwner, True, self._register_owner),
            AdminRoute("owner.list", "GET", "/admin/v1/owners", Nothing, False, self._list_owners),
            AdminRoute("agent.register", "POST", "/admin/v1/agents", Register, True, self._register),
            AdminRoute("agent.list", "GET", "/admin/v1/agents", Nothing, False, self._list_workloads),
            AdminRoute("agent.approve", "POST", "/admin/v1/agents/approve", Approve, True, self._approve),
            AdminRoute("entry.create", "POST", "/admin/v1/entries", CreateEntry, True, self._create_entry),
            AdminRoute("entry.list", "GET", "/admin/v1/entries", Nothing, False, self._list_entries),
            AdminRoute("entry.delete", "POST", "/admin/v1/entries/delete", EntryId, True, self._delete_entry),
            AdminRoute("node.token", "POST", "/admin/v1/nodes/token", NodeToken, True, self._node_token),
            AdminRoute("node.list", "GET", "/admin/v1/nodes", Nothing, False, self._list_nodes),
            AdminRoute("node.ban", "POST", "/admin/v1/nodes/ban", NodeId, True, self._ban_node, self._finish_ban),
        )

    async def _register_owner(self, call: AdminCall, body: RegisterOwner) -> Plan[object]:
        plan = self._service.register_owner(
            name=body.name, kind=body.kind, contact=body.contact or "none", cause=call.cause
        )
        return plan.shaped(_owner)

    async def _register(self, call: AdminCall, body: Register) -> Plan[object]:
        wanted = Registration(
            kind=Kind(body.kind),
            name=body.name,
            owner=body.owner,
            spiffe_id=SpiffeId.parse(body.spiffe_id) if body.spiffe_id else None,
            profile=_profile(body.profile),
            launch_uids=tuple(sorted(set(body.launch_uids))),
            nodes=frozenset(body.nodes),
            x509_ttl=body.x509_ttl,
            jwt_ttl=body.jwt_ttl,
        )
        return self._service.register(wanted, call.cause).shaped(_registered)

    async def _approve(self, call: AdminCall, body: Approve) -> Plan[object]:
        uids = None if body.launch_uids is None else tuple(sorted(set(body.launch_uids)))
        plan = self._service.approve(name=body.name, profile=_profile(body.profile), launch_uids=uids, cause=call.cause)
        return plan.shaped(_workload)

    async def _create_entry(self, call: AdminCall, body: CreateEntry) -> Plan[object]:
        demand = Demand(
            selectors=_selectors(body.selectors),
            nodes=frozenset(body.nodes),
            node_selectors=_selectors(body.node_selectors),
            x509_ttl=body.x509_ttl,
            jwt_ttl=body.jwt_ttl,
            hint=body.hint,
        )
        return self._service.create_entry(name=body.name, demand=demand, cause=call.cause).shaped(_entry)

    async def _delete_entry(self, call: AdminCall, body: EntryId) -> Plan[object]:
        return self._service.delete_entry(entry_id=body.id, cause=call.cause).shaped(_entry)

    async def _node_token(self, call: AdminCall, body: NodeToken) -> Plan[object]:
        plan = self._joins.create_token(
            node_id=body.node,
            url=self._core.public_url,
            ca=hashlib.sha256(self._core.authority.tls_ca.public_bytes(Encoding.DER)).digest(),
            lifetime=body.lifetime,
            selectors=None if body.selectors is None else _selectors(body.selectors),
            cause=call.cause,
        )
        return plan.shaped(_join_token)

    async def _ban_node(self, call: AdminCall, body: NodeId) -> Plan[object]:
        node = Name("node", body.node)
        if self._core.registry.node(body.node).state is NodeState.BANNED:
            # whoever repeats a ban that did not come to its end has it finished, beside the refusal
            await self._finish_ban(call, body)
        handed_on = await self._core.database.read(lambda connection: given(connection, node))
        below = ending(handed_on, call.now)
        also = Also(below.effects, below.changes, below.details or None)
        return self._service.ban_node(node_id=body.node, cause=call.cause, also=also).shaped(_node)

    async def _finish_ban(self, call: AdminCall, body: NodeId) -> None:
        await self._handed_on.finish(Name("node", body.node), cause_of(call))

    async def _list_owners(self, call: AdminCall, _: Nothing) -> Plan[object]:
        return reading(call, "owner.list", [_owner(owner) for owner in self._core.registry.owners])

    async def _list_workloads(self, call: AdminCall, _: Nothing) -> Plan[object]:
        return reading(call, "agent.list", [_workload(workload) for workload in self._core.registry.workloads])

    async def _list_entries(self, call: AdminCall, _: Nothing) -> Plan[object]:
        return reading(call, "entry.list", [_entry(entry) for entry in self._core.registry.entries])

    async def _list_nodes(self, call: AdminCall, _: Nothing) -> Plan[object]:
        nodes = await self._core.database.read(store.read_nodes)
        return reading(call, "node.list", [_node(node) for node in nodes])


def _profile(text: str | None) -> LaunchProfile | None:
    return None if text is None else LaunchProfile.parse(text.encode("utf-8", "surrogatepass"))


def _selectors(texts: tuple[str, ...]) -> frozenset[Selector]:
    return frozenset(Selector.parse(text) for text in texts)


def _owner(owner: Owner) -> dict[str, Any]:
    return {"name": owner.name, "kind": owner.kind, "created": owner.created}


def _workload(workload: Workload) -> dict[str, Any]:
    return {
        "name": workload.name,
        "kind": workload.kind.value,
        "spiffe_id": str(workload.spiffe_id),
        "owner": workload.owner,
        "state": workload.state.value,
        "launch": str(workload.profile.selector()) if workload.profile else "launch:unmeasured",
        "launch_uids": list(workload.launch_uids),
        "created": workload.created,
    }


def _registered(registered: Registered) -> dict[str, Any]:
    return _workload(registered.workload) | {"entry": registered.entry.id if registered.entry else None}


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "spiffe_id": str(entry.spiffe_id),
        "selectors": sorted(map(str, entry.selectors)),
        "nodes": sorted(entry.nodes),
        "node_selectors": sorted(map(str, entry.node_selectors)),
        "x509_ttl": entry.x509_ttl,
        "jwt_ttl": entry.jwt_ttl,
        "hint": entry.hint,
    }


def _node(node: Node) -> dict[str, Any]:
    return {
        "id": node.id,
        "spiffe_id": str(node.spiffe_id),
        "state": node.state.value,
        "selectors": sorted(map(str, node.selectors)),
        "created": node.created,
        "last_seen": node.last_seen,
    }


def _join_token(token: JoinToken) -> dict[str, Any]:
    return {"node": token.node, "url": token.url, "token": token.encode()}
