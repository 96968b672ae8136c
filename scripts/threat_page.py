"""Print docs/threats.md: each attack, its defence, and the tests that show it.

.venv/bin/python scripts/threat_page.py > docs/threats.md
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def page() -> str:
    """Join docs/threats.toml with the requirements that name a threat as their source."""
    threats = tomllib.loads((ROOT / "docs" / "threats.toml").read_text("utf-8"))["threat"]
    rows = tomllib.loads((ROOT / "tests" / "requirements.toml").read_text("utf-8"))["requirement"]
    lines = [
        "# Threats: what an attacker will try, what stops it, and the test that shows it",
        "",
        "Made by `scripts/threat_page.py` from `docs/threats.toml` and `tests/requirements.toml`.",
        "Add rows; never remove one.",
        "",
    ]
    for threat in threats:
        name = threat["id"]
        shown = [row for row in rows if re.search(rf"\b{name}\b", row["source"])]
        lines += [f"## {name}", "", f"**Attack.** {threat['attack']}", "", f"**Defence.** {threat['defence']}", ""]
        if "waits" in threat:
            lines += [f"**Waits for** {threat['waits']}.", ""]
        for row in shown:
            tests = ", ".join(f"`{test}`" for test in row["tests"])
            lines.append(f"- {row['id']}: {row['sentence']} {tests}")
        if not shown and "waits" not in threat:
            lines.append("- no test yet")
        if shown or "waits" not in threat:
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
