"""The authorization code grant (OAuth 2.1 4.1.3): what the token endpoint makes of a code.

Steps, as the token endpoint numbers them:

    6. the grant:
       a. a code that was given, and is this client's           code_unknown, code_client
       b. it has not expired, or was used before                code_expired
       c. the verifier behind the challenge                     code_verifier
       d. redirect_uri, if sent, and the DPoP key, if bound     code_redirect, code_key
       e. nothing was stopped since the person approved         stopped
    7. the target is the code's own                             code_target
    8. scope: what was approved, within the ceilings            scope_ceiling
    9. authorization_details: what was approved                 details_unknown

A code is used up by the Write that issues the token, so of many redemptions one succeeds; each other one that passed
these steps ends the grant, and with it the token that the first one got. Whoever holds a code without its verifier ends
nothing. ``find`` waits and is asked before ``award``, which does not.
"""

from __future__ import annotations

from typing import Final

import msgspec
from sqlalchemy import Connection

from aims.authorization import authorization_details
from aims.authorization import scope as scopes
from aims.authorization import store as grants
from aims.authorization.access_token import Confirmation
from aims.authorization.errors import AuthorizationError
from aims.authorization.form import Form
from aims.authorization.grants.award import Award, Spending, agent_entity, is_bound, resource_of, tool
from aims.authorization.model import Asking, dead
from aims.authorization.people import pkce, store
from aims.authorization.people.consent import ended
from aims.authorization.people.errors import PeopleError
from aims.authorization.people.store import CodeRow, hashed
from aims.policy.errors import PolicyError
from aims.policy.question import Question
from aims.policy.rows import Resource
from aims.storage.write import Name

GRANT_TYPE: Final = "authorization_code"


def find(connection: Connection, form: Form) -> CodeRow | None:
    """Read the code of a request. Raises: AuthorizationError ``parameter_missing``."""
    return store.find_code(connection, hashed(form.require("code")))


def award(asking: Asking, confirmation: Confirmation, code: CodeRow | None) -> Award:
    """Compute the right that a code gives. ``confirmation`` is the key that the request proved.

    Raises:
        AuthorizationError: the first step that failed.
    """
    form, client = asking.form, asking.client
    # 6. the grant
    code = _redeemable(asking, code)
    _check_binding(form, confirmation, code)
    names = (Name("person", code.person), Name("agent", code.agent), Name("grant", code.grant_id))
    stopped = dead(names, code.epoch, asking.stops)
    # a grant that a second use has ended says so itself
    if stopped is not None:
        raise PeopleError("code_used") if code.used and stopped.kind == "grant" else AuthorizationError("stopped")
    # 7. the target is the code's own
    if any(value != code.audience for _, value in form.targets):
        raise PeopleError("code_target")
    target, audience = resource_of(code.audience, asking.tables)
    # 8. scope: what was approved, within the ceilings
    approved = _within_ceilings(asking, target, scopes.parse(code.scope))
    # 9. authorization_details: what was approved
    listed = msgspec.json.decode(code.details)
    details = authorization_details.of_claim(listed) if listed else ()
    authorization_details.check(details, asking.tables, target.name, approved)
    now = int(asking.now)
    return Award(
        record="token.issue",
        subject=code.person,
        audience=audience,
        target=target,
        scopes=approved,
        details=details,
        grant_id=code.grant_id,
        question=Question(
            principal=agent_entity(client.id, client.workload.owner),
            action="token",
            resource=tool(target),
            context={
                "grant": code.grant_id,
                "posture": asking.standing.posture,
                "scopes": approved,
                "bound": is_bound(target),
            },
        ),
        actors=(client.id,),
        spending=Spending(
            consume=code.consume,
            until=code.grant_expires,
            effects=(store.code_used(code.hash, now),),
            lost=(grants.revoked(code.grant_id, now),),
            lost_changes=(ended(code.grant_id),),
        ),
    )


def _redeemable(asking: Asking, code: CodeRow | None) -> CodeRow:
    # a. a code that was given, and is this client's
    if code is None:
        raise PeopleError("code_unknown")
    if code.agent != asking.client.id:
        raise PeopleError("code_client")
    # b. it has not expired; one that was used goes on, to where its second use is noticed
    if not code.used and code.expires <= asking.now:
        raise PeopleError("code_expired")
    return code


def _check_binding(form: Form, confirmation: Confirmation, code: CodeRow) -> None:
    # c. the verifier behind the challenge
    pkce.check(form.get("code_verifier"), code.challenge)
    # d. redirect_uri, if sent, and the DPoP key, if bound
    if form.get("redirect_uri") not in {None, code.redirect_uri}:
        raise PeopleError("code_redirect")
    if code.dpop_jkt is not None and confirmation != Confirmation("jkt", code.dpop_jkt):
        raise PeopleError("code_key")


def _within_ceilings(asking: Asking, target: Resource, approved: frozenset[str]) -> frozenset[str]:
    try:
        for posture in asking.standing.postures:
            approved &= asking.tables.ceiling(asking.client.spiffe_id, posture, target.name).scopes
    except PolicyError as error:
        raise AuthorizationError("client_posture", error.detail) from error
    if not approved:
        raise AuthorizationError("scope_ceiling", target.name)
    return approved
