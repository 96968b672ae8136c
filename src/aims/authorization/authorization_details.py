"""Authorization details (RFC 9396): what exactly may be done, beside the scope that allows it at all.

A ``type`` is a purpose of the policy, at one resource; its members are those that the purpose lists, and nothing else.
A narrower right holds some of the wider one's objects, each unchanged: what "less" means inside an object is known to
nobody but the resource.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

import msgspec

from aims.authorization.errors import AuthorizationError
from aims.jose import JoseError
from aims.jose.strict_json import read_object
from aims.policy.errors import PolicyError
from aims.policy.tables import Tables, check_details

MAX_DETAILS: Final = 8
MAX_OCTETS: Final = 4096

Details: TypeAlias = tuple[Mapping[str, Any], ...]

_encode = msgspec.json.Encoder(order="deterministic").encode


def parse(text: str) -> Details:
    """Return the objects of the parameter: one to eight, each with a ``type``, none twice.

    Raises:
        AuthorizationError: ``details_malformed``.
    """
    octets = text.encode("utf-8", "surrogatepass")
    if len(octets) > MAX_OCTETS:
        raise AuthorizationError("details_malformed", f"{len(octets)} octets")
    try:
        # the strict reader takes objects; a list that tries to leave this one makes it malformed
        found = read_object(b'{"list":%b}' % octets)
    except JoseError as error:
        raise AuthorizationError("details_malformed", str(error)) from error
    if set(found) != {"list"}:
        raise AuthorizationError("details_malformed", "not one list")
    return of_claim(found["list"])


def of_claim(value: object) -> Details:
    """Return the objects of a claim or parameter that was read already.

    Raises:
        AuthorizationError: ``details_malformed``.
    """
    if type(value) is not list or not 1 <= len(value) <= MAX_DETAILS:
        raise AuthorizationError("details_malformed", "not a list of 1 to 8")
    for one in value:
        if type(one) is not dict or type(one.get("type")) is not str or not one["type"]:
            raise AuthorizationError("details_malformed", "an object without a type")
    if len({_encode(one) for one in value}) != len(value):
        raise AuthorizationError("details_malformed", "an object twice")
    return tuple(value)


def check(details: Details, tables: Tables, resource: str, scopes: Iterable[str]) -> None:
    """Hold details against the policy: each type is a purpose of ``resource`` that ``scopes`` open, with its members.

    Raises:
        AuthorizationError: ``details_unknown``.
    """
    held = frozenset(scopes)
    for one in details:
        try:
            purpose = tables.purpose(one["type"], resource, held)
            check_details(purpose, {name: value for name, value in one.items() if name != "type"})
        except PolicyError as error:
            raise AuthorizationError("details_unknown", str(error)) from error


def require_within(details: Details, parent: Details) -> None:
    """Refuse details that the parent does not hold; a parent without details holds none.

    Raises:
        AuthorizationError: ``details_parent``.
    """
    held = {_encode(one) for one in parent}
    for one in details:
        if _encode(one) not in held:
            raise AuthorizationError("details_parent", one["type"][:100])
