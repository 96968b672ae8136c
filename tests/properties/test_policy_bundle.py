"""A bundle exists only if all of it can be activated, and its version changes with every octet."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.mutations import mutations, write_tables

from aims.policy.bundle import MAX_FILE_OCTETS, SCHEMA, TABLES, Bundle
from aims.policy.errors import PolicyError

EXAMPLE = Path(__file__).parents[1] / "vectors" / "policy" / "example"
FILES = {path.name: path.read_bytes() for path in EXAMPLE.iterdir()}
PERMIT = b'permit (principal is AIMS::Operator, action == AIMS::Action::"administer", resource is AIMS::Resource)'


def refusal(files: dict[str, bytes]) -> str:
    with pytest.raises(PolicyError) as caught:
        Bundle.from_files(files)
    return caught.value.reason


def with_rule(rule: bytes) -> dict[str, bytes]:
    return {**FILES, "more.cedar": rule}


def test_the_bundle_survives_its_stored_form(tmp_path: Path) -> None:
    bundle = Bundle.from_folder(EXAMPLE)
    assert Bundle.from_bytes(bundle.to_bytes()) == bundle
    assert Bundle.from_bytes(bundle.to_bytes()).files == FILES
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    assert Bundle.from_folder(tmp_path).version == bundle.version


@given(st.randoms(use_true_random=False))
def test_the_order_of_the_files_does_not_matter(source: random.Random) -> None:
    names = list(FILES)
    source.shuffle(names)
    assert Bundle.from_files({name: FILES[name] for name in names}).to_bytes() == Bundle.from_files(FILES).to_bytes()


def test_the_version_changes_with_any_octet_and_with_a_name() -> None:
    versions = {Bundle.from_files(FILES).version}
    for name, content in FILES.items():
        versions.add(Bundle.from_files({**FILES, name: content + b"\n"}).version)
    renamed = {("people.cedar" if name == "agents.cedar" else name): content for name, content in FILES.items()}
    versions.add(Bundle.from_files(renamed).version)
    # The end of one file moved to the head of the next one: the same octets in a row, another bundle.
    first, second = FILES["administration.cedar"], FILES["agents.cedar"]
    cut = first.rindex(b"// People end")
    moved = {**FILES, "administration.cedar": first[:cut], "agents.cedar": first[cut:] + second}
    versions.add(Bundle.from_files(moved).version)
    assert len(versions) == 1 + len(FILES) + 2


@given(st.data())
def test_a_damaged_stored_form_is_refused(data: st.DataObject) -> None:
    octets = Bundle.from_files(FILES).to_bytes()
    damages: list[Callable[[], bytes]] = [
        lambda: octets[: data.draw(st.integers(0, len(octets) - 1))],
        lambda: octets + b"\x00",
        lambda: (
            octets[:21]
            + data.draw(st.binary(min_size=4, max_size=4).filter(lambda four: four != octets[21:25]))
            + octets[25:]
        ),
        lambda: b"x" + octets,
    ]
    with pytest.raises(PolicyError):
        Bundle.from_bytes(data.draw(st.sampled_from(damages))())


def test_a_stored_form_in_another_order_is_refused() -> None:
    octets = Bundle.from_files(FILES).to_bytes()
    head = octets[:21]
    parts = []
    for name in sorted(FILES, reverse=True):
        parts += [name.encode(), FILES[name]]
    with pytest.raises(PolicyError) as caught:
        Bundle.from_bytes(head + b"".join(len(part).to_bytes(4, "big") + part for part in parts))
    assert caught.value.reason == "bundle_format"


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "../x.cedar",
        "a/b.cedar",
        ".cedar",
        "A.cedar",
        "x.cedar\n",
        "x.CEDAR",
        "",
        "tables.toml~",
        "é.cedar",
    ],
)
def test_a_foreign_file_is_refused(name: str) -> None:
    assert refusal({**FILES, name: b""}) == "bundle_file"


def test_links_folders_and_pipes_are_refused(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    odd = tmp_path / "odd.cedar"
    makes: list[Callable[[], None]] = [
        lambda: odd.symlink_to(tmp_path / "agents.cedar"),
        odd.mkdir,
        lambda: os.mkfifo(odd),
    ]
    for make in makes:
        make()
        with pytest.raises(PolicyError) as caught:
            Bundle.from_folder(tmp_path)
        assert caught.value.reason == "bundle_file"
        odd.rmdir() if odd.is_dir() and not odd.is_symlink() else odd.unlink()
    assert Bundle.from_folder(tmp_path).files == FILES


@pytest.mark.parametrize("name", [SCHEMA, TABLES])
def test_an_incomplete_bundle_is_refused(name: str) -> None:
    assert refusal({other: content for other, content in FILES.items() if other != name}) == "bundle_missing"
    assert refusal({}) == "bundle_missing"
    assert refusal({SCHEMA: FILES[SCHEMA], TABLES: FILES[TABLES]}) == "bundle_missing"


def test_a_bundle_without_a_rule_is_refused() -> None:
    assert refusal({SCHEMA: FILES[SCHEMA], TABLES: FILES[TABLES], "a.cedar": b"// nothing\n"}) == "empty"


def test_too_much_is_refused() -> None:
    comment = b"// " + b"x" * MAX_FILE_OCTETS
    assert refusal({**FILES, "more.cedar": comment}) == "bundle_size"
    assert refusal({**FILES, **{f"m{i}.cedar": b"" for i in range(64)}}) == "bundle_size"
    assert refusal({**FILES, **{f"m{i}.cedar": comment[:-3] for i in range(9)}}) == "bundle_size"


@pytest.mark.parametrize(
    "body",
    [
        b"(" * 20_000 + b"true" + b")" * 20_000,
        b"[" * 33 + b"]" * 33 + b" == 3",
        b"{a: " * 33 + b"1" + b"}" * 33 + b" == 3",
        b"1 + " * 15_000 + b"1 == 1",
        b"principal has " + b"b." * 3_000 + b"b",
        b"principal" + b" . // here\n roles" * 1_000,
        b"if true then true else " * 2_000 + b"true",
        b"1+" * 1_900 + b"1 == 1",
    ],
)
def test_text_that_would_bring_the_parser_down_is_refused(body: bytes) -> None:
    assert refusal(with_rule(b'@id("x") ' + PERMIT + b" when { " + body + b" };")) == "bundle_size"


def test_brackets_in_strings_and_comments_do_not_count() -> None:
    rule = b'@id("x") ' + PERMIT + b' when { resource.kind == "' + b"(" * 100 + b'" }; // ' + b"[" * 100
    assert Bundle.from_files(with_rule(rule)).rules.effects["x"] == "permit"


def test_text_that_is_not_text_is_refused() -> None:
    assert refusal({**FILES, "more.cedar": b"// \xff\n"}) == "bundle_encoding"
    assert refusal({**FILES, "more.cedar": b"// \x00\n"}) == "bundle_encoding"


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (PERMIT + b";", "rule_id"),
        (b"@id " + PERMIT + b";", "rule_id"),
        (b'@id("") ' + PERMIT + b";", "rule_id"),
        (b'@id("Not\\nso") ' + PERMIT + b";", "rule_id"),
        (b'@id("call_tool") ' + PERMIT + b";", "rule_id"),
        (b'@id("x") ' + PERMIT + b'; @id("x") ' + PERMIT + b";", "rule_id"),
        (b'@id("x") permit (principal == ?principal, action, resource);', "rule_template"),
        (b'@id("x") ' + PERMIT, "rule_syntax"),
        (b'@id("x") ' + PERMIT + b" when { principal.age > 3 };", "rule_invalid"),
        (b'@id("x") ' + PERMIT + b" when { resource.writes };", "rule_invalid"),
        (b'@id("x") ' + PERMIT + b" when { resource.kind == 3 };", "rule_invalid"),
        (b'@id("x") permit (principal is AIMS::Robot, action, resource);', "rule_invalid"),
    ],
)
def test_a_rule_that_cannot_be_relied_on_is_refused(rule: bytes, reason: str) -> None:
    assert refusal(with_rule(rule)) == reason


def test_a_schema_that_cannot_be_read_is_refused() -> None:
    assert refusal({**FILES, SCHEMA: b"entity"}) == "schema"
    assert (
        refusal({**FILES, SCHEMA: b"entity A { a: " + b"Set<" * 4_000 + b"Long" + b">" * 4_000 + b" };"})
        == "bundle_size"
    )


@pytest.mark.parametrize("bundle", [Bundle.shipped(), Bundle.from_files(FILES)], ids=["shipped", "example"])
def test_each_mutation_lacks_one_rule_or_row(bundle: Bundle) -> None:
    found = dict(mutations(bundle))
    names = {f"rule {rule}" for rule in bundle.rules.effects}
    names |= {f"{table}.{row.name}" for table in bundle.rows.__struct_fields__ for row in getattr(bundle.rows, table)}
    assert set(found) == names
    for name, mutant in found.items():
        assert mutant != bundle
        if name.startswith("rule "):
            assert set(bundle.rules.effects) - set(mutant.rules.effects) == {name.removeprefix("rule ")}
            assert mutant.rows == bundle.rows
        else:
            table, row = name.split(".")
            assert row not in {entry.name for entry in getattr(mutant.rows, table)}
            assert len(getattr(mutant.rows, table)) == len(getattr(bundle.rows, table)) - 1
            assert mutant.rules.effects == bundle.rules.effects


def test_tables_can_be_written_back() -> None:
    text = write_tables({"operators": [{"name": "a", "who": "server", "roles": ["x", "y"]}]})
    assert Bundle.from_files({**FILES, TABLES: text.encode()}).rows.operators[0].roles == ("x", "y")
