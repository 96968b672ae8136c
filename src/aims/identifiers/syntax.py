"""The grammar that both schemes share, checked in one order so that each text has one answer.

A consumer refuses a text that is not canonical and never normalises it. Numbers are the steps of ``split``.
"""

from __future__ import annotations

import re

from aims.identifiers.errors import IdentifierError

MAX_OCTETS = 2048  # SPIFFE-ID 2.3; identifier draft: MUST handle 2048 inclusive, SHOULD NOT make longer
MAX_TRUST_DOMAIN_OCTETS = 255  # SPIFFE-ID 2.3; applied to both schemes

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+", re.ASCII)
_DOTTED_QUAD = re.compile(r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}", re.ASCII)
_SEGMENT = {
    "spiffe": re.compile(r"[A-Za-z0-9._-]+", re.ASCII),
    "wimse": re.compile(r"[A-Za-z0-9._~-]+", re.ASCII),  # RFC 3986 unreserved
}


def split(text: str) -> tuple[str, str, str]:
    """Return ``(scheme, trust domain, path)`` of a canonical identifier; the path is "" or begins with "/".

    Raises:
        IdentifierError: the first rule that ``text`` breaks.
    """
    # 1. size and alphabet, before anything is searched
    if len(text) > MAX_OCTETS:
        raise IdentifierError("too_long")
    if not text.isascii():
        raise IdentifierError("non_ascii")
    # 2. scheme
    found = _SCHEME.match(text)
    if found is None:
        raise IdentifierError("not_absolute_uri_with_authority")
    scheme = found[1]
    if scheme not in _SEGMENT:
        raise IdentifierError("scheme_case" if scheme.lower() in _SEGMENT else "unknown_scheme")
    # 3. components that no identifier has, in the order in which RFC 3986 cuts them off
    rest = text[found.end() :]
    for mark, reason in (("#", "fragment"), ("?", "query"), ("%", "percent_encoding")):
        if mark in rest:
            raise IdentifierError(reason)
    # 4. trust domain, 5. path
    authority, slash, tail = rest.partition("/")
    check_trust_domain(authority)
    if scheme == "wimse":
        if authority.endswith("."):
            raise IdentifierError("trust_domain_trailing_dot")
        if _DOTTED_QUAD.fullmatch(authority):
            raise IdentifierError("ip_address_trust_domain")
    path = slash + tail
    check_path(scheme, path)
    return scheme, authority, path


def check_trust_domain(name: str) -> None:
    """Raise ``IdentifierError`` unless ``name`` is a trust domain (SPIFFE-ID 2.1).

    Names that look like addresses pass: SPIFFE forbids to treat them specially. The wimse scheme is stricter, see
    ``split``.
    """
    if not name:
        raise IdentifierError("empty_authority")
    if "@" in name:
        raise IdentifierError("userinfo")
    if name.startswith("["):
        raise IdentifierError("ip_literal")
    if ":" in name:
        raise IdentifierError("port")
    if not _TRUST_DOMAIN.fullmatch(name):
        raise IdentifierError("trust_domain_chars")
    if len(name) > MAX_TRUST_DOMAIN_OCTETS:
        raise IdentifierError("trust_domain_too_long")


def check_path(scheme: str, path: str) -> None:
    """Raise ``IdentifierError`` unless ``path`` is "" or ``/segment`` repeated."""
    if path == "":
        return
    if path == "/":
        raise IdentifierError("empty_path")
    first, *segments = path.split("/")
    if first:
        raise IdentifierError("segment_chars", "a path begins with a slash")
    if segments[-1] == "":
        raise IdentifierError("trailing_slash")
    for segment in segments:
        check_segment(segment, scheme)


def check_segment(segment: str, scheme: str = "spiffe") -> None:
    """Raise ``IdentifierError`` unless ``segment`` is one path segment of ``scheme``."""
    if not segment:
        raise IdentifierError("empty_segment")
    if segment in {".", ".."}:
        raise IdentifierError("dot_segment")
    if not _SEGMENT[scheme].fullmatch(segment):
        raise IdentifierError("segment_chars")
