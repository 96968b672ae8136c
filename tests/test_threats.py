"""The page of threats is what its sources say, and no row that is met is without a test."""

from __future__ import annotations

import tomllib
from pathlib import Path

from scripts.threat_page import page

DOCS = Path(__file__).parents[1] / "docs"
ROWS = 29


def test_the_page_is_made_from_its_sources() -> None:
    assert (DOCS / "threats.md").read_text("utf-8") == page(), "run scripts/threat_page.py > docs/threats.md"


def test_every_threat_has_a_test_or_says_what_it_waits_for() -> None:
    assert "- no test yet" not in page()
    threats = tomllib.loads((DOCS / "threats.toml").read_text("utf-8"))["threat"]
    assert [threat["id"] for threat in threats] == [f"T{number}" for number in range(1, ROWS + 1)]
