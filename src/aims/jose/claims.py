"""The types that a claim can have (RFC 7519 2 and 4.1), and the check of each.

Empty strings and empty lists are refused: an empty name or list must never come to mean "any".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Any

from aims.jose.strict_json import MAX_INTEGER

MAX_LIST = 64


class ClaimKind(Enum):
    """The type of a claim."""

    STRING = auto()  # not empty
    STRING_LIST = auto()  # 1 to 64 strings, none empty
    AUDIENCE = auto()  # RFC 7519 4.1.3: a string, or 1 to 64 strings
    NUMERIC_DATE = auto()  # RFC 7519 2: seconds, 0 to 2**53 - 1, a fraction is allowed
    INTEGER = auto()  # 0 to 2**53 - 1
    BOOLEAN = auto()
    OBJECT = auto()
    OBJECT_LIST = auto()  # 1 to 64 objects
    ANY = auto()


def _is_string(value: Any) -> bool:
    return type(value) is str and value != ""


def _is_string_list(value: Any) -> bool:
    return type(value) is list and 0 < len(value) <= MAX_LIST and all(map(_is_string, value))


def _is_audience(value: Any) -> bool:
    return _is_string(value) or _is_string_list(value)


def _is_numeric_date(value: Any) -> bool:
    # bool is an int to Python and must not be one here, hence the exact types
    if type(value) is int:
        return 0 <= value <= MAX_INTEGER
    return type(value) is float and math.isfinite(value) and 0 <= value <= MAX_INTEGER


def _is_integer(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_INTEGER


def _is_boolean(value: Any) -> bool:
    return type(value) is bool


def _is_object(value: Any) -> bool:
    return type(value) is dict


def _is_object_list(value: Any) -> bool:
    return type(value) is list and 0 < len(value) <= MAX_LIST and all(map(_is_object, value))


def _is_any(_value: Any) -> bool:
    return True


CHECKS: Mapping[ClaimKind, Callable[[Any], bool]] = MappingProxyType(
    {
        ClaimKind.STRING: _is_string,
        ClaimKind.STRING_LIST: _is_string_list,
        ClaimKind.AUDIENCE: _is_audience,
        ClaimKind.NUMERIC_DATE: _is_numeric_date,
        ClaimKind.INTEGER: _is_integer,
        ClaimKind.BOOLEAN: _is_boolean,
        ClaimKind.OBJECT: _is_object,
        ClaimKind.OBJECT_LIST: _is_object_list,
        ClaimKind.ANY: _is_any,
    }
)
