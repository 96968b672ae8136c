"""Subject identifiers (RFC 9493, and the complex ones of SSF 1.0): whom an event is about. Pure.

Taken are ``uri``, ``iss_sub``, ``opaque`` and ``complex`` of those. A member that the format does not have refuses the
identifier (RFC 9493 3): a receiver that passed over one would read "this user through this agent" as "this user".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec

from aims.monitoring.errors import MonitoringError

MAX_TEXT: Final = 2048
MAX_CANONICAL: Final = 1024
MAX_MEMBERS: Final = 8


@dataclass(frozen=True, slots=True)
class UriSubject:
    """``uri``: an agent, a workload or a trust domain."""

    uri: str


@dataclass(frozen=True, slots=True)
class IssSubSubject:
    """``iss_sub``: an account at an issuer."""

    iss: str
    sub: str


@dataclass(frozen=True, slots=True)
class OpaqueSubject:
    """``opaque``: a name that both sides know."""

    id: str


Simple: TypeAlias = UriSubject | IssSubSubject | OpaqueSubject


@dataclass(frozen=True, slots=True)
class ComplexSubject:
    """``complex``: one principal, described by several members; a missing one is a wildcard."""

    members: Mapping[str, Simple]


Subject: TypeAlias = Simple | ComplexSubject

_FORMATS: Final[Mapping[str, tuple[type[Any], tuple[str, ...]]]] = {
    "uri": (UriSubject, ("uri",)),
    "iss_sub": (IssSubSubject, ("iss", "sub")),
    "opaque": (OpaqueSubject, ("id",)),
}
_NAMES: Final = {kind: name for name, (kind, _) in _FORMATS.items()}


def parse(value: object) -> Subject:
    """Read a subject identifier.

    Raises: MonitoringError ``set_subject`` for an unknown format, a member that is missing, surplus, empty, too long or
        not printable, and a complex subject without members or within another.
    """
    if not isinstance(value, Mapping):
        raise MonitoringError("set_subject", "not an object")
    if value.get("format") != "complex":
        return _simple(value)
    members = {name: part for name, part in value.items() if name != "format"}
    if not 1 <= len(members) <= MAX_MEMBERS:
        raise MonitoringError("set_subject", "members of a complex subject")
    return ComplexSubject({name: _simple(part) for name, part in members.items()})


def build(subject: Subject) -> dict[str, Any]:
    """Return the identifier as JSON."""
    if isinstance(subject, ComplexSubject):
        return {"format": "complex", **{name: build(part) for name, part in subject.members.items()}}
    name = _NAMES[type(subject)]
    return {"format": name, **{member: getattr(subject, member) for member in _FORMATS[name][1]}}


def canonical(subject: Simple) -> str:
    """Return one text per simple subject, by which a transmitter's name for a person is looked up.

    Raises: MonitoringError ``set_subject`` beyond 1024 characters.
    """
    name = _NAMES[type(subject)]
    text = msgspec.json.encode([name, *(getattr(subject, member) for member in _FORMATS[name][1])]).decode("utf-8")
    if len(text) > MAX_CANONICAL:
        raise MonitoringError("set_subject", "too long")
    return text


def _simple(value: object) -> Simple:
    if not isinstance(value, Mapping):
        raise MonitoringError("set_subject", "not an object")
    name = value.get("format")
    kind, members = _FORMATS.get(name if isinstance(name, str) else "", (None, ()))
    if kind is None or value.keys() != {"format", *members}:
        raise MonitoringError("set_subject", "format or members")
    texts = [value[member] for member in members]
    for text in texts:
        if type(text) is not str or not 1 <= len(text) <= MAX_TEXT or not text.isprintable():
            raise MonitoringError("set_subject", "a member's text")
    subject: Simple = kind(*texts)
    return subject
