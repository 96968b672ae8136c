"""The list of requirements and the tests name each other, in both directions."""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent
MOST_ROWS_PER_TEST = 5


def _rows() -> list[dict[str, object]]:
    with (TESTS / "requirements.toml").open("rb") as file:
        return list(tomllib.load(file).get("requirement", []))


def _tests() -> set[str]:
    found: set[str] = set()
    for path in sorted(TESTS.rglob("test_*.py")):
        name = path.relative_to(TESTS).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.add(f"{name}::{node.name}")
    return found


def _named(row: dict[str, object]) -> list[str]:
    tests = row.get("tests")
    return [str(test) for test in tests] if isinstance(tests, list) else []


def test_every_row_is_complete_and_unique() -> None:
    rows = _rows()
    assert rows
    twice = [row for row, count in Counter(str(row["id"]) for row in rows).items() if count > 1]
    assert not twice
    for row in rows:
        unknown = set(row) - {"id", "sentence", "source", "tests", "reason"}
        assert not unknown, (row["id"], unknown)
        assert all(isinstance(row[key], str) and row[key] for key in ("id", "sentence", "source")), row
        assert _named(row), f"{row['id']} has no test"


def test_rows_name_tests_that_exist() -> None:
    tests = _tests()
    missing = [(row["id"], test) for row in _rows() for test in _named(row) if test not in tests]
    assert not missing


def test_every_test_shows_a_requirement_and_not_too_many() -> None:
    counts = Counter(test for row in _rows() for test in _named(row))
    assert not sorted(_tests() - set(counts)), "tests that no requirement names"
    assert not [test for test, count in counts.items() if count > MOST_ROWS_PER_TEST]
