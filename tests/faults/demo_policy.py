"""Tell the story under a changed policy, without its slow steps, until a step does not see what it expects.

    python demo_policy.py FOLDER     # a folder with the files of a bundle; {name} stands for a port of the story

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


def main() -> int:
    folder = Path(sys.argv[1])

    def write(target: Path, ports: dict[str, int]) -> None:
        target.mkdir(mode=0o700)
        for file in folder.iterdir():
            text = file.read_text("utf-8")
            for name, port in ports.items():
                text = text.replace(f"{{{name}}}", str(port))
            (target / file.name).write_text(text, "utf-8")

    # The story has no switch for its policy; this is the place where it takes it from.
    vars(stage)["write_policy"] = write
    chapters = [
        Chapter(chapter.title, [step for step in chapter.steps if not any(word in step.title for word in SLOW)])
        for chapter in CHAPTERS
    ]
    try:
        asyncio.run(play(_Teller(), chapters))
    except _FirstSurpriseError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
