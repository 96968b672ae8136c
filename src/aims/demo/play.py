"""The whole story, in order."""

from __future__ import annotations

from typing import Final

from aims.demo import birth, evidence, ground, proof, stopping
from aims.demo.stage import Stage
from aims.demo.story import Chapter, Teller, tell

CHAPTERS: Final[tuple[Chapter[Stage], ...]] = (
    ground.chapter,
    birth.chapter,
    proof.chapter,
    stopping.chapter,
    evidence.chapter,
)


async def play(teller: Teller) -> bool:
    """Play all chapters on a fresh stage; True when every step was as expected."""
    stage, folder = Stage.set_up()
    with folder:
        try:
            return await tell(stage, list(CHAPTERS), teller)
        finally:
            await stage.close()
