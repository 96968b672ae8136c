"""The administrator's call that ends a grant and everything below it."""

from __future__ import annotations

from typing import Any, Final

from aims.authorization.keys import TokenKeys
from aims.authorization.revocation import Cause, Ended, Revocation
from aims.server.admin import AdminCall, AdminRoute, Body, Text
from aims.server.core import Core
from aims.storage.intent import Plan

_UNSAID: Final = "an administrator ended it"


class GrantBody(Body, frozen=True):
    """A grant by the ``grant_id`` of its tokens (``agent:NAME`` for an agent's own right), or a delegation below it."""

    grant: Text


class GrantCalls:
    """The administrator's calls over ``core``."""

    def __init__(self, core: Core) -> None:
        keys = TokenKeys(core.public_url, lambda: core.authority, core.key_store)
        self._revocation = Revocation(core, keys, core.database)

    def routes(self) -> tuple[AdminRoute, ...]:
        """Every route about grants."""
        return (
            AdminRoute(
                "grant.revoke", "POST", "/admin/v1/grants/revoke", GrantBody, True, self._revoke, then=self._finish
            ),
        )

    async def _revoke(self, call: AdminCall, body: GrantBody) -> Plan[object]:
        return (await self._revocation.by_administrator(body.grant, _cause(call))).shaped(_shown)

    async def _finish(self, call: AdminCall, body: GrantBody) -> None:
        await self._revocation.finish(body.grant, _cause(call))


def _cause(call: AdminCall) -> Cause:
    operator = call.operator
    return Cause(
        reason=operator.reason or _UNSAID,
        operator=operator.as_member(),
        decision=call.permit,
        request_id=call.request_id,
    )


def _shown(ended: Ended) -> dict[str, Any]:
    return {"grant": ended.grants[0], "applied": "already" if ended.already else "done", "seq": ended.seq}
