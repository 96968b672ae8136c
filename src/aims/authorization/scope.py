"""Scope (RFC 6749 3.3): a set of words. None of them is ever implied, and no words are no right."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from aims.authorization.errors import AuthorizationError

MAX_SCOPES: Final = 64
MAX_CHARACTERS: Final = 2048
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,128}")


# The same few scopes come with every request; only good ones are remembered.
@lru_cache(maxsize=1024)
def parse(text: str) -> frozenset[str]:
    """Return the words of a scope: at least one, at most 64, each once, one space between two.

    Raises:
        AuthorizationError: ``scope_malformed``.
    """
    if len(text) > MAX_CHARACTERS:
        raise AuthorizationError("scope_malformed", "too long")
    words = text.split(" ")
    found = frozenset(words)
    if len(words) > MAX_SCOPES or len(found) != len(words) or not all(map(_SCOPE.fullmatch, words)):
        raise AuthorizationError("scope_malformed")
    return found


def write(scopes: Iterable[str]) -> str:
    """Return a set of scopes as the one text that stands for it."""
    return " ".join(sorted(scopes))
