"""Tell the story, or an excerpt, under a changed policy, without its slow steps, until one is not as expected.

    python demo_policy.py FOLDER [EXCERPT]     # the files of a bundle; {name} stands for a port of the story

Prints the title of the step that was not as expected and exits with 1, or prints nothing and exits with 0.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aims.demo import stage
from aims.demo.play import CHAPTERS, play
from aims.demo.story import Chapter, Result

# They show what no row of the policy decides, and take long.
SLOW = (
    "decisions through",
    "kill -9",
    "Every answer has",
    "audit verify",
    "The same on a copy",
    "open stream",
    "is cut",
)
# What every excerpt begins with, and the chapters that it then tells whole.
BEGINNING = (
    "aims up",
    "The shipped policy is in force",
    "An owner and two agents",
    "A tool (an MCP server)",
    "An administrator makes a transmitter known",
)
EXCERPTS = {"stops": ("Proof", "Stop"), "rights": ("Tokens",), "person": ("Person",)}


class _FirstSurpriseError(Exception):
    pass


class _Teller:
    def chapter(self, title: str) -> None:
        """Say nothing."""

    def step(self, result: Result) -> None:
        if not result.as_expected:
            sys.stdout.write(f"{result.title}\n  expected {result.expected}\n  seen {result.seen}\n")
            sys.stdout.flush()
            raise _FirstSurpriseError

    def verdict(self, results: list[Result]) -> None:
        """Say nothing."""


def chosen(excerpt: str | None) -> list[Chapter[stage.Stage]]:
    """Return the chapters of an excerpt, or all, without their slow steps."""
    chapters = []
    for chapter in CHAPTERS:
        whole = excerpt is None or chapter.title.startswith(EXCERPTS[excerpt])
        told = [
            step
            for step in chapter.steps
            if (whole or step.title.startswith(BEGINNING)) and not any(word in step.title for word in SLOW)
        ]
        if told:
            chapters.append(Chapter(chapter.title, told))
    return chapters


def main() -> int:
    folder, excerpt = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None

    def write(target: Path, ports: dict[str, int]) -> None:
        target.mkdir(mode=0o700)
        for file in folder.iterdir():
            text = file.read_text("utf-8")
            for name, port in ports.items():
                text = text.replace(f"{{{name}}}", str(port))
            (target / file.name).write_text(text, "utf-8")

    # The story has no switch for its policy; this is the place where it takes it from.
    vars(stage)["write_policy"] = write
    try:
        asyncio.run(play(_Teller(), chosen(excerpt)))
    except _FirstSurpriseError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
