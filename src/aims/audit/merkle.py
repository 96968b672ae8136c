"""The Merkle tree of RFC 6962 section 2.1, as pure functions over hashes.

A tree is never held as a whole. ``CompactRange`` is what an appender needs: the roots of the perfect subtrees on the
right edge, at most 64 hashes. Proofs ask for single nodes through ``Nodes``, which tiles can answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from aims.audit.errors import AuditError

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


class Nodes(Protocol):
    """Where proofs take hashes from."""

    def node(self, level: int, index: int) -> bytes:
        """Return the root of the perfect subtree of 2^level leaves that begins at leaf index * 2^level."""
        ...


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 ‖ entry)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 ‖ left ‖ right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class CompactRange:
    """The right edge of a growing tree: appends in amortised constant time, gives the root at any moment."""

    __slots__ = ("_edge", "size")

    def __init__(self, size: int = 0, edge: Sequence[bytes] = ()) -> None:
        """Resume at ``size`` with one hash per 1-bit of ``size``, the largest subtree first."""
        if size < 0 or len(edge) != size.bit_count():
            raise AuditError("proof_malformed", "edge does not fit the size")
        self.size = size
        self._edge = list(edge)

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        size = self.size
        while size & 1:
            leaf = node_hash(self._edge.pop(), leaf)
            size >>= 1
        self._edge.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Return the root; SHA-256 of nothing for the empty tree."""
        return _fold(self._edge)


def root_of(leaves: Iterable[bytes]) -> bytes:
    """Return the root over leaf hashes."""
    tree = CompactRange()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root()


def edge_of(nodes: Nodes, size: int) -> list[bytes]:
    """Return the roots of the perfect subtrees of a tree of ``size`` leaves, the largest first."""
    return _cover(nodes, 0, size)


def inclusion_proof(nodes: Nodes, index: int, size: int) -> list[bytes]:
    """Return the audit path of leaf ``index`` in the tree of ``size`` leaves (RFC 6962 2.1.1), from the leaf up."""
    if not 0 <= index < size:
        raise AuditError("proof_malformed", "index outside the tree")
    path: list[bytes] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append(_range_root(nodes, middle, end))
            end = middle
        else:
            path.append(_range_root(nodes, begin, middle))
            begin = middle
    path.reverse()
    return path


def consistency_proof(nodes: Nodes, old: int, new: int) -> list[bytes]:
    """Return the proof that the tree of ``new`` leaves begins with the tree of ``old`` (RFC 6962 2.1.2)."""
    if not 0 < old <= new:
        raise AuditError("proof_malformed", "sizes out of order")
    path: list[bytes] = []
    begin, end = 0, new
    whole = True  # the old tree is still the whole subtree from ``begin``: its root is known to the reader
    while end != old:
        middle = begin + _split(end - begin)
        if old <= middle:
            path.append(_range_root(nodes, middle, end))
            end = middle
        else:
            path.append(_range_root(nodes, begin, middle))
            begin, whole = middle, False
    if not whole:
        path.append(_range_root(nodes, begin, end))
    path.reverse()
    return path


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Say whether ``proof`` shows ``leaf`` at ``index`` of the tree with this size and root (RFC 9162 2.1.3.2)."""
    if not 0 <= index < size or any(len(step) != 32 for step in proof):
        return False
    node, last, seen = index, size - 1, leaf
    for step in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            seen = node_hash(step, seen)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            seen = node_hash(seen, step)
        node, last = node >> 1, last >> 1
    return last == 0 and seen == root


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Say whether ``proof`` shows that the new tree begins with the old one (RFC 9162 2.1.4.2)."""
    if not 0 < old <= new or any(len(step) != 32 for step in proof):
        return False
    if old == new:
        return not proof and old_root == new_root
    steps = list(proof) if old & (old - 1) else [old_root, *proof]
    if not steps:
        return False
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    seen_old = seen_new = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            seen_old, seen_new = node_hash(step, seen_old), node_hash(step, seen_new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            seen_new = node_hash(seen_new, step)
        node, last = node >> 1, last >> 1
    return last == 0 and seen_old == old_root and seen_new == new_root


def _split(size: int) -> int:
    """The largest power of two smaller than ``size`` (at least 2)."""
    return 1 << (size - 1).bit_length() - 1


def _cover(nodes: Nodes, begin: int, end: int) -> list[bytes]:
    """Roots of the largest perfect subtrees of [begin, end); ``begin`` is aligned to the largest of them."""
    found: list[bytes] = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        found.append(nodes.node(level, begin >> level))
        begin += 1 << level
    return found


def _range_root(nodes: Nodes, begin: int, end: int) -> bytes:
    return _fold(_cover(nodes, begin, end))


def _fold(edge: Sequence[bytes]) -> bytes:
    if not edge:
        return EMPTY_ROOT
    seen = edge[-1]
    for left in reversed(edge[:-1]):
        seen = node_hash(left, seen)
    return seen
