"""The tree, its files and its signed note, each against the words of its specification."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from aims.audit import merkle
from aims.audit.checkpoint import Checkpoint, VerifierKey
from aims.audit.errors import AuditError
from aims.audit.tiles import LogFolder, TileReader, TileWriter, tile_path, unpack

# The inputs and roots that the Certificate Transparency project tests RFC 6962 implementations with.
INPUTS = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


class _Leaves:
    """A tree in memory whose every node is computed from the definition in RFC 6962 section 2.1."""

    def __init__(self, count: int) -> None:
        self.leaves = [merkle.leaf_hash(str(n).encode()) for n in range(count)]

    def node(self, level: int, index: int) -> bytes:
        begin, width = index << level, 1 << level
        assert begin + width <= len(self.leaves)
        return self.root(begin, begin + width)

    def root(self, begin: int, end: int) -> bytes:
        if end - begin == 1:
            return self.leaves[begin]
        split = 1
        while split * 2 < end - begin:
            split *= 2
        return merkle.node_hash(self.root(begin, begin + split), self.root(begin + split, end))


TREE = _Leaves(300)


def test_roots_are_those_of_the_rfc_6962_test_vectors() -> None:
    assert hashlib.sha256(b"").hexdigest() == ROOTS[0]
    tree = merkle.CompactRange()
    assert tree.root().hex() == ROOTS[0]
    for size, (entry, root) in enumerate(zip(INPUTS, ROOTS[1:], strict=True), 1):
        tree.append(merkle.leaf_hash(entry))
        assert (tree.size, tree.root().hex()) == (size, root)


@given(st.integers(1, 300), st.data())
def test_inclusion_is_shown_for_every_leaf_and_for_nothing_else(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    root = TREE.root(0, size)
    proof = merkle.inclusion_proof(TREE, index, size)
    leaf = TREE.leaves[index]
    assert len(proof) <= (size - 1).bit_length()
    assert merkle.verify_inclusion(leaf, index, size, proof, root)
    other = data.draw(st.integers(-1, size).filter(lambda n: n != index))
    assert not merkle.verify_inclusion(leaf, other, size, proof, root)
    assert not merkle.verify_inclusion(merkle.leaf_hash(b"x"), index, size, proof, root)
    assert not merkle.verify_inclusion(leaf, index, size, [*proof, bytes(32)], root)
    assert not merkle.verify_inclusion(leaf, index, size, proof, bytes(32))
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        assert not merkle.verify_inclusion(leaf, index, size, proof[:at] + proof[at + 1 :], root)
        assert not merkle.verify_inclusion(leaf, index, size, [*proof[:at], bytes(32), *proof[at + 1 :]], root)
        assert not merkle.verify_inclusion(leaf, index, size, [*proof[:at], b"short", *proof[at + 1 :]], root)


@given(st.integers(1, 300), st.data())
def test_consistency_is_shown_for_every_earlier_size_and_for_nothing_else(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new))
    old_root, new_root = TREE.root(0, old), TREE.root(0, new)
    proof = merkle.consistency_proof(TREE, old, new)
    assert merkle.verify_consistency(old, new, proof, old_root, new_root)
    assert not merkle.verify_consistency(old, new, proof, bytes(32), new_root)
    assert not merkle.verify_consistency(old, new, proof, old_root, bytes(32))
    assert not merkle.verify_consistency(old, new, [*proof, bytes(32)], old_root, new_root)
    assert not merkle.verify_consistency(0, new, proof, old_root, new_root)
    if proof:
        assert not merkle.verify_consistency(old, new, proof[:-1], old_root, new_root)
        assert not merkle.verify_consistency(old, new, [bytes(32), *proof[1:]], old_root, new_root)


def test_proofs_outside_the_tree_are_refused() -> None:
    for index, size in ((-1, 3), (3, 3), (0, 0)):
        with pytest.raises(AuditError, match="proof_malformed"):
            merkle.inclusion_proof(TREE, index, size)
    for old, new in ((0, 3), (4, 3), (-1, 3)):
        with pytest.raises(AuditError, match="proof_malformed"):
            merkle.consistency_proof(TREE, old, new)
    with pytest.raises(AuditError, match="proof_malformed"):
        merkle.CompactRange(3, [bytes(32)])


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4))
def test_files_give_back_entries_nodes_and_the_edge(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    path = tmp_path_factory.mktemp("log")
    folder = LogFolder(path)
    folder.prepare()
    size = 0
    for count in sizes:
        writer = TileWriter(folder, size)  # resumes from the files alone each time
        for n in range(size, size + count):
            writer.append(b"entry %d" % n)
        writer.flush()
        writer.tidy()
        size += count
        assert writer.size == size
        reader = TileReader(folder, size)
        assert list(reader.entries()) == [b"entry %d" % n for n in range(size)]
        leaves = [merkle.leaf_hash(b"entry %d" % n) for n in range(size)]
        tree = merkle.CompactRange(size, merkle.edge_of(reader, size))
        assert tree.root() == merkle.root_of(leaves)
        index = size // 2
        assert merkle.verify_inclusion(
            leaves[index], index, size, merkle.inclusion_proof(reader, index, size), tree.root()
        )
    for level, index in ((0, size), (9, size >> 9), (30, 0)):
        with pytest.raises(AuditError):
            reader.node(level, index)
    assert list(reader.entries(1, 1)) == []
    with pytest.raises(AuditError, match="proof_malformed"):
        list(reader.entries(0, size + 1))


def test_paths_are_those_of_tlog_tiles() -> None:
    assert tile_path(0, 0) == "tile/0/000"
    assert tile_path(1, 67, 8) == "tile/1/067.p/8"
    assert tile_path(0, 1_234_067) == "tile/0/x001/x234/067"
    assert tile_path(None, 1_234_067, 255) == "tile/entries/x001/x234/067.p/255"


@given(st.binary(max_size=200), st.integers(0, 5))
def test_a_bundle_is_read_in_one_form_only(data: bytes, count: int) -> None:
    try:
        entries = unpack(data, count)
    except AuditError:
        return
    assert len(entries) == count
    assert b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries) == data


def test_files_that_are_gone_or_have_another_length_are_refused(tmp_path: Path) -> None:
    folder = LogFolder(tmp_path)
    folder.prepare()
    writer = TileWriter(folder, 0)
    writer.append(b"x")
    writer.flush()
    with pytest.raises(AuditError, match="tile_missing"):
        TileReader(folder, 2).node(0, 0)
    (tmp_path / "tile/0/000.p/1").write_bytes(bytes(31))
    with pytest.raises(AuditError, match="tile_malformed"):
        TileReader(folder, 1).node(0, 0)
    (tmp_path / "tile/0/000.p/1").write_bytes(bytes(32 * 257))
    with pytest.raises(AuditError, match="tile_malformed"):
        TileReader(folder, 1).node(0, 0)
    for _ in range(254):
        writer.append(b"x")
    with pytest.raises(AuditError, match="record_too_large"):
        writer.append(bytes(65_536))


PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = VerifierKey("local.test/audit", PRIVATE.public_key().public_bytes_raw())


def test_a_verification_key_has_the_form_of_signed_note() -> None:
    # The example key of the specification's reference implementation (golang.org/x/mod/sumdb/note).
    example = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert str(VerifierKey.parse(example)) == example
    assert str(VerifierKey.parse(str(KEY))) == str(KEY)
    for wrong in ("", "a+b", example + "\n", example[:-1], example.replace("c74f20a3", "c74f20a4"),
                  example.replace("+AR", "+BR"), " " + example, example.upper()):  # fmt: skip
        with pytest.raises(AuditError, match="note_key"):
            VerifierKey.parse(wrong)
    with pytest.raises(AuditError, match="note_key"):
        VerifierKey("with+plus", bytes(32))


@given(st.integers(0, 2**53 - 1), st.binary(min_size=32, max_size=32))
def test_a_signed_checkpoint_reads_back(size: int, root: bytes) -> None:
    checkpoint = Checkpoint("local.test/audit", size, root)
    note = checkpoint.signed(KEY, PRIVATE.sign)
    assert Checkpoint.verified(note, KEY) == checkpoint
    witness = "\u2014 witness.example ".encode() + base64.b64encode(bytes(76)) + b"\n"
    assert Checkpoint.verified(note + witness, KEY) == checkpoint


@given(st.data())
def test_a_changed_note_is_refused(data: st.DataObject) -> None:
    note = Checkpoint("local.test/audit", 304, bytes(32)).signed(KEY, PRIVATE.sign)
    at = data.draw(st.integers(0, len(note) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "double"]))
    octet = data.draw(st.integers(0, 255))
    changed = {
        "flip": note[:at] + bytes([octet]) + note[at + 1 :],
        "cut": note[:at],
        "insert": note[:at] + bytes([octet]) + note[at:],
        "double": note[:at] + note,
    }[kind]
    if changed == note:
        return
    with pytest.raises(AuditError) as refused:
        Checkpoint.verified(changed, KEY)
    assert refused.value.reason in {"note_malformed", "note_signer", "note_signature"}


def test_a_note_of_another_log_or_signer_is_refused() -> None:
    other = Ed25519PrivateKey.generate()
    with pytest.raises(AuditError, match="signer_mismatch"):
        Checkpoint("local.test/audit", 1, bytes(32)).signed(KEY, other.sign)
    elsewhere = Checkpoint("another.test/log", 1, bytes(32)).signed(KEY, PRIVATE.sign)
    with pytest.raises(AuditError, match="another log"):
        Checkpoint.verified(elsewhere, KEY)
    stranger = VerifierKey("local.test/audit", other.public_key().public_bytes_raw())
    with pytest.raises(AuditError, match="note_signer"):
        Checkpoint.verified(Checkpoint("local.test/audit", 1, bytes(32)).signed(KEY, PRIVATE.sign), stranger)
    note = Checkpoint("local.test/audit", 1, bytes(32)).signed(KEY, PRIVATE.sign)
    with pytest.raises(AuditError, match="two signatures"):
        Checkpoint.verified(note + note.split(b"\n\n")[1], KEY)
    for origin, size, root in (("", 1, bytes(32)), ("a b", 1, bytes(32)), ("a", -1, bytes(32)), ("a", 1, b"")):
        with pytest.raises(AuditError, match="note_malformed"):
            Checkpoint(origin, size, root)
