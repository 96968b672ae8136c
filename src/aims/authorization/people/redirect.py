"""Redirect URIs: compared octet by octet, and answered by 303 with ``iss`` (RFC 9700 2.1, 4.1; RFC 9207).

One exception is made, and only by a loopback *address*: the port is whatever the agent got at run time (RFC 8252 7.3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

from aims.authorization.people.errors import PeopleError

MAX_OCTETS: Final = 1024

# No user information, no fragment, no empty port; one spelling each, so that equal means equal.
_HTTPS = re.compile(
    r"https://(?:[a-z0-9-]+(?:\.[a-z0-9-]+)*|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?(?:/[!$&-;=?-Z_a-z~%]*)?"
)
_LOOPBACK = re.compile(r"(http://(?:127\.0\.0\.1|\[::1\]))(?::([1-9][0-9]{0,4}))?((?:/[!$&-;=?-Z_a-z~%]*)?)")
_PRIVATE = re.compile(r"[a-z][a-z0-9+-]*(?:\.[a-z0-9+-]+)+:/[!$&-;=?-Z_a-z~%]*")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*:)(//[^/?]+)?")


def check(uri: str) -> str:
    """Return a URI that may be registered.

    Raises:
        PeopleError: ``redirect_malformed``.
    """
    fits = any(form.fullmatch(uri) for form in (_HTTPS, _LOOPBACK, _PRIVATE))
    if len(uri) > MAX_OCTETS or not fits:
        raise PeopleError("redirect_malformed", ascii(uri[:200]))
    return uri


def allowed(requested: str, registered: Iterable[str]) -> bool:
    """Tell whether codes for this client may go to ``requested``."""
    if len(requested) > MAX_OCTETS:
        return False
    place = _portless(requested)
    return any(requested == one or (place is not None and place == _portless(one)) for one in registered)


def response(uri: str, parameters: Iterable[tuple[str, str | None]]) -> str:
    """Return ``uri`` with parameters added to its query; those that are None are left out."""
    added = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters if value is not None)
    return f"{uri}{'&' if '?' in uri else '?'}{added}"


def origin(uri: str) -> str:
    """Return scheme and host, for a page's ``form-action`` and for people to read."""
    found = _ORIGIN.match(uri)
    if found is None:
        raise PeopleError("redirect_malformed", ascii(uri[:200]))
    return found[1] + (found[2] or "")


def _portless(uri: str) -> tuple[str, str] | None:
    found = _LOOPBACK.fullmatch(uri)
    if found is None or (found[2] is not None and int(found[2]) > 65535):
        return None
    return found[1], found[3]
