"""Token exchange (RFC 8693): a right is handed on to another agent, taken up by it, or narrowed.

Steps, as the token endpoint numbers them:

    6. the grant:
       a. kinds of token: access tokens in and out              subject_token_type, requested_token_type
       b. the subject token, by its signature and its names     subject_token, subject_stopped
       c. the presenter is its client, or its audience          subject_presenter
       d. who may act                                           may_act
       e. its client proves the key that it is bound to         subject_proof
       f. an actor token is the client's own                    actor_token_type, actor_token
       g. the chain of actors                                   actor_twice, chain_too_long
    7. the target: the resource at which the right counts,      target_...
       or an agent, if the posture may delegate                 delegation_posture
    8. scope: something, within the parent and the ceiling      scope_...
    9. authorization_details: within the parent                 details_...

A right that counts at one resource never comes to count at another, even where scopes have the same names.
"""

from __future__ import annotations

from typing import Final

import msgspec

from aims.authorization import authorization_details, scope
from aims.authorization.access_token import TOKEN_TYPE, AccessToken, AccessTokenVerifier, Confirmation
from aims.authorization.delegation import acting
from aims.authorization.errors import AuthorizationError
from aims.authorization.form import Form
from aims.authorization.grants.award import (
    Award,
    agent_entity,
    only_target,
    require_ceiling,
    resource_of,
    tool,
    wanted_details,
    wanted_scopes,
)
from aims.authorization.model import Asking, dead, stored
from aims.authorization.store import STANDING, Grant
from aims.policy.errors import PolicyError
from aims.policy.question import Question
from aims.policy.rows import Resource
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry.model import Kind, State, Workload

GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"

_encode = msgspec.json.Encoder(order="deterministic").encode


def award(asking: Asking, verifier: AccessTokenVerifier, confirmation: Confirmation) -> Award:
    """Compute the right that a request gives. ``confirmation`` is the key that the request proved.

    Raises:
        AuthorizationError: the first step that failed.
    """
    form, client = asking.form, asking.client
    # 6. the grant
    parent = _subject(asking, verifier)
    _check_presenter(parent, client.id, confirmation)
    _check_actor(asking, verifier, confirmation)
    actors = acting(parent.subject, parent.actors, client.id)
    # 7. the target
    receiver, target, audience = _target(asking, parent, actors)
    # 8. scope: something, within the parent and the ceiling
    scopes = wanted_scopes(form.get("scope"))
    if not scopes <= parent.scopes:
        raise AuthorizationError("scope_parent", scope.write(scopes - parent.scopes))
    require_ceiling(asking.tables, client.id, asking.standing.postures, target, scopes)
    # 9. authorization_details: within the parent
    # what was allowed exactly stays exact: who does not repeat it keeps it
    details = wanted_details(form, asking.tables, target, scopes) or parent.details
    authorization_details.require_within(details, parent.details)
    question = Question(
        principal=agent_entity(client.id, client.workload.owner),
        action="exchange",
        resource=tool(target) if receiver is None else agent_entity(audience, receiver.owner),
        context={
            "subject": parent.subject,
            "posture": asking.standing.posture,
            "scopes": scopes,
            "actors": len(actors),
        },
    )
    delegated = None
    if receiver is not None:
        text = _encode(details).decode() if details else ""
        delegated = _grant(asking, parent, audience, scope.write(scopes), text)
    return Award(
        record="token.exchange",
        subject=parent.subject,
        audience=audience,
        target=target,
        scopes=scopes,
        details=details,
        grant_id=parent.grant_id if delegated is None else delegated.root,
        question=question,
        actors=actors,
        may_act=None if receiver is None else audience,
        resource=None if receiver is None else parent.target,
        parent=parent,
        delegated=delegated,
        answer={"issued_token_type": TOKEN_TYPE},
    )


def _subject(asking: Asking, verifier: AccessTokenVerifier) -> AccessToken:
    form = asking.form
    # a. kinds of token: access tokens in and out
    text = form.require("subject_token")
    if form.require("subject_token_type") != TOKEN_TYPE:
        raise AuthorizationError("subject_token_type")
    if form.get("requested_token_type") not in {None, TOKEN_TYPE}:
        raise AuthorizationError("requested_token_type")
    # b. the subject token, by its signature and its names
    try:
        parent = verifier.read(text, now=asking.now)
    except AuthorizationError as error:
        raise AuthorizationError("subject_token", error.code) from error
    stopped = dead(stored(parent.names), parent.epoch, asking.stops)
    if stopped is not None:
        raise AuthorizationError("subject_stopped", f"{stopped.kind}:{stopped.id}")
    return parent


