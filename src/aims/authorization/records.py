"""The audit records of the authorization server: each answer of the token endpoint leaves exactly one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aims.audit.people import agent_principal
from aims.audit.record import body, inert, recorder
from aims.authorization import scope
from aims.authorization.access_token import AccessToken
from aims.authorization.grants.award import Award
from aims.authorization.model import Client
from aims.errors import AimsError
from aims.policy.question import Decision
from aims.provisioning.instances import Standing
from aims.storage.write import Record

KIND = "access-token"


def issued(
    award: Award,
    token: AccessToken,
    *,
    client: Client,
    standing: Standing,
    decision: Decision,
    principal: Mapping[str, Any],
    request_id: str,
    now: float,
) -> Record:
    """Return the record of a token that leaves, and of the same token if its Write is refused."""
    confirmation = token.confirmation
    delegated = award.delegated
    return recorder(
        refuse="token.refuse",
        type=award.record,
        outcome="success",
        time=now,
        id=request_id,  # one record for one request
        request_id=request_id,
        agent=_agent(client),
        principal=principal,
        chain=token.actors or None,
        client_id=client.id,
        delegation={
            "id": token.grant_id if delegated is None else delegated.id,
            "parent": None if delegated is None else delegated.parent,
            "root": None if delegated is None else delegated.root,
            "depth": len(token.actors),
        },
        token={
            "kind": KIND,
            "iss": token.issuer,
            "jti": token.token_id,
            "aud": [token.audience],
            "scope_asked": scope.write(token.scopes),
            "scope_given": scope.write(token.scopes),
            "exp": int(token.expires),
            "cnf": None if confirmation is None else confirmation.thumbprint,
            "epoch": token.epoch,
        },
        resource=token.target,
        action=award.question.action,
        decision={"effect": "permit", "policy_digest": decision.policy, "rules": decision.rules},
        posture={"level": standing.posture},
        details={"method": client.method},
    )


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
        type="token.refuse",
        outcome="refused",
        time=now,
        id=request_id,
        request_id=request_id,
        agent=None if client is None else _agent(client),
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


def of_agent(spiffe_id: str) -> Mapping[str, Any]:
    """Return the record's ``principal`` for a right that is an agent's own."""
    return agent_principal(spiffe_id)


def _agent(client: Client) -> dict[str, str | None]:
    return {"id": client.id, "instance": client.fence.instance, "key_thumbprint": client.certificate or client.jkt}
