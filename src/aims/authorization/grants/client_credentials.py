"""The client credentials grant (RFC 6749 4.4): an agent uses its own right at one resource.

Steps, as the token endpoint numbers them:

    7. exactly one registered resource that takes access tokens     target_...
    8. scope: something, within the agent's ceiling                  scope_...
    9. authorization_details: purposes that this scope opens         details_...

The subject is the agent itself; nobody acts, and there is no refresh token.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Final

from aims.authorization.grants.award import (
    Award,
    agent_entity,
    is_bound,
    only_target,
    require_ceiling,
    resource_of,
    tool,
    wanted_details,
    wanted_scopes,
)
from aims.authorization.model import Asking
from aims.authorization.store import standing_grant
from aims.policy.question import Question
from aims.policy.tables import Tables
from aims.provisioning.instances import Standing

GRANT_TYPE: Final = "client_credentials"


def award(asking: Asking) -> Award:
    """Compute the right that a request gives.

    Raises:
        AuthorizationError: the first step that failed.
    """
    form, client, standing = asking.form, asking.client, asking.standing
    # 7. exactly one registered resource that takes access tokens
    target = only_target(form)
    right = _right(
        asking.tables, client.id, client.workload.name, client.workload.owner, standing, target, form.get("scope")
    )
    # 9. authorization_details: purposes that this scope opens
    details = wanted_details(form, asking.tables, right.target, right.scopes)
    return replace(right, details=details) if details else right


# It depends on nothing else, and an agent asks for the same few things again and again.
@lru_cache(maxsize=4096)
def _right(  # noqa: PLR0917  a key of the cache
    tables: Tables, agent: str, name: str, owner: str, standing: Standing, wanted: str, scope_text: str | None
) -> Award:
    target, audience = resource_of(wanted, tables)
    # 8. scope: something, within the agent's ceiling
    scopes = wanted_scopes(scope_text)
    require_ceiling(tables, agent, standing.postures, target, scopes)
    grant_id = standing_grant(name)
    question = Question(
        principal=agent_entity(agent, owner),
        action="token",
        resource=tool(target),
        context={"grant": grant_id, "posture": standing.posture, "scopes": scopes, "bound": is_bound(target)},
    )
    return Award(
        record="token.issue",
        subject=agent,
        audience=audience,
        target=target,
        scopes=scopes,
        details=(),
        grant_id=grant_id,
        question=question,
    )
