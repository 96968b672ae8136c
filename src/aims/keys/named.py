"""Which key is a purpose's own: the name of a key, and the file that holds it. Plain values, no keys."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from aims.keys.errors import KeyStoreError

MAX_NAMED_BYTES: Final = 8192
_KID: Final = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


def parse_kid(text: str) -> str:
    """Return ``text`` if it has the form of our key identifiers (43 characters of base64url).

    Raises: KeyStoreError ``kid``.
    """
    if _KID.fullmatch(text) is None:
        raise KeyStoreError("kid", repr(text[:64]))
    return text


class _Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    current: str
    # written from the beginning, and never otherwise than empty: no key that stands here is rotated
    next: None = None
    retired: tuple[()] = ()


def encode(kid: str) -> bytes:
    """Return what is stored of a purpose's key."""
    return msgspec.json.encode(_Named(kid))


def decode(data: bytes) -> str:
    """Return the name in what `encode` wrote.

    Raises: KeyStoreError ``malformed``, ``kid``.
    """
    try:
        named = msgspec.json.decode(data, type=_Named) if len(data) <= MAX_NAMED_BYTES else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise KeyStoreError("malformed", "key slots") from error
    if named is None:
        raise KeyStoreError("malformed", "key slots")
    return parse_kid(named.current)
