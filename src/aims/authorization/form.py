"""The body of an OAuth request: ``application/x-www-form-urlencoded``, read strictly and once."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from aims.authorization.errors import AuthorizationError

MAX_OCTETS: Final = 32 * 1024
MAX_PARAMETERS: Final = 32
CONTENT_TYPE: Final = b"application/x-www-form-urlencoded"

_REPEATABLE: Final = frozenset({"resource", "audience"})  # RFC 8707 2, RFC 8693 2.1
_NAME = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
_ESCAPED = re.compile(rb"(?:[^%]|%[0-9A-Fa-f]{2})*")
_REMEMBERED_OCTETS = 256
_PLAIN = re.compile(rb"[\x21-\x7e]*")  # what nobody has to escape is tolerated, what nobody may send is not


class Form(msgspec.Struct, frozen=True, gc=False):
    """Parameters with a value, each once; an empty one counts as absent (RFC 6749 3.2). ``targets`` holds those that
    may repeat, as (name, value)."""

    values: dict[str, str]
    targets: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """Return a parameter that may not repeat, None without it."""
        return self.values.get(name)

    def require(self, name: str) -> str:
        """Return a parameter that must be there. Raises: AuthorizationError ``parameter_missing``."""
        value = self.values.get(name)
        if value is None:
            raise AuthorizationError("parameter_missing", name)
        return value

    def all(self, name: str) -> tuple[str, ...]:
        """Return the values of ``resource`` or ``audience``."""
        return tuple(value for found, value in self.targets if found == name)

    def __repr__(self) -> str:
        return f"Form({', '.join(sorted(self.values))})"


def read(body: bytes, content_type: str | None) -> Form:
    """Read a body.

    Unknown parameters are kept and ignored. A name is plain ASCII, a value UTF-8 without control characters.

    Raises:
        AuthorizationError: ``request_malformed``, ``request_too_large``, ``parameter_twice``.
    """
    if content_type is None or not _is_form(content_type):
        raise AuthorizationError("request_malformed", "content type")
    if len(body) > MAX_OCTETS:
        raise AuthorizationError("request_too_large", f"{len(body)} octets")
    parts = body.split(b"&") if body else []
    if len(parts) > MAX_PARAMETERS:
        raise AuthorizationError("request_malformed", f"{len(parts)} parameters")
    values: dict[str, str] = {}
    targets: list[tuple[str, str]] = []
    empty: set[str] = set()
    for part in parts:
        raw_name, separator, raw_value = part.partition(b"=")
        if not separator or _NAME.fullmatch(raw_name) is None:
            raise AuthorizationError("request_malformed", "name of a parameter")
        name = raw_name.decode("ascii")
        value = _known_value(raw_value) if len(raw_value) <= _REMEMBERED_OCTETS else _value(raw_value)
        if name in _REPEATABLE:
            if value:
                targets.append((name, value))
        elif name in values or name in empty:
            raise AuthorizationError("parameter_twice", name)
        elif value:
            values[name] = value
        else:
            empty.add(name)
    return Form(values, tuple(targets))


def _is_form(content_type: str) -> bool:
    kind, _, parameters = content_type.partition(";")
    return kind.strip().lower() == "application/x-www-form-urlencoded" and parameters.strip().lower() in {
        "",
        "charset=utf-8",
    }


def _value(raw: bytes) -> str:
    if _PLAIN.fullmatch(raw) is None:
        raise AuthorizationError("request_malformed", "octets of a value")
    if b"%" not in raw and b"+" not in raw:
        return raw.decode("ascii")
    if _ESCAPED.fullmatch(raw) is None:
        raise AuthorizationError("request_malformed", "escape in a value")
    try:
        value = unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8")
    except UnicodeDecodeError:
        raise AuthorizationError("request_malformed", "a value is not UTF-8") from None
    if not value.isprintable():
        raise AuthorizationError("request_malformed", "control characters in a value")
    return value


# Grant types, targets, scopes and clients come again and again; tokens do not.
_known_value = lru_cache(maxsize=4096)(_value)
