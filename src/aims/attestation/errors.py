"""What attestation refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from aims.errors import AimsError, Reason, reasons


class AttestationError(AimsError):
    """A selector, a piece of evidence or a launch profile was refused."""

    layer: ClassVar[str] = "attestation"
    reasons: ClassVar[Mapping[str, Reason]] = reasons(
        selector_malformed=(
            "This is not a selector.",
            "Write it as type:value, for example unix:uid:1000.",
        ),
        selector_duplicate=("A selector is named twice.", "Name each selector once."),
        selectors_empty=(
            "A list of selectors is empty.",
            "Nothing is never read as everything: name at least one selector.",
        ),
        selectors_too_many=("There are too many selectors.", "Name at most 64 selectors."),
        evidence_malformed=("The evidence about a process is out of range.", "Read it from the kernel again."),
        profile_malformed=(
            "This is not a launch profile.",
            "Let `aims agent register NAME -- CMD` measure and write it.",
        ),
    )
