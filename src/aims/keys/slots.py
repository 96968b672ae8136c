"""Which key of a purpose signs now, which one comes next, and which are still believed. Plain values, no keys."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import msgspec

from aims.keys.errors import KeyStoreError

MAX_RETIRED = 16
MAX_SLOTS_BYTES = 8192
_KID = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


def parse_kid(text: str) -> str:
    """Return ``text`` if it has the form of our key identifiers (43 characters of base64url).

    Raises: KeyStoreError ``kid``.
    """
    if _KID.fullmatch(text) is None:
        raise KeyStoreError("kid", repr(text[:64]))
    return text


class Retired(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that signs no more; what it signed may live until ``until`` (Unix seconds)."""

    kid: str
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """The keys of one purpose by name. Every kid occurs once."""

    current: str
    next: str | None = None
    retired: tuple[Retired, ...] = ()

    def __post_init__(self) -> None:
        kids = self.kids()
        for kid in kids:
            parse_kid(kid)
        if len(set(kids)) != len(kids) or len(self.retired) > MAX_RETIRED:
            raise KeyStoreError("malformed", "key slots")

    def kids(self) -> tuple[str, ...]:
        """Return all names: current, next, retired."""
        following = () if self.next is None else (self.next,)
        return (self.current, *following, *(old.kid for old in self.retired))

    def prepared(self, kid: str) -> Slots:
        """Return slots with ``kid`` as next.

        Raises: KeyStoreError ``next_exists``.
        """
        if self.next is not None:
            raise KeyStoreError("next_exists")
        return replace(self, next=kid)

    def activated(self, retire_until: float) -> Slots:
        """Return slots where next is current and the old current is retired until ``retire_until`` (Unix seconds).

        Raises: KeyStoreError ``no_next``.
        """
        if self.next is None:
            raise KeyStoreError("no_next")
        old = Retired(self.current, float(retire_until))
        return replace(self, current=self.next, next=None, retired=(old, *self.retired))

    def forgotten(self, now: float) -> Slots:
        """Return slots without the retired keys whose time is over."""
        return replace(self, retired=tuple(old for old in self.retired if old.until > now))

    def encode(self) -> bytes:
        return msgspec.json.encode(_Stored(self.current, self.next, self.retired))

    @classmethod
    def decode(cls, data: bytes) -> Slots:
        """Parse what `encode` wrote.

        Raises: KeyStoreError ``malformed``.
        """
        try:
            stored = msgspec.json.decode(data, type=_Stored) if len(data) <= MAX_SLOTS_BYTES else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise KeyStoreError("malformed", "key slots") from error
        if stored is None:
            raise KeyStoreError("malformed", "key slots")
        return cls(current=stored.current, next=stored.next, retired=stored.retired)


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    current: str
    next: str | None
    retired: tuple[Retired, ...]
