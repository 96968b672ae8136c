"""The audit records of the authorization server: each answer of the token endpoint leaves exactly one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from aims.audit.people import agent_principal
from aims.audit.record import Fields, body, inert, recorder
from aims.authorization import scope
from aims.authorization.access_token import AccessToken
from aims.authorization.grants.award import Award
from aims.authorization.model import Client, Method
from aims.errors import AimsError
from aims.policy.question import Decision
from aims.provisioning.instances import Standing
from aims.storage.write import Outcome, Record, Verdict

KIND: Final = "access-token"
REFUSED: Final = "token.refuse"
REUSED: Final = "token.reuse"

# In a form these stand for what differs between two records of one right; none of them needs an escape in JSON.
_ID: Final = "z" * 25 + "0"
_TIME: Final = 4_222_222_222
_EXPIRES: Final = 4_333_333_333
_PLACES: Final = 5


class _Holder(NamedTuple):
    """What a record says of the agent and of the server, beside the right itself."""

    agent: str
    instance: str
    key: str | None
    method: Method
    posture: str
    policy: str
    rules: tuple[str, ...]
    issuer: str
    confirmation: str | None
    epoch: int


def issued(
    award: Award,
    token: AccessToken,
    *,
    client: Client,
    standing: Standing,
    decision: Decision,
    principal: Mapping[str, Any],
    now: float,
) -> Record:
    """Return the record of a token that leaves, and of the same token if its Write is refused.

    The token's id is also the record's. An agent's own right is given again and again, so its record has a form that
    was built and checked once, into which id and times are put.
    """
    holder = _Holder(
        agent=client.id,
        instance=client.fence.instance,
        key=client.certificate or client.jkt,
        method=client.method,
        posture=standing.posture,
        policy=decision.policy,
        rules=decision.rules,
        issuer=token.issuer,
        confirmation=None if token.confirmation is None else token.confirmation.thumbprint,
        epoch=token.epoch,
    )
    expires = int(token.expires)
    if award.spending is not None:
        whole = _fields(award, holder, principal, token.token_id, expires, now)
        refused, reused = recorder(refuse=REFUSED, **whole), recorder(refuse=REUSED, **whole)
        return lambda outcome: (reused if outcome.verdict is Verdict.CONSUMED else refused)(outcome)
    if award.parent is not None or award.details or award.subject != client.id:
        return recorder(refuse=REFUSED, **_fields(award, holder, principal, token.token_id, expires, now))
    committed = _put(_form(award, holder), token.token_id, expires, now)

    def record(outcome: Outcome) -> bytes:
        if outcome.verdict is Verdict.COMMITTED and not outcome.seq:
            return committed
        fields = _fields(award, holder, principal, token.token_id, expires, now)
        return recorder(refuse=REFUSED, **fields)(outcome)

    return record


def refused(
    error: AimsError,
    *,
    action: str,
    client: Client | None,
    claimed: Mapping[str, str | None],
    resource: str | None,
    scope_asked: str | None,
    request_id: str,
    now: float,
) -> bytes:
    """Return the record of a refusal; what an unauthenticated caller says about itself is only ``claimed``."""
    return body(
        type=REFUSED,
        outcome="refused",
        time=now,
        id=request_id,
        request_id=request_id,
        agent=None
        if client is None
        else {
            "id": client.id,
            "instance": client.fence.instance,
            "key_thumbprint": client.certificate or client.jkt,
        },
        claimed=dict(claimed) if client is None else None,
        client_id=None if client is None else client.id,
        resource=None if resource is None else inert(resource),
        action=action,
        decision={"effect": "deny", "reason": error.code},
        token=None if scope_asked is None else {"kind": KIND, "scope_asked": inert(scope_asked)},
        details={"detail": inert(error.detail)} if error.detail else None,
    )


def flood(count: int, since: float, *, listener: str, code: str, request_id: str, now: float) -> bytes:
    """Return the one record of many equal refusals of callers whom nobody knows."""
    return body(
        type="request.refuse",
        outcome="refused",
        time=now,
        id=request_id,
        request_id=request_id,
        action="token",
        decision={"effect": "deny", "reason": code},
        flood={"count": count, "since": int(since), "listener": listener},
    )


def _fields(  # noqa: PLR0917  inner function of three callers
    award: Award, holder: _Holder, principal: Mapping[str, Any], token_id: str, expires: int, now: float
) -> Fields:
    delegated = award.delegated
    return {
        "type": award.record,
        "outcome": "success",
        "time": now,
        "id": token_id,
        "request_id": token_id,
        "agent": {"id": holder.agent, "instance": holder.instance, "key_thumbprint": holder.key},
        "principal": principal,
        "chain": award.actors or None,
        "client_id": holder.agent,
        "delegation": {
            "id": award.grant_id if delegated is None else delegated.id,
            "parent": None if delegated is None else delegated.parent,
            "root": None if delegated is None else delegated.root,
            "depth": len(award.actors),
        },
        "token": {
            "kind": KIND,
            "iss": holder.issuer,
            "jti": token_id,
            "aud": [award.audience],
            "scope_asked": scope.write(award.scopes),
            "scope_given": scope.write(award.scopes),
            "exp": expires,
            "cnf": holder.confirmation,
            "epoch": holder.epoch,
        },
        "resource": award.audience if award.resource is None else award.resource,
        "action": award.question.action,
        "decision": {"effect": "permit", "policy_digest": holder.policy, "rules": holder.rules},
        "posture": {"level": holder.posture},
        "details": {"method": holder.method},
    }


@lru_cache(maxsize=4096)
def _form(award: Award, holder: _Holder) -> bytes:
    """Return the record of an own right with ``%b`` for each value that ``_put`` puts in."""
    whole = body(**_fields(award, holder, agent_principal(award.subject), _ID, _EXPIRES, float(_TIME)))
    marks = re.compile(rb'(?<="exp":)%d|(?<=":")%b(?=")|(?<="time":)%d' % (_EXPIRES, _ID.encode(), _TIME * 1000))
    if len(marks.findall(whole)) != _PLACES:
        raise ValueError("the form of a record")
    return marks.sub(b"%b", whole.replace(b"%", b"%%"))


def _put(form: bytes, token_id: str, expires: int, now: float) -> bytes:
    name = token_id.encode("ascii")
    # canonical JSON sorts its members: id, request_id, time, token.exp, token.jti
    return form % (name, name, b"%d" % int(now * 1000), b"%d" % expires, name)
