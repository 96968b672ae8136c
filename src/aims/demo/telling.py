"""Tell the story on a terminal: one block a step, colour only where somebody looks."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from aims.demo.story import Result


class TerminalTeller:
    """Prints each step with what was expected and what was seen, and the verdict as the last line."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def chapter(self, title: str) -> None:
        self._print(Text(f"\n{title}", style="bold"))

    def step(self, result: Result) -> None:
        mark, style = ("ok", "green") if result.as_expected else ("NOT AS EXPECTED", "bold red")
        self._print(Text(f"{result.number:3}  {result.title}"))
        self._print(Text(f"     expected  {result.expected}"))
        line = Text(f"     seen      {result.seen}  ")
        line.append(f"{mark}", style=style)
        line.append(f"  {result.milliseconds} ms", style="dim")
        self._print(line)
        for note in result.notes:
            for part in note.splitlines():
                self._print(Text(f"               {part}", style="dim"))

    def verdict(self, results: list[Result]) -> None:
        wrong = [result for result in results if not result.as_expected]
        self._print(Text(""))
        for result in wrong:
            self._print(Text(f"step {result.number} was not as expected: {result.title}", style="bold red"))
        self._print(Text(f"{len(results) - len(wrong)} of {len(results)} as expected", style="bold"))

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)
