"""The facts of an HTTP request that a proof is judged by, frozen before the first check."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice

import msgspec

from aims.authentication.errors import AuthenticationError
from aims.authentication.target import MAX_OCTETS as MAX_TARGET_OCTETS
from aims.authentication.target import normal

MAX_FIELDS = 128
MAX_VALUE_OCTETS = 65_536  # of all fields together; a name has 256 at most

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}", re.ASCII)  # RFC 9110 5.6.2
_VALUE_OCTETS = bytes({*b"\t", *range(0x20, 0x7F), *range(0x80, 0x100)})  # RFC 9110 5.5
_METHOD_OCTETS = 32


class HttpRequest(msgspec.Struct, frozen=True, gc=False):
    """One request. ``of`` makes it from what a server or client library has.

    ``target_uri`` follows from the verifier's configuration and the request line, never from ``Host`` or
    ``X-Forwarded-*``. ``fields`` are the header fields in their order, names in lower case, values as they were sent,
    one character for each octet. ``body_sha256`` is the digest of the content where somebody computed it.
    """

    method: str
    target_uri: str
    fields: tuple[tuple[str, str], ...]
    body_sha256: bytes | None = None

    def __repr__(self) -> str:
        return f"HttpRequest({self.method})"

    @classmethod
    def of(
        cls,
        method: str,
        target_uri: str,
        headers: Iterable[tuple[str | bytes, str | bytes]],
        *,
        body_sha256: bytes | None = None,
    ) -> HttpRequest:
        """Freeze a request.

        Raises:
            AuthenticationError: ``request_malformed``: method or field name that is no token, a target URI that has no
                normal form, control characters in a value, over 128 fields, or values over 64 KiB together.
        """
        if len(method) > _METHOD_OCTETS or _TOKEN.fullmatch(method) is None:
            raise AuthenticationError("request_malformed", "method")
        if len(target_uri) > MAX_TARGET_OCTETS or normal(target_uri) is None:
            raise AuthenticationError("request_malformed", "target")
        if body_sha256 is not None and len(body_sha256) != 32:
            raise AuthenticationError("request_malformed", "digest of the body")
        fields = tuple(
            [
                (_field_name(name), value.decode("latin-1") if isinstance(value, bytes) else value)
                for name, value in islice(headers, MAX_FIELDS + 1)
            ]
        )
        try:
            values = "".join([value for _, value in fields]).encode("latin-1")
        except UnicodeEncodeError:
            raise AuthenticationError("request_malformed", "value of a header field") from None
        if len(fields) > MAX_FIELDS or len(values) > MAX_VALUE_OCTETS:
            raise AuthenticationError("request_malformed", "too many header fields")
        if values.translate(None, _VALUE_OCTETS):
            raise AuthenticationError("request_malformed", "value of a header field")
        return cls(method, target_uri, fields, body_sha256)

    def all(self, name: str) -> list[str]:
        """Return the values of a field, given by its lower-case name, in their order."""
        return [value for found, value in self.fields if found == name]

    def one(self, name: str, reason: str) -> str:
        """Return the value of a field that must be there exactly once; ``AuthenticationError(reason)`` otherwise."""
        values = [value for found, value in self.fields if found == name]
        if len(values) != 1:
            raise AuthenticationError(reason, f"{len(values)} times" if values else "")
        return values[0]

    def at_most_one(self, name: str, reason: str) -> str | None:
        """Return the value of a field that may be there once, None without it; ``AuthenticationError(reason)``."""
        values = [value for found, value in self.fields if found == name]
        if len(values) > 1:
            raise AuthenticationError(reason, f"{len(values)} times")
        return values[0] if values else None


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


# The same few names come with every request. Only good ones are remembered.
@lru_cache(maxsize=1024)
def _field_name(name: str | bytes) -> str:
    text = _text(name)
    if _TOKEN.fullmatch(text) is None:
        raise AuthenticationError("request_malformed", "name of a header field")
    return text.lower()
