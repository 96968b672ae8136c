"""The verifier: what was changed is named, what is missing is named, and nothing makes it crash."""

from __future__ import annotations

import ast
import base64
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.flows.audit_log import ORIGIN, LogUnderTest, forge, opened, put, record

from aims.audit import verify as program
from aims.audit.canonical import encode
from aims.audit.checkpoint import VerifierKey
from aims.audit.merkle import leaf_hash, root_of
from aims.audit.verify import INCOMPLETE, TAMPERED, UNVERIFIABLE, verify

A, B = "a" * 26, "b" * 26


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path
) -> Iterator[tuple[LogUnderTest, dict[str, bytes], bytes]]:
    """A log of 304 entries in three checkpoints, its files, and the checkpoint of its first 281 entries."""
    folder = tmp_path_factory.mktemp("verify")
    database = folder / "aims.db"
    database.write_bytes(sqlite_template.read_bytes())
    with opened(f"sqlite:///{database}", folder / "log") as log:
        sequencer = log.sequencer()
        log.commit(A, [record(n) for n in range(200)])
        sequencer.step()
        log.clock.pass_(1)
        log.commit(A, [record(n) for n in range(200, 280)])
        sequencer.step()
        remembered = (log.folder / "checkpoint").read_bytes()
        log.clock.pass_(1)
        log.commit(A, [record(n) for n in range(300, 310)])
        log.commit(B, [record(n) for n in range(400, 413)])
        assert sequencer.step().size == 304
        yield log, log.files(), remembered


@pytest.fixture
def log(made: tuple[LogUnderTest, dict[str, bytes], bytes]) -> LogUnderTest:
    put(made[0].folder, made[1])
    made[0].untouched = made[1]
    return made[0]


@pytest.fixture
def remembered(made: tuple[LogUnderTest, dict[str, bytes], bytes]) -> bytes:
    return made[2]


def test_an_untouched_log_is_consistent_and_its_tail_unwitnessed(log: LogUnderTest, remembered: bytes) -> None:
    assert (log.verify().exit, log.verify().message) == (0, "consistent, tail unwitnessed")
    since = log.verify(remembered)
    assert (since.exit, since.message) == (0, "consistent since the remembered 281 entries, tail unwitnessed")


