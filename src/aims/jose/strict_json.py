"""JSON objects from outside: strict UTF-8, each member once, bounded depth and bounded integers.

msgspec refuses NaN, byte order marks, lone surrogates and trailing octets, but lets the last of two equal names win
and knows no bound on integers. Most documents are written compactly by a machine, and for those encoding the result
again gives the same octets, which proves that nothing was lost. Everything else is read a second time with care.
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

import msgspec

from aims.jose.errors import JoseError

MAX_DEPTH = 16
MAX_INTEGER = 2**53 - 1  # what every JSON reader holds exactly (RFC 7493 2.2)

_DIGITS = bytes.maketrans(b"0123456789", b"0000000000")
_LONG_NUMBER = b"0" * 16  # the shortest run of digits that can exceed MAX_INTEGER
_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_ONE_BRACKET = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def read_object(octets: bytes, *, max_depth: int = MAX_DEPTH, max_integer: int = MAX_INTEGER) -> dict[str, Any]:
    """Return the JSON object in ``octets``; bounding their number is the caller's part.

    Raises:
        JoseError: ``duplicate_member``, or ``malformed`` for everything else.
    """
    # Neither reader may recurse deeper than the bound; few brackets cannot be deep.
    if octets.count(b"{") + octets.count(b"[") > max_depth and _deeper(octets, max_depth):
        raise JoseError("malformed", "nested too deep")
    try:
        value = _decode(octets)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise JoseError("malformed", f"not JSON: {error}") from None
    if type(value) is not dict:
        raise JoseError("malformed", "not a JSON object")
    if _encode(value) != octets or _LONG_NUMBER in octets.translate(_DIGITS):
        _read_again(octets, max_integer)
    return cast("dict[str, Any]", value)


def _read_again(octets: bytes, max_integer: int) -> None:
    def integer(digits: str) -> int:
        if len(digits) > 20 or abs(int(digits)) > max_integer:
            raise JoseError("malformed", "integer out of bounds")
        return 0

    json.loads(octets, object_pairs_hook=_each_once, parse_int=integer)


def _each_once(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise JoseError("duplicate_member")


def _deeper(octets: bytes, limit: int) -> bool:
    """Tell whether brackets outside strings nest deeper than ``limit``, in linear time and without recursion."""
    # every second piece between quotes is outside strings, once escaped characters are gone
    outside = b"".join(_ESCAPED.sub(b"", octets).split(b'"')[::2])
    brackets = outside.translate(_ONE_BRACKET, _NO_BRACKETS)
    for _ in range(limit):  # each round takes the innermost level away
        brackets = brackets.replace(b"[]", b"")
    return brackets != b""
