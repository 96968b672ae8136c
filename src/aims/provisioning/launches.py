"""What nodes report about launches: an audit record, and nothing that decides anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from aims.audit.record import inert, recorder
from aims.clock import Clock, IdSource
from aims.credentials.model import Fence
from aims.errors import AimsError
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry.memory import Registry
from aims.provisioning.registry.model import NodeState
from aims.provisioning.registry.service import settled
from aims.storage.intent import Plan
from aims.storage.write import Name, Write

MAX_DETAILS: Final = 12
MAX_DETAIL: Final = 512


def launched(
    registry: Registry,
    clock: Clock,
    ids: IdSource,
    *,
    node_id: str,
    entry_id: str,
    instance: str,
    event: Literal["start", "end", "refuse"],
    detail: Mapping[str, str | int | bool],
    request_id: str,
) -> Plan[None]:
    """Record that a node started a workload, that one ended, or that it refused to start one.

    What was refused is nobody: it names the agent that it wanted to be as the resource, and is no agent itself.
    ``detail`` is at most 12 members; texts are cut to what may stand in a record. ``posture`` and ``reason`` in it
    become the record's own members.

    The Write is fenced on the node, and that of a start also on agent and instance: a ban or stop that races wins, and
    the record is a refusal. An end and a refusal are what a stop leads to, so a stop does not silence them.

    Raises: ProvisioningError ``node_unknown``, ``node_banned``, ``entry_unknown``, ``node_not_bound``,
        ``instance_malformed``, ``request_malformed``; the answer raises ``stopped``.
    """
    node = registry.node(node_id)
    if node.state is NodeState.BANNED:
        raise ProvisioningError("node_banned", node_id)
    entry = registry.entry(entry_id)
    if not entry.is_bound_to(node):
        raise ProvisioningError("node_not_bound", f"entry {entry_id} on node {node_id}")
    try:
        if Fence(instance, 0).node != node_id:
            raise ProvisioningError("instance_malformed", "of another node")
    except AimsError as error:
        raise ProvisioningError("instance_malformed", str(error)) from error
    if len(detail) > MAX_DETAILS or any(isinstance(text, str) and len(text) > MAX_DETAIL for text in detail.values()):
        raise ProvisioningError("request_malformed", "detail")
    details: dict[str, Any] = {
        name: inert(value) if isinstance(value, str) else value for name, value in detail.items()
    }
    agent = str(entry.spiffe_id)
    refused = event == "refuse"
    record = recorder(
        refuse="node.refuse",
        type=f"launch.{event}",
        outcome="refused" if refused else "success",
        time=clock.now(),
        id=ids.new(),
        request_id=request_id,
        agent=None if refused else {"id": agent, "instance": instance},
        node=node_id,
        resource=agent,
        action=f"launch.{event}",
        decision={"effect": "deny" if refused else "permit", "reason": "reported by the node"},
        posture={"level": str(details.pop("posture", "unknown"))},
        cause={"reason": str(details.pop("reason", event))},
        details={**details, "entry": entry_id},
    )
    names: tuple[Name, ...] = (Name("node", node_id),)
    if event == "start":
        names += (Name("instance", instance), Name("agent", agent))
    write = Write(record=record, names=names, seen=registry.seq)
    return Plan(write, lambda outcome: settled(outcome, None, "changed"))
