"""What every grant type has in common: a target, the ceilings at it, and the award that a grant makes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from aims.authorization import authorization_details, scope
from aims.authorization.access_token import AccessToken
from aims.authorization.authorization_details import Details
from aims.authorization.errors import AuthorizationError
from aims.authorization.form import Form
from aims.authorization.store import Grant
from aims.identifiers import SpiffeId
from aims.policy.errors import PolicyError
from aims.policy.question import Entity, Question
from aims.policy.rows import Resource
from aims.policy.tables import Allowance, Tables
from aims.storage.write import Change, Consume, Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """A one-time thing that an award uses up, what follows, and what follows instead if it was used before.

    ``until`` (Unix seconds) is the end of what it can give.
    """

    consume: Consume
    until: int
    effects: tuple[Effect, ...]
    lost: tuple[Effect, ...]
    lost_changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Award:
    """A right that is about to be given, before policy and life are decided. Two are equal if they are the same.

    ``bound`` is false only at resources whose policy says ``bearer``, and never for what came of a bound token.
    ``parent`` is the subject token of an exchange:
    the new token neither outlives it nor survives what it depends on. ``delegated`` is the new grant, if there is one.
    """

    record: Literal["token.issue", "token.exchange"]
    subject: str
    audience: str
    target: Resource
    scopes: frozenset[str]
    details: Details
    grant_id: str
    question: Question
    actors: tuple[str, ...] = ()
    may_act: str | None = None
    resource: str | None = None
    parent: AccessToken | None = None
    delegated: Grant | None = None
    spending: Spending | None = None
    answer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bound(self) -> bool:
        return is_bound(self.target) or self.parent is not None


def is_bound(target: Resource) -> bool:
    """Whether tokens for a resource are bound to a key."""
    return target.profile != "bearer"


def resource_of(value: str, tables: Tables) -> tuple[Resource, str]:
    """Return the registered resource that a parameter names, octet by octet, and the audience that it gets.

    Raises:
        AuthorizationError: ``target_unknown``; ``target_profile`` for a resource that takes no access tokens.
    """
    row = _named(tables).get(value)
    if row is None:
        raise AuthorizationError("target_unknown", repr(value[:200]))
    if row.profile.startswith("wimse"):
        raise AuthorizationError("target_profile", row.name)
    return row, value if value in row.audiences else row.audiences[0]


def only_target(form: Form) -> str:
    """Return the one target of a request. Raises: AuthorizationError ``target_missing``, ``target_several``."""
    values = {value for _, value in form.targets}
    if not values:
        raise AuthorizationError("target_missing")
    if len(values) > 1:
        raise AuthorizationError("target_several", f"{len(values)}")
    return values.pop()


def wanted_scopes(text: str | None) -> frozenset[str]:
    """Return the scopes that are asked for. Raises: AuthorizationError ``scope_missing``, ``scope_malformed``."""
    if text is None:
        raise AuthorizationError("scope_missing")
    return scope.parse(text)


def require_ceiling(
    tables: Tables, agent: str, postures: tuple[str, ...], target: Resource, scopes: Collection[str]
) -> None:
    """Refuse what is wider than what any of its postures lets an agent hold.

    Raises:
        AuthorizationError: ``scope_ceiling``, ``client_posture``.
    """
    try:
        for allowance in _ceilings(tables, agent, postures, target.name):
            allowance.require(scopes)
    except PolicyError as error:
        reason = "client_posture" if error.reason == "posture" else "scope_ceiling"
        raise AuthorizationError(reason, error.detail) from error


def wanted_details(form: Form, tables: Tables, target: Resource, scopes: frozenset[str]) -> Details:
    """Return the authorization details that are asked for and that the policy allows with these scopes; often none.

    Raises:
        AuthorizationError: ``details_malformed``, ``details_unknown``.
    """
    text = form.get("authorization_details")
    if text is None:
        return ()
    details = authorization_details.parse(text)
    authorization_details.check(details, tables, target.name, scopes)
    return details


def agent_entity(agent: str, owner: str) -> Entity:
    """Return an agent as the policy knows it."""
    return Entity("Agent", agent, {"owner": owner})


@lru_cache(maxsize=64)
def longest_life(tables: Tables, postures: tuple[str, ...]) -> int:
    """Return the seconds that an access token may live in all of these postures.

    Raises:
        AuthorizationError: ``lifetime``.
    """
    try:
        return min(tables.lifetime("access-token", posture).seconds for posture in postures)
    except PolicyError as error:
        raise AuthorizationError("lifetime", str(error)) from error


def tool(target: Resource) -> Entity:
    """Return a resource as the policy knows it."""
    return Entity("Resource", target.name, {"kind": "tool"})


@lru_cache(maxsize=8)
def _named(tables: Tables) -> Mapping[str, Resource]:
    by_url = {row.url: row for row in tables.rows.resources}
    return by_url | {audience: row for row in tables.rows.resources for audience in row.audiences}


# Tables never change, so neither do the ceilings that they give to one agent.
@lru_cache(maxsize=4096)
def _ceilings(tables: Tables, agent: str, postures: tuple[str, ...], resource: str) -> tuple[Allowance, ...]:
    spiffe_id = SpiffeId.parse_workload(agent)
    return tuple(tables.ceiling(spiffe_id, posture, resource) for posture in postures)
