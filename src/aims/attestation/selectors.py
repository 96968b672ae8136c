"""Selectors: single facts about a workload, written ``type:value``.

An entry lists selectors, attestation finds selectors, and the entry matches where every one of its own was found.
Text has exactly one form, compared octet by octet: no folding of case, no trimming, no wildcard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from aims.attestation.errors import AttestationError

MAX_VALUE_OCTETS = 1024
MAX_SELECTORS = 64

_TYPE = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """One fact: ``type`` names the attestor (``unix``, ``launch``), ``value`` is what it saw (``uid:1000``).

    A value has 1 to 1024 octets of UTF-8 without control characters.

    Raises: AttestationError ``selector_malformed``.
    """

    type: str
    value: str

    def __post_init__(self) -> None:
        if not _TYPE.fullmatch(self.type):
            raise AttestationError("selector_malformed", f"type {self.type!r:.80}")
        try:
            octets = len(self.value.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise AttestationError("selector_malformed", "the value is not Unicode text") from error
        if not 1 <= octets <= MAX_VALUE_OCTETS:
            raise AttestationError("selector_malformed", f"a value of {octets} octets")
        if not self.value.isprintable():
            raise AttestationError("selector_malformed", "the value has characters that do not print")

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Read the canonical text; the first colon ends the type.

        Raises: AttestationError ``selector_malformed``.
        """
        kind, colon, value = text.partition(":")
        if not colon:
            raise AttestationError("selector_malformed", "no colon")
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.type}:{self.value}"


def parse_selectors(texts: Iterable[str]) -> frozenset[Selector]:
    """Read a list of 1 to 64 selectors, each named once.

    Raises: AttestationError ``selector_malformed``, ``selector_duplicate``, ``selectors_empty``,
        ``selectors_too_many``.
    """
    found: set[Selector] = set()
    for text in texts:
        selector = Selector.parse(text)
        if selector in found:
            raise AttestationError("selector_duplicate", str(selector))
        if len(found) == MAX_SELECTORS:
            raise AttestationError("selectors_too_many")
        found.add(selector)
    if not found:
        raise AttestationError("selectors_empty")
    return frozenset(found)


def matches(entry: frozenset[Selector], found: frozenset[Selector]) -> bool:
    """Tell whether every selector of ``entry`` was found.

    An entry without selectors would match everything and is refused.

    Raises: AttestationError ``selectors_empty``.
    """
    if not entry:
        raise AttestationError("selectors_empty", "an entry without selectors")
    return entry <= found
