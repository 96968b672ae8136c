"""PKCE (RFC 7636), method S256 and no other."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

from aims.authorization.people.errors import PeopleError
from aims.jose import base64url

METHOD: Final = "S256"

_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")


def challenge(code_challenge: str | None, method: str | None) -> str:
    """Return the challenge of a request: 43 characters, of a method that is named and S256 (absent means plain).

    Raises:
        PeopleError: ``challenge``.
    """
    if code_challenge is None or method != METHOD or _CHALLENGE.fullmatch(code_challenge) is None:
        raise PeopleError("challenge")
    return code_challenge


def check(verifier: str | None, expected: str) -> None:
    """Refuse a verifier that is missing, malformed, or not the one behind the challenge.

    Raises:
        PeopleError: ``code_verifier``.
    """
    if verifier is None or _VERIFIER.fullmatch(verifier) is None:
        raise PeopleError("code_verifier", "missing or malformed")
    if not hmac.compare_digest(transform(verifier), expected):
        raise PeopleError("code_verifier")


def transform(verifier: str) -> str:
    """Return the challenge that a client makes of its verifier (4.2)."""
    return base64url.encode(hashlib.sha256(verifier.encode("ascii")).digest()).decode("ascii")
