"""What an entry must demand, and which entries may not stand side by side. Pure.

A uid, a path or a digest alone never tells two programs of one uid apart. So an entry demands ``launch`` (the node
started the workload and recognises it by its pidfd) or a uid that no other entry uses. The second half of that rule
is also a key in the database, so that two servers cannot break it together; see ``store.uid_use``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aims.attestation import Selector
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry.model import Entry, Workload

ATTESTED: Final = frozenset({"launch", "unix"})
"""The types of selectors that something here attests. An entry with another type could never be appraised."""


def check_entry(entry: Entry, workload: Workload, others: Iterable[tuple[Entry, Workload]]) -> None:
    """Refuse an entry of ``workload`` that tells nothing apart or collides with one of ``others``.

    ``others`` are all other entries with their workloads; those of retired workloads do not count.

    Raises: ProvisioningError ``entry_selector_type``, ``entry_selectors``, ``launch_uids``, ``entry_uid_shared``,
        ``entry_overlap``.
    """
    check_selectors(entry, workload)
    for other, theirs in others:
        if other.id == entry.id:
            continue
        # 3. a uid that stands for a workload belongs to it alone; so does one under which others are launched
        if entry.launch is None and (entry.uids & (other.uids | _launched_under(other, theirs))):
            raise ProvisioningError("entry_uid_shared", f"entry {other.id}")
        if other.launch is None and (other.uids & (entry.uids | _launched_under(entry, workload))):
            raise ProvisioningError("entry_uid_shared", f"entry {other.id}")
        # 4. no process may satisfy entries of two owners
        if theirs.owner != workload.owner:
            mine, yours = _facts(entry, workload), _facts(other, theirs)
            if mine <= yours or yours <= mine:
                raise ProvisioningError("entry_overlap", f"entry {other.id}")


def check_selectors(entry: Entry, workload: Workload) -> None:
    """Refuse an entry by itself. Raises: as ``check_entry``, without what concerns others."""
    # 1. only what is attested, and one launch at most: two can never be true of one process
    if any(selector.type not in ATTESTED for selector in entry.selectors):
        raise ProvisioningError("entry_selector_type")
    if sum(selector.type == "launch" for selector in entry.selectors) > 1 or len(entry.uids) > 1:
        raise ProvisioningError("entry_selectors", "two values of which one process has only one")
    # 2. something that tells the workload apart
    if entry.launch is None and not entry.uids:
        raise ProvisioningError("entry_selectors")
    if entry.launch is not None and not workload.launch_uids:
        raise ProvisioningError("launch_uids")


def _launched_under(entry: Entry, workload: Workload) -> frozenset[int]:
    return frozenset(workload.launch_uids) if entry.launch is not None else frozenset()


def _facts(entry: Entry, workload: Workload) -> frozenset[Selector]:
    # A node launches a program *as* somebody and vouches for that name: equal profiles of two names never meet.
    if entry.launch is None:
        return entry.selectors
    return entry.selectors | {Selector("launch", f"as:{workload.name}")}
