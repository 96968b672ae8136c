"""The whole story, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aims.demo import birth, delegation, evidence, ground, person, proof, stopping
from aims.demo.stage import Stage
from aims.demo.story import Chapter, Teller, tell

CHAPTERS: Final[tuple[Chapter[Stage], ...]] = (
    ground.chapter,
    birth.chapter,
    proof.chapter,
    stopping.chapter,
    delegation.chapter,
    person.chapter,
    evidence.chapter,
)


async def play(teller: Teller, chapters: Sequence[Chapter[Stage]] = CHAPTERS) -> bool:
    """Play the chapters on a fresh stage; True when every step was as expected."""
    stage, folder = Stage.set_up()
    with folder:
        try:
            return await tell(stage, list(chapters), teller)
        finally:
            await stage.close()
