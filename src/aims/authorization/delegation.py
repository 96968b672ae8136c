"""Chains of actors (RFC 8693 4.1): who acts for whom, outermost first, and who may come next.

``sub`` is whose right it is. An agent that uses its own right is the subject and no actor. Whoever exchanges a token
becomes the outermost actor over those that were there, unless it is that already.
"""

from __future__ import annotations

from typing import Any, Final

from aims.authorization.errors import AuthorizationError
from aims.identifiers import IdentifierError, SpiffeId

MAX_ACTORS: Final = 4


def read_actors(claim: object) -> tuple[str, ...]:
    """Return the actors of an ``act`` claim, outermost first; empty for None.

    Each level is an object with exactly ``sub`` and, except the innermost, ``act``; each ``sub`` is the SPIFFE ID of a
    workload, and none stands there twice.

    Raises:
        AuthorizationError: ``chain_malformed``, ``chain_too_long``, ``actor_twice``.
    """
    actors: list[str] = []
    while claim is not None:
        if len(actors) == MAX_ACTORS:
            raise AuthorizationError("chain_too_long")
        if type(claim) is not dict or not {"sub"} <= claim.keys() <= {"sub", "act"}:
            raise AuthorizationError("chain_malformed", "a level is {sub, act}")
        actors.append(_workload(claim["sub"]))
        if claim.get("act", claim) is None:
            raise AuthorizationError("chain_malformed", "act is null")
        claim = claim.get("act")
    if len(set(actors)) != len(actors):
        raise AuthorizationError("actor_twice")
    return tuple(actors)


def write_actors(actors: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the ``act`` claim of a chain, None for an empty one."""
    claim: dict[str, Any] | None = None
    for actor in reversed(actors):
        claim = {"sub": actor} if claim is None else {"sub": actor, "act": claim}
    return claim


def acting(subject: str, actors: tuple[str, ...], client: str) -> tuple[str, ...]:
    """Return the chain of the token that ``client`` gets for one with ``subject`` and ``actors``.

    Raises:
        AuthorizationError: ``actor_twice``: it would act for itself, or is in the chain already; ``chain_too_long``.
    """
    if actors[:1] == (client,) or (not actors and client == subject):
        return actors
    if client in actors or client == subject:
        raise AuthorizationError("actor_twice", client)
    if len(actors) >= MAX_ACTORS:
        raise AuthorizationError("chain_too_long", f"{client} would be actor {len(actors) + 1}")
    return (client, *actors)


def read_may_act(claim: object, issuer: str) -> str | None:
    """Return who may act by a ``may_act`` claim (RFC 8693 4.4), None without one.

    Raises:
        AuthorizationError: ``chain_malformed``: a member that is not understood must not widen who may act.
    """
    if claim is None:
        return None
    if type(claim) is not dict or not {"sub"} <= claim.keys() <= {"sub", "iss"} or claim.get("iss", issuer) != issuer:
        raise AuthorizationError("chain_malformed", "may_act is {sub}")
    return _workload(claim["sub"])


def _workload(value: object) -> str:
    if type(value) is not str:
        raise AuthorizationError("chain_malformed", "sub")
    try:
        SpiffeId.parse_workload(value)
    except IdentifierError as error:
        raise AuthorizationError("chain_malformed", str(error)) from error
    return value
