"""Put a bundle in force: an audited change of the configuration, won by one of those who try at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aims.audit.record import recorder
from aims.policy.bundle import Bundle
from aims.policy.errors import PolicyError
from aims.policy.store import ADD_BUNDLE, FIRST_ACTIVE, NEXT_ACTIVE
from aims.storage.intent import Plan
from aims.storage.write import Change, Effect, Outcome, Verdict, Write

CHANGE_KIND: Final = "policy"


def activate(
    bundle: Bundle,
    *,
    before: str | None,
    now: float,
    record_id: str,
    operator: Mapping[str, str | int],
    cause: Mapping[str, str],
) -> Plan[str]:
    """Plan to put ``bundle`` in force in place of the version ``before`` (None: the first).

    The answer is the new version. Raises ``PolicyError`` ``changed`` when another version was in force at the commit.
    """
    first = before is None
    switch = (
        Effect(FIRST_ACTIVE, {"version": bundle.version}, must_match=True)
        if first
        else Effect(NEXT_ACTIVE, {"before": before, "after": bundle.version}, must_match=True)
    )
    add = Effect(ADD_BUNDLE, {"version": bundle.version, "body": bundle.to_bytes(), "loaded": int(now)})
    record = recorder(
        refuse="policy.refused",
        type="policy.changed",
        outcome="success",
        time=now,
        id=record_id,
        request_id=record_id,
        resource="policy",
        action="activate",
        decision={"effect": "permit", "policy_digest": before or bundle.version},
        operator=operator,
        cause=cause,
        prev_state_digest=before,
        new_state_digest=bundle.version,
    )
    change = Change(CHANGE_KIND, bundle.version, b'{"version":"' + bundle.version.encode("ascii") + b'"}')

    def answer(outcome: Outcome) -> str:
        if outcome.verdict is not Verdict.COMMITTED:
            raise PolicyError("changed", f"expected {before or 'none'}")
        return bundle.version

    return Plan(Write(record=record, effects=(switch, add), changes=(change,)), answer)