def _check_presenter(parent: AccessToken, client: str, confirmation: Confirmation) -> None:
    # c. the presenter is its client, or its audience
    if client not in {parent.audience, parent.client_id}:
        raise AuthorizationError("subject_presenter")
    # d. who may act: named for whoever is the audience, and nobody else for the token's own client
    handed_on = parent.audience == client
    if parent.may_act != (client if handed_on else None):
        raise AuthorizationError("may_act")
    # e. its client proves the key that it is bound to; whom it was handed to cannot have that key
    if not handed_on and parent.confirmation != confirmation:
        raise AuthorizationError("subject_proof")


def _check_actor(asking: Asking, verifier: AccessTokenVerifier, confirmation: Confirmation) -> None:
    # f. an actor token is the client's own
    form = asking.form
    text, kind = form.get("actor_token"), form.get("actor_token_type")
    if text is None and kind is None:
        return
    if text is None or kind is None:
        raise AuthorizationError("actor_token_type")
    if kind != TOKEN_TYPE:
        raise AuthorizationError("actor_token", "not an access token")
    try:
        actor = verifier.read(text, now=asking.now)
    except AuthorizationError as error:
        raise AuthorizationError("actor_token", error.code) from error
    own = actor.subject == actor.client_id == asking.client.id and not actor.actors and actor.may_act is None
    if not own or actor.confirmation != confirmation or dead(stored(actor.names), actor.epoch, asking.stops):
        raise AuthorizationError("actor_token")


def _target(asking: Asking, parent: AccessToken, actors: tuple[str, ...]) -> tuple[Workload | None, Resource, str]:
    """Return the agent to whom the right is handed on, or None; the resource at which it counts; the new audience."""
    form = asking.form
    receiver = _receiver(form)
    if receiver is None:
        target, audience = resource_of(only_target(form), asking.tables)
        if resource_of(parent.target, asking.tables)[0] is not target:
            raise AuthorizationError("target_other", target.name)
        return None, target, audience
    for value in form.all("resource"):
        if value != parent.target:
            raise AuthorizationError("target_other", repr(value[:200]))
    try:
        workload = asking.registry.workload_by_id(receiver)
    except ProvisioningError as error:
        raise AuthorizationError("target_unknown", repr(receiver[:200])) from error
    if workload.kind is not Kind.AGENT or workload.state is not State.ACTIVE:
        raise AuthorizationError("target_unknown", f"{receiver} is a {workload.state} {workload.kind}")
    if receiver in {asking.client.id, parent.subject, *actors}:
        raise AuthorizationError("actor_twice", receiver)
    try:
        for posture in asking.standing.postures:
            asking.tables.require_delegation(posture)
    except PolicyError as error:
        raise AuthorizationError("delegation_posture", error.detail) from error
    return workload, resource_of(parent.target, asking.tables)[0], receiver


def _receiver(form: Form) -> str | None:
    """Return the agent that ``audience`` names, None where the target is a resource."""
    agents = {value for value in form.all("audience") if value.startswith("spiffe://")}
    if not agents:
        return None
    if len(set(form.all("audience"))) > 1 or len(set(form.all("resource"))) > 1:
        raise AuthorizationError("target_several")
    return agents.pop()


def _grant(asking: Asking, parent: AccessToken, receiver: str, scopes: str, details: str) -> Grant:
    """Return the row of a delegation: the root of a new tree under a standing grant, else one more below its root."""
    grant_id, now = asking.ids.new(), int(asking.now)
    return Grant(
        id=grant_id,
        parent=parent.grant_id,
        root=grant_id if parent.grant_id.startswith(STANDING) else parent.grant_id,
        agent=receiver,
        giver=asking.client.id,
        instance=asking.client.fence.instance,
        subject=parent.subject,
        resource=parent.target,
        scope=scopes,
        details=details,
        created=now,
        expires=int(parent.expires),
        epoch=asking.seen,
    )
