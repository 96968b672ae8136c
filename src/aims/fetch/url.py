"""The address of a request, parsed without repair: one spelling in, one connection out. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from aims.fetch.errors import FetchError

MAX_URL: Final = 2048
HTTPS_PORT: Final = 443

_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_URL: Final = re.compile(
    rf"https://(?P<host>{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]{{2,45}}\])(?::(?P<port>[1-9][0-9]{{0,4}}))?"
    r"(?P<target>/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*(?:\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?)?"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a request goes: ``host`` without brackets, ``target`` path and query, ``authority`` for the Host header."""

    host: str
    port: int
    target: str
    authority: str


def parse_url(url: str) -> Endpoint:
    """Return the endpoint of an https URL with a lower-case host, without user, fragment or spaces.

    Raises: FetchError ``url``.
    """
    found = _URL.fullmatch(url) if len(url) <= MAX_URL else None
    if found is None or len(found["host"]) > 253:
        raise FetchError("url", repr(url[:200]))
    port = int(found["port"] or HTTPS_PORT)
    if port > 65535:
        raise FetchError("url", repr(url[:200]))
    host = found["host"]
    authority = host if port == HTTPS_PORT else f"{host}:{port}"
    return Endpoint(host.strip("[]"), port, found["target"] or "/", authority)
