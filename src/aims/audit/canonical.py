"""Canonical JSON (RFC 8785) for the subset that AIMS hashes and signs.

Member names are ASCII, so sorting by code point and by UTF-16 unit (RFC 8785 3.2.3) is the same. Numbers are integers
below 2^53, so that no reader rounds them. Floats are refused: their text form is where implementations differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring
from typing import Any, Final, TypeAlias

from aims.audit.errors import AuditError

Json: TypeAlias = "bool | int | str | list[Json] | tuple[Json, ...] | Mapping[str, Json] | None"

MAX_INTEGER: Final = 2**53 - 1
MAX_DEPTH: Final = 16

# JSON's two-character escapes, \u00xx in lower case for the other control characters, all else as it is.
quote: Final[Callable[[str], str]] = encode_basestring


def encode(value: Json) -> bytes:
    """Return the one canonical form of ``value`` as UTF-8.

    At most 16 levels deep. Raises ``AuditError("not_canonical")`` for floats, integers of 2^53 or more, names that
    are not ASCII text, lone surrogates, and objects of any other type.
    """
    return utf8(_text(value, MAX_DEPTH))


def decode(octets: bytes) -> Json:
    """Read canonical JSON, and only that: what does not encode to the same octets again is refused.

    Raises ``AuditError("not_canonical")``.
    """
    try:
        value: Json = _PARSE(octets.decode("utf-8"))
        again = fast(value)
    except (ValueError, RecursionError) as error:
        raise AuditError("not_canonical", "no JSON of the subset") from error
    if again != octets:
        raise AuditError("not_canonical", "another form of the same value")
    return value


def fast(value: Json) -> bytes:
    """Encode what ``decode`` returned, several times faster than ``encode`` because nothing needs checking."""
    return utf8(_ENCODE(value))


def utf8(text: str) -> bytes:
    """Encode, refusing lone surrogates."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise AuditError("not_canonical", f"lone surrogate at character {error.start}") from error


def integer(value: int) -> str:
    """Return the decimal form of an integer below 2^53 in size."""
    if not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise AuditError("not_canonical", "integer of 2^53 or more")
    return str(value)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs) or not "".join(found).isascii():
        raise AuditError("not_canonical", "member name twice, or not ASCII")
    return found


def _refuse(text: str) -> None:
    raise AuditError("not_canonical", f"number {text[:32]}")


def _whole(text: str) -> int:
    if len(text) > 17:
        _refuse(text)
    value = int(text)
    if not -MAX_INTEGER <= value <= MAX_INTEGER:
        _refuse(text)
    return value


_PARSE: Final[Callable[[str], Any]] = json.JSONDecoder(
    object_pairs_hook=_members, parse_float=_refuse, parse_constant=_refuse, parse_int=_whole
).decode
_ENCODE: Final[Callable[[Any], str]] = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False
).encode


def _text(value: object, depth: int) -> str:
    kind = type(value)
    if kind is str:
        return quote(value)  # type: ignore[arg-type]  # the exact type was compared, which mypy does not follow
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return integer(value)  # type: ignore[arg-type]  # as above
    if depth == 0:
        raise AuditError("not_canonical", f"deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        for name in value:
            if type(name) is not str or not name.isascii():
                raise AuditError("not_canonical", "member name that is not ASCII text")
        return "{" + ",".join(f"{quote(name)}:{_text(value[name], depth - 1)}" for name in sorted(value)) + "}"
    if kind is list or kind is tuple:
        return "[" + ",".join(_text(item, depth - 1) for item in value) + "]"  # type: ignore[attr-defined]  # as above
    raise AuditError("not_canonical", f"value of type {kind.__name__}")
