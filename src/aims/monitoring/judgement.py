"""Whether a remedy still has to be done: order of events, and in whose name a stop stands. Pure.

Events arrive in any order, and an old one may be replayed. An older event never undoes a newer one: a stop is stale
if its own transmitter, or an administrator, lifted one since, and a resumption that is not newer than the last stop of
its own transmitter. What a transmitter lifts is its own and says nothing about the stops of others, so it makes none of
theirs stale. Stops add up. What a transmitter stopped only that transmitter or an administrator lifts; what two
stopped, an administrator.

Times are compared by whole seconds, because that is what ``iat`` holds; within one second the stop wins.
"""

from __future__ import annotations

from dataclasses import replace

from aims.monitoring.model import ADMIN, SEVERAL, Applied, Cause, Remedy, Standing


def judge(standing: Standing, remedy: Remedy, cause: Cause, *, retired: bool = False) -> tuple[Applied, Standing]:
    """Return what a remedy comes to and how the subject stands afterwards (unchanged: nothing has to be written).

    ``retired``: the subject has ended for good, so there is nothing left to stop or to lift.
    """
    if retired:
        return (Applied.HELD if remedy.lifts else Applied.ALREADY), standing
    if remedy.lifts:
        return _lift(standing, cause)
    if remedy is Remedy.REVOKE:
        return _revoke(standing, cause)
    applied, after = _stop(standing, cause)
    if remedy is Remedy.RETIRE and applied is Applied.ALREADY:  # stopped, but not for good
        return Applied.DONE, after
    return applied, after


def _stop(standing: Standing, cause: Cause) -> tuple[Applied, Standing]:
    own = standing.said_by(cause.holder)
    if cause.issuer and _before(cause.at, max(own.lifted_at, standing.said_by(ADMIN).lifted_at)):
        return Applied.STALE, standing
    own = own._replace(stopped_at=max(own.stopped_at, cause.at))
    after = replace(standing, stopped_at=max(standing.stopped_at, cause.at), said={**standing.said, cause.holder: own})
    if not standing.blocked:
        return Applied.DONE, replace(after, blocked=True, held_by=cause.holder)
    if ADMIN in {cause.holder, standing.held_by}:
        return Applied.ALREADY, replace(after, held_by=ADMIN)
    return Applied.ALREADY, replace(after, held_by=standing.held_by if standing.held_by == cause.holder else SEVERAL)


def _revoke(standing: Standing, cause: Cause) -> tuple[Applied, Standing]:
    # What was issued up to then died when the newer one was applied.
    if cause.issuer and _before(cause.at, max(standing.resumed_at, standing.revoked_at)):
        return Applied.STALE, standing
    after = replace(standing, revoked_at=max(standing.revoked_at, cause.at))
    # Of a blocked subject everything is dead already, and lowering the block would be the opposite of what was asked.
    return (Applied.ALREADY if standing.blocked else Applied.DONE), after


def _lift(standing: Standing, cause: Cause) -> tuple[Applied, Standing]:
    own = standing.said_by(cause.holder)
    if cause.issuer and not _before(own.stopped_at, cause.at):
        return Applied.STALE, standing
    if not standing.blocked:
        # It lifted nothing, so it makes nobody's stop stale.
        return Applied.ALREADY, standing
    if cause.issuer and standing.held_by != cause.issuer:
        return Applied.HELD, standing
    own = own._replace(lifted_at=max(own.lifted_at, cause.at))
    return Applied.DONE, replace(
        standing,
        blocked=False,
        held_by="",
        resumed_at=max(standing.resumed_at, cause.at),
        said={**standing.said, cause.holder: own},
    )


def _before(one: int, other: int) -> bool:
    return one // 1000 < other // 1000