def _offsets(length: int) -> list[int]:
    return sorted({0, 1, 2, 3, 7, length // 3, length // 2, length - 40, length - 2, length - 1} & set(range(length)))


def test_a_flipped_octet_anywhere_is_named(log: LogUnderTest) -> None:
    files = log.files()
    assert len(files) == 8
    checks = set()
    for name, data in files.items():
        for at in _offsets(len(data)):
            for bit in (0x01, 0x20, 0x80):
                changed = bytearray(data)
                changed[at] ^= bit
                (log.folder / name).write_bytes(changed)
                result = log.verify()
                assert result.exit in (TAMPERED, UNVERIFIABLE), (name, at, result)
                assert result.check
                checks.add(result.check)
                if name.startswith("tile/entries/000"):
                    offset = int.from_bytes(data[:2], "big") + 2
                    bad = 0 if at < offset else None
                    assert result.exit == TAMPERED
                    assert result.seq is not None
                    assert bad is None or result.seq == bad
                if name.startswith("tile/0/"):
                    first = 256 * int(name[7:10])
                    assert (result.check, result.seq, result.exact) == ("leaf_hash", first + at // 32, True)
        (log.folder / name).write_bytes(data)
    assert {"leaf_hash", "tile_hash", "entry_bundle", "checkpoint_form", "checkpoint_signature"} <= checks
    assert log.verify().exit == 0


def test_every_file_cut_or_lengthened_is_named(log: LogUnderTest) -> None:
    for name, data in log.files().items():
        for changed in (b"", data[:-1], data[: len(data) // 2], data + b"\x00", data + b"\x00\x02{}", data + data):
            (log.folder / name).write_bytes(changed)
            result = log.verify()
            assert result.exit in (TAMPERED, UNVERIFIABLE), (name, result)
        (log.folder / name).write_bytes(data)


def test_a_missing_file_makes_the_log_incomplete(log: LogUnderTest) -> None:
    for name, data in log.files().items():
        stale = name in ("tile/0/001.p/25", "tile/entries/001.p/25")
        (log.folder / name).unlink()
        result = log.verify()
        if name == "checkpoint":
            assert (result.exit, result.check) == (UNVERIFIABLE, "checkpoint_missing")
        elif stale:
            assert result.exit == 0
        else:
            assert (result.exit, result.check) == (INCOMPLETE, "file_missing"), name
        (log.folder / name).write_bytes(data)


@pytest.mark.parametrize(
    "name",
    ["readme", "tile/0/1", "tile/0/x000/001", "tile/00/000", "tile/0/000.p/0", "tile/0/000.p/256", "tile/a/000",
     "tile/0/001.p/048", "tile/entries/001.p", "tile", "a/b/c/d/e/f/g/h/i/j/k/l/m"],
)  # fmt: skip
def test_a_file_that_does_not_belong_there_is_named(log: LogUnderTest, name: str) -> None:
    path = log.folder / name
    if path.is_dir():
        path = path / "\udcff\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    result = log.verify()
    assert (result.exit, result.check) == (TAMPERED, "file_unexpected")
    assert result.message.isascii()


def test_a_link_or_a_pipe_is_not_read(log: LogUnderTest, tmp_path: Path) -> None:
    for name in ("tile/0/000", "checkpoint"):
        path = log.folder / name
        data = path.read_bytes()
        (tmp_path / "elsewhere").write_bytes(data)
        path.unlink()
        path.symlink_to(tmp_path / "elsewhere")
        assert log.verify().exit in (TAMPERED, UNVERIFIABLE)
        path.unlink()
        os.mkfifo(path)
        assert log.verify().exit in (TAMPERED, UNVERIFIABLE)
        path.unlink()
        path.mkdir()
        assert log.verify().exit != 0
        path.rmdir()
        path.write_bytes(data)
    assert log.verify().exit == 0


def test_a_record_replaced_reordered_or_doubled_is_named(log: LogUnderTest) -> None:
    note = log.files()["checkpoint"]
    entries = log.entries()
    other = encode({**json.loads(entries[7]), "request_id": "another"})
    changes = {
        "replaced": ([*entries[:7], other, *entries[8:]], None),
        "reordered": ([*entries[:7], entries[8], entries[7], *entries[9:]], 7),
        "doubled": ([*entries[:8], entries[7], *entries[8:-1]], 8),
        "replaced late": ([*entries[:300], encode({**json.loads(entries[300]), "action": "x"}), *entries[301:]], None),
    }
    for name, (changed, seq) in changes.items():
        forge(log, changed, log.folder)
        (log.folder / "checkpoint").write_bytes(note)
        result = log.verify()
        assert result.exit == TAMPERED, name
        if seq is not None:
            assert (result.check, result.seq) == ("entry_seq", seq), name
        else:
            assert result.check == "root"


def test_a_changed_entry_is_named_by_the_files_that_were_not_changed(log: LogUnderTest) -> None:
    name = "tile/entries/000"
    data = log.files()[name]
    at = data.index(b'"r17"')
    (log.folder / name).write_bytes(data.replace(b'"r17"', b'"r18"', 1))
    result = log.verify()
    seq = next(n for n, entry in enumerate(log_entries(data)) if b'"r17"' in entry)
    assert at > 0
    assert (result.exit, result.check, result.seq, result.exact) == (TAMPERED, "leaf_hash", seq, True)


def log_entries(bundle: bytes) -> list[bytes]:
    found = []
    while bundle:
        length = int.from_bytes(bundle[:2], "big")
        found.append(bundle[2 : 2 + length])
        bundle = bundle[2 + length :]
    return found


def test_a_cut_tail_is_named_against_a_remembered_checkpoint(log: LogUnderTest, remembered: bytes) -> None:
    newest = log.files()["checkpoint"]
    entries = log.entries()
    for left in (1, 100, 256, 280):
        forge(log, entries[:left], log.folder)
        assert log.verify().message == "consistent, tail unwitnessed"
        result = log.verify(remembered)
        assert (result.exit, result.check, result.seq) == (INCOMPLETE, "truncated", left)
    forge(log, entries[:303], log.folder)
    assert log.verify(remembered).exit == 0
    assert log.verify(newest).check == "truncated"


def test_an_older_checkpoint_over_newer_files_is_not_good(log: LogUnderTest, remembered: bytes) -> None:
    (log.folder / "checkpoint").write_bytes(remembered)
    result = log.verify()
    assert (result.exit, result.check, result.seq) == (INCOMPLETE, "beyond_checkpoint", 281)


def test_a_rewritten_history_is_named_against_a_remembered_checkpoint(log: LogUnderTest, remembered: bytes) -> None:
    entries = log.entries()
    entries[30] = encode({**json.loads(entries[30]), "request_id": "never"})
    forge(log, entries, log.folder)
    assert log.verify().exit == 0  # who holds the key can rewrite everything
    result = log.verify(remembered)
    assert (result.exit, result.check) == (TAMPERED, "remembered_root")


def test_two_checkpoints_of_one_size_cannot_both_be_good(log: LogUnderTest) -> None:
    size = 304
    other = log.sign(size, bytes(32))
    assert log.verify(other).check == "remembered_root"
    (log.folder / "checkpoint").write_bytes(other)
    assert log.verify().check == "root"


def _made(*changes: dict[str, Any]) -> list[bytes]:
    base: dict[str, Any] = {"recorded": 5, "writer": "log", "type": "log.start", "v": 1}
    numbered = [{**base, "seq": n, "writer_seq": n + 1} for n in range(len(changes))]
    return [encode({**entry, **change}) for entry, change in zip(numbered, changes, strict=True)]


@pytest.mark.parametrize(
    ("entries", "code", "check", "seq"),
    [
        (_made({}, {"recorded": 4}), TAMPERED, "recorded", 1),
        (_made({}, {"recorded": -1}), TAMPERED, "recorded", 1),
        (_made({"type": "log.stop"}), TAMPERED, "first_entry", 0),
        (_made({}, {"seq": 2}), TAMPERED, "entry_seq", 1),
        (_made({}, {"seq": "1"}), TAMPERED, "entry_seq", 1),
        (_made({}, {"seq": True}), TAMPERED, "entry_seq", 1),
        (_made({}, {"writer_seq": 1}), TAMPERED, "writer_seq", 1),
        (_made({}, {"writer_seq": 0}), TAMPERED, "writer_seq", 1),
        (_made({}, {"writer": 7}), TAMPERED, "writer_seq", 1),
        (_made({}, {"writer_seq": 3}), INCOMPLETE, "gap", 1),
        (_made({}, {"writer": "w", "writer_seq": 2}), INCOMPLETE, "gap", 1),
        (
            _made(
                {}, {"type": "log.gap", "log": {"writer": "w", "first": 1, "last": 4}}, {"writer": "w", "writer_seq": 5}
            ),
            INCOMPLETE, "log_gap", 1,
        ),
        (_made({}, {"type": "log.gap", "log": [1]}), INCOMPLETE, "log_gap", 1),
        ([*_made({}), b'{"recorded":5,"seq":1,"writer":"log", "writer_seq":2}'], TAMPERED, "entry_json", 1),
        ([*_made({}), b'{"recorded":5,"recorded":5,"seq":1,"writer":"log","writer_seq":2}'], TAMPERED, "entry_json", 1),
        ([*_made({}), b'{"recorded":5.0,"seq":1,"writer":"log","writer_seq":2}'], TAMPERED, "entry_json", 1),
        ([*_made({}), b'{"recorded":9007199254740992,"seq":1}'], TAMPERED, "entry_json", 1),
        ([*_made({}), b'{"recorded":NaN}'], TAMPERED, "entry_json", 1),
        ([*_made({}), b'{"a":"\\ud800"}'], TAMPERED, "entry_json", 1),
        ([*_made({}), b'{"a":"\xff"}'], TAMPERED, "entry_json", 1),
        ([*_made({}), b"[" * 16_000], TAMPERED, "entry_json", 1),
        ([*_made({}), b"[]"], TAMPERED, "entry_json", 1),
        ([*_made({}), b'{"a":' + b"1" * 6_000 + b"}"], TAMPERED, "entry_json", 1),
        ([*_made({}), b""], TAMPERED, "entry_bundle", 1),
        (_made({}, {"a": "x" * 16_384}), TAMPERED, "entry_bundle", 1),
    ],
)  # fmt: skip
def test_a_signed_log_that_breaks_a_rule_is_named(
    log: LogUnderTest, entries: list[bytes], code: int, check: str, seq: int
) -> None:
    forge(log, entries, log.folder)
    result = log.verify()
    assert (result.exit, result.check, result.seq) == (code, check, seq)


def test_another_key_or_a_broken_note_is_unverifiable_or_named(log: LogUnderTest) -> None:
    note = log.files()["checkpoint"]
    other = Ed25519PrivateKey.generate()
    stranger = VerifierKey(ORIGIN, other.public_key().public_bytes_raw())
    assert verify(log.folder, str(stranger), patience=0).exit == UNVERIFIABLE
    assert log.verify(b"nonsense").exit == UNVERIFIABLE
    for vkey in (
        "",
        "x",
        str(log.key)[:-1],
        str(log.key).replace("+", "+0", 1),
        "é+00000000+AAAA",
        str(log.key) + "\n",
    ):
        assert verify(log.folder, vkey, patience=0).check == "vkey"

    text, signature = note.split(b"\n\n")
    own = log.private.sign(b"another.test/log\n1\n" + base64.b64encode(bytes(32)) + b"\n")
    line = b"\xe2\x80\x94 " + ORIGIN.encode() + b" " + base64.b64encode(log.key.key_hash + own) + b"\n"
    notes = {
        "checkpoint_origin": b"another.test/log\n1\n" + base64.b64encode(bytes(32)) + b"\n\n" + line,
        "checkpoint_signature": text.replace(b"304", b"303") + b"\n\n" + signature,
        "checkpoint_form": note + signature,
        "checkpoint_signer": text + b"\n\n" + signature.replace(b"local.test", b"local.tost"),
    }
    for check, changed in notes.items():
        (log.folder / "checkpoint").write_bytes(changed)
        assert log.verify().check == check
    witness = b"\xe2\x80\x94 witness.example " + base64.b64encode(b"w" * 76) + b"\n"
    (log.folder / "checkpoint").write_bytes(note + witness)
    assert log.verify().exit == 0


def test_an_empty_log_is_incomplete(log: LogUnderTest) -> None:
    put(log.folder, {"checkpoint": log.sign(0, root_of([]))})
    assert (log.verify().exit, log.verify().check) == (INCOMPLETE, "empty")


def test_a_log_of_three_levels_verifies(log: LogUnderTest) -> None:
    base: dict[str, Any] = {"recorded": 5, "type": "log.start", "writer": "log"}
    entries = [encode({**base, "seq": n, "writer_seq": n + 1}) for n in range(65_536 + 300)]
    forge(log, entries, log.folder)
    roots = [root_of(leaf_hash(entry) for entry in entries[at : at + 256]) for at in range(0, 65_536 + 256, 256)]
    (log.folder / "tile/1/000.p/257").unlink(missing_ok=True)
    for name, hashes in (("1/000", roots[:256]), ("1/001.p/1", roots[256:]), ("2/000.p/1", [root_of(roots[:256])])):
        path = log.folder / "tile" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(hashes))
    assert log.verify().exit == 0
    path.write_bytes(bytes(32))
    result = log.verify()
    assert (result.exit, result.check, result.seq, result.exact) == (TAMPERED, "tile_hash", 0, False)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_random_damage_never_crashes_the_verifier_or_passes(log: LogUnderTest, seed: int) -> None:
    files = log.untouched
    chance = random.Random(seed)  # noqa: S311 - damage, not secrets
    name = chance.choice(sorted(set(files)))
    data = bytearray(files[name])
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0:
                del data[at : at + chance.randrange(1, 64)]
            case 1:
                data[at:at] = chance.randbytes(chance.randrange(1, 64))
            case 2:
                data[at : at + 8] = chance.randbytes(8)
            case _:
                data[at:at] = data[: chance.randrange(1, 600)]
    (log.folder / name).parent.mkdir(parents=True, exist_ok=True)
    if not (log.folder / "checkpoint").exists():
        put(log.folder, files)
    (log.folder / name).write_bytes(data)
    result = log.verify()
    (log.folder / name).write_bytes(files[name])
    assert result.check != "internal"
    assert (result.exit == 0) == (bytes(data) == files[name])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_note_and_any_entry_are_refused_without_a_crash(data: bytes) -> None:
    key = program.read_key(str(VerifierKey(ORIGIN, bytes(32))))
    with pytest.raises(program.FindingError):
        program.read_checkpoint(data, key)
    entries, fault = program.split_bundle(data, 0, 400, "tile/entries/000")
    assert fault is not None
    assert fault.result.seq == len(entries) < 400
    try:
        value: Any = program.parse_entry(data)
    except (ValueError, RecursionError):
        return
    assert encode(value) == data


def test_a_log_that_grows_while_it_is_read_is_good(log: LogUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    base: dict[str, Any] = {"recorded": 5, "type": "log.start", "writer": "log"}
    entries = [encode({**base, "seq": n, "writer_seq": n + 1}) for n in range(600)]
    forge(log, entries, log.folder)
    grown = log.files()
    forge(log, entries[:300], log.folder)
    grown["tile/1/000.p/1"] = log.files()["tile/1/000.p/1"]  # a part stays until its whole is written
    listing = program.take_inventory

    def list_then_grow(folder: Path) -> program.Inventory:
        found = listing(folder)
        put(folder, grown)
        return found

    monkeypatch.setattr(program, "take_inventory", list_then_grow)
    result = log.verify()
    assert (result.exit, result.size) == (0, 300)


def test_the_program_stands_alone_and_tells_by_its_exit_code(log: LogUnderTest, tmp_path: Path) -> None:
    source = Path(program.__file__)
    tree = ast.parse(source.read_text("utf-8"))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} <= {*sys.stdlib_module_names, "cryptography"}
    assert len(source.read_text("utf-8").splitlines()) < 500

    copy = tmp_path / "verify.py"
    copy.write_bytes(source.read_bytes())

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-I", str(copy), *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout

    code, out = run(str(log.folder), "--vkey", log.vkey)
    assert (code, out.splitlines()[0]) == (0, "consistent, tail unwitnessed")
    code, out = run(str(log.folder), "--vkey", log.vkey, "--from", str(log.folder / "checkpoint"), "--output", "json")
    assert (code, json.loads(out)["verdict"], json.loads(out)["size"]) == (0, "good", 304)
    (log.folder / "tile/0/000").write_bytes(bytes(8192))
    code, out = run(str(log.folder), "--vkey", log.vkey)
    assert (code, out.splitlines()[1]) == (1, "check leaf_hash at entry 0")
    (log.folder / "tile/0/000").unlink()
    assert run(str(log.folder), "--vkey", log.vkey)[0] == 2
    assert run(str(log.folder), "--vkey", "nonsense")[0] == 3
    assert run(str(log.folder))[0] == 3
    assert run(str(log.folder), "--vkey", log.vkey, "--from", str(tmp_path / "nothing"))[0] == 3
    assert run(str(tmp_path / "nothing"), "--vkey", log.vkey)[0] == 3
