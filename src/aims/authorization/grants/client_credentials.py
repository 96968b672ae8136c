"""The client credentials grant (RFC 6749 4.4): an agent uses its own right at one resource.

Steps, as the token endpoint numbers them:

    7. exactly one registered resource that takes access tokens     target_...
    8. scope: something, within the agent's ceiling                  scope_...
    9. authorization_details: purposes that this scope opens         details_...

The subject is the agent itself; nobody acts, and there is no refresh token.
"""

from __future__ import annotations

from typing import Final

from aims.authorization.grants.award import (
    Award,
    is_bound,
    only_target,
    principal,
    require_ceiling,
    resource_of,
    tool,
    wanted_details,
    wanted_scopes,
)
from aims.authorization.model import Asking
from aims.authorization.store import standing
from aims.policy.question import Question

GRANT_TYPE: Final = "client_credentials"


def award(asking: Asking) -> Award:
    """Compute the right that a request gives.

    Raises:
        AuthorizationError: the first step that failed.
    """
    form, client = asking.form, asking.client
    # 7. exactly one registered resource that takes access tokens
    target, audience = resource_of(only_target(form), asking.tables)
    # 8. scope: something, within the agent's ceiling
    scopes = wanted_scopes(form)
    require_ceiling(asking, target, scopes)
    # 9. authorization_details: purposes that this scope opens
    details = wanted_details(form, asking.tables, target, scopes)
    grant_id = standing(client.workload.name)
    question = Question(
        principal=principal(asking),
        action="token",
        resource=tool(target),
        context={
            "grant": grant_id,
            "posture": asking.standing.posture,
            "scopes": scopes,
            "bound": is_bound(target),
        },
    )
    return Award(
        record="token.issue",
        subject=client.id,
        audience=audience,
        target=target,
        scopes=scopes,
        details=details,
        grant_id=grant_id,
        question=question,
    )
