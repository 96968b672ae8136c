"""A story in numbered steps: what was expected, what was seen, and a verdict.

Each step acts on a stage (running processes) and returns what *another process* showed: a status, a body, a record.
A step that raises has seen its error; the story goes on, so that one broken thing does not hide the others.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

Stage = TypeVar("Stage")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a step saw, and anything worth printing beside it (times, selectors, a tree)."""

    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step(Generic[Stage]):
    """One line of the story; ``expected`` is compared with what was seen, to the letter."""

    title: str
    expected: str
    act: Callable[[Stage], Awaitable[Seen]]


@dataclass(frozen=True, slots=True)
class Result:
    """How one step ended."""

    number: int
    title: str
    expected: str
    seen: str
    notes: tuple[str, ...]
    milliseconds: int

    @property
    def as_expected(self) -> bool:
        return self.seen == self.expected


class Teller(Protocol):
    """Where the story is told."""

    def chapter(self, title: str) -> None: ...

    def step(self, result: Result) -> None: ...

    def verdict(self, results: list[Result]) -> None: ...


@dataclass(slots=True)
class Chapter(Generic[Stage]):
    """Steps that belong together, added by the decorator ``step``."""

    title: str
    steps: list[Step[Stage]] = field(default_factory=list)

    def step(
        self, title: str, expected: str
    ) -> Callable[[Callable[[Stage], Awaitable[Seen]]], Callable[[Stage], Awaitable[Seen]]]:
        """Add the decorated function as the next step."""

        def add(act: Callable[[Stage], Awaitable[Seen]]) -> Callable[[Stage], Awaitable[Seen]]:
            self.steps.append(Step(title, expected, act))
            return act

        return add


async def tell(stage: Stage, chapters: list[Chapter[Stage]], teller: Teller) -> bool:
    """Act out all chapters; True when every step was as expected."""
    results: list[Result] = []
    for chapter in chapters:
        teller.chapter(chapter.title)
        for step in chapter.steps:
            begun = time.monotonic()
            try:
                seen = await step.act(stage)
            except Exception as error:  # noqa: BLE001  # whatever a step meets is what it saw
                seen = Seen(f"{type(error).__name__}: {error}")
            took = round((time.monotonic() - begun) * 1000)
            result = Result(len(results) + 1, step.title, step.expected, seen.text, seen.notes, took)
            results.append(result)
            teller.step(result)
    teller.verdict(results)
    return all(result.as_expected for result in results)
