"""What deciding hands to committing: a Write, and the answer that its outcome makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from aims.storage.write import Outcome, Write

Answer_co = TypeVar("Answer_co", covariant=True)
Shaped = TypeVar("Shaped")


@dataclass(frozen=True, slots=True)
class Plan(Generic[Answer_co]):
    """The result of a ``service`` function.

    ``answer`` turns the outcome into what the caller is told, or raises the error of its layer when the Write was
    refused. Only routes and background tasks commit; a plan that nobody commits has done nothing.
    """

    write: Write
    answer: Callable[[Outcome], Answer_co]

    def shaped(self, shape: Callable[[Answer_co], Shaped]) -> Plan[Shaped]:
        """Return the same intent with ``shape`` of its answer."""
        return Plan(self.write, lambda outcome: shape(self.answer(outcome)))
