"""Target URIs and their comparison (RFC 9449 4.3): scheme, host, port and path, without query and fragment."""

from __future__ import annotations

import re
from functools import lru_cache

MAX_OCTETS = 8192

_URI = re.compile(r"(?P<scheme>[A-Za-z]+)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?:[?#][!-~]*)?", re.ASCII)
_AUTHORITY = re.compile(r"(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[1-9][0-9]{0,4}))?", re.ASCII)
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*", re.ASCII)
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})", re.ASCII)
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_DEFAULT_PORT = {"https": "443", "http": "80"}


@lru_cache(maxsize=1024)
def normal(uri: str) -> str | None:
    """Return the URI without query and fragment in its normal form (RFC 3986 6.2.2 and 6.2.3), None if it has none.

    Scheme and host become lower case, a default port goes, an empty path becomes ``/``, escapes of unreserved
    characters are undone. A path with dot segments, plain or escaped, has no normal form: two servers would read it
    in two ways. Neither has a URI with user information or other schemes than http and https.
    """
    if len(uri) > MAX_OCTETS:
        return None
    found = _URI.fullmatch(uri)
    if found is None:
        return None
    scheme, path = found["scheme"].lower(), found["path"] or "/"
    authority = _AUTHORITY.fullmatch(found["authority"].lower())
    if scheme not in _DEFAULT_PORT or authority is None or _PATH.fullmatch(path) is None:
        return None
    path = _ESCAPE.sub(_unescaped, path)
    if not {".", ".."}.isdisjoint(path.split("/")):
        return None
    port = authority["port"]
    place = authority["host"] if port in (None, _DEFAULT_PORT[scheme]) else f"{authority['host']}:{port}"
    return f"{scheme}://{place}{path}"


def same(one: str, other: str) -> bool:
    """Tell whether two URIs have one normal form. A URI without one equals nothing, not even itself."""
    wanted = normal(one)
    return wanted is not None and wanted == normal(other)


def covers(base: str, uri: str) -> bool:
    """Tell whether ``uri`` is ``base`` or lies below it, by whole path segments and octet by octet."""
    root, found = normal(base), normal(uri)
    if root is None or found is None:
        return False
    return found == root or found.startswith(root if root.endswith("/") else f"{root}/")


def without_query(uri: str) -> str:
    """Return the URI up to its query or fragment."""
    return uri.partition("#")[0].partition("?")[0]


def _unescaped(found: re.Match[str]) -> str:
    character = chr(int(found[1], 16))
    return character if character in _UNRESERVED else found[0].upper()
