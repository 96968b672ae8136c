"""The one place where a cause becomes an effect.

``look`` reads how a subject stands, ``Remediation.plan`` makes the one Write: state in the registry, stop in the change
feed, SETs into the outbox, record. Everything below the subject falls by the names in its credentials (``sub``,
``client_id``, actors, grant, instance). Doing a thing twice does it once.

What an instance handed on ends with its quarantine as far as the look saw it. The Write never waits for what comes in
between, because whoever hands on without pause would then never be stopped: after it, ``handed_on`` looks once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa

from aims.audit.people import PERSON, Pseudonym, pseudonym
from aims.audit.record import inert, recorder
from aims.clock import Clock, IdSource
from aims.credentials.model import Fence
from aims.errors import AimsError
from aims.monitoring.errors import MonitoringError
from aims.monitoring.handed_on import NOTHING, STOP_CHANGED, Ending, Given, ending, given
from aims.monitoring.judgement import judge
from aims.monitoring.model import Applied, Cause, Remedied, Remedy, Standing
from aims.monitoring.store import put_standing, read_standing
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.instances import instance as instance_table
from aims.provisioning.registry.memory import Registry
from aims.provisioning.registry.model import State, Workload
from aims.provisioning.registry.service import digest, state_change
from aims.provisioning.registry.store import workload as workload_table
from aims.storage.intent import Plan
from aims.storage.write import Change, Effect, Name, Outcome, Record, Stop, Verdict, Write

# The record's type, by kind of subject and remedy: what is not listed cannot be done.
_TYPES: Final[Mapping[tuple[str, Remedy], str]] = {
    ("agent", Remedy.REVOKE): "credential.revoke",
    ("agent", Remedy.SUSPEND): "identity.suspend",
    ("agent", Remedy.RESUME): "identity.resume",
    ("agent", Remedy.RETIRE): "identity.retire",
    ("person", Remedy.REVOKE): "credential.revoke",
    ("person", Remedy.SUSPEND): "person.suspend",
    ("person", Remedy.RESUME): "person.resume",
    ("instance", Remedy.QUARANTINE): "identity.quarantine",
    ("instance", Remedy.RELEASE): "identity.release",
}
_STATES: Final[Mapping[Remedy, State]] = {
    Remedy.SUSPEND: State.SUSPENDED,
    Remedy.RESUME: State.ACTIVE,
    Remedy.RETIRE: State.RETIRED,
}

Outgoing = Callable[[Name, Remedy, Cause], tuple[Effect, ...]]
"""Makes the SETs of a remedy: effects that put them into the outbox."""


def no_signals(_name: Name, _remedy: Remedy, _cause: Cause) -> tuple[Effect, ...]:
    """The ``Outgoing`` of a server that tells nobody."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A subject as one snapshot of the database shows it.

    ``agent`` is the workload of an agent or of an instance; ``given`` is what an instance handed on and nobody ended.
    """

    standing: Standing
    registry: Registry
    agent: Workload | None = None
    person: Pseudonym | None = None
    given: Given = ()


def agent_name(registry: Registry, name: str) -> Name:
    """Return the subject that an agent or service is, by its short name.

    Raises: ProvisioningError ``identity_unknown``.
    """
    return Name("agent", str(registry.workload(name).spiffe_id))


def look(connection: sa.Connection, registry: Registry, subject: Name, agent: str = "") -> View:
    """Read how ``subject`` stands; ``registry`` is the one in memory, read anew here if it has fallen behind.

    An instance is known by its first credential; for one that never had any ``agent`` says whose it is.

    Raises: MonitoringError ``subject_malformed``, ``person_unknown``, ``instance_unknown`` (also for an instance of
        another agent than ``agent``); ProvisioningError ``identity_unknown``.
    """
    _check(subject)
    standing = read_standing(connection, subject)
    known = None
    if subject.kind == "person":
        try:
            known = pseudonym(connection, subject.id)
        except AimsError as error:
            raise MonitoringError("person_unknown") from error
    spiffe_id = subject.id
    handed_on: Given = ()
    if subject.kind == "instance":
        spiffe_id = _agent_of(connection, subject.id, agent)
        handed_on = given(connection, subject)
    elif subject.kind != "agent":
        return View(standing=standing, registry=registry, person=known)
    row = connection.execute(
        sa.select(workload_table.c.revision).where(workload_table.c.spiffe_id == spiffe_id)
    ).first()
    if row is not None and _revision(registry, spiffe_id) != row.revision:
        registry = Registry.load(connection, registry.trust_domain)
    return View(standing=standing, registry=registry, agent=registry.workload_by_id(spiffe_id), given=handed_on)


class Remediation:
    """Plans remedies. ``outgoing`` makes the SETs that tell others."""

    def __init__(self, *, clock: Clock, ids: IdSource, outgoing: Outgoing = no_signals) -> None:
        self._clock = clock
        self._ids = ids
        self._outgoing = outgoing

    def plan(
        self, view: View, remedy: Remedy, cause: Cause, also: Callable[[Applied], tuple[Effect, ...]] = lambda _: ()
    ) -> Plan[Remedied]:
        """Plan a remedy for the subject of ``view``; ``also`` gives effects that stand or fall with it, first in order.

        The answer says what it came to. It raises MonitoringError ``changed`` if somebody else was faster (look and
        plan again), ``refused`` for any other verdict.

        Raises: MonitoringError ``remedy``; ProvisioningError ``identity_retired`` for an administrator who resumes
            what has ended.
        """
        subject = view.standing.name
        kind = _TYPES.get((subject.kind, remedy))
        if kind is None:
            raise MonitoringError("remedy", f"{remedy} {subject.kind}")
        before = _as_registered(view)
        retired = view.agent is not None and subject.kind == "agent" and view.agent.state is State.RETIRED
        if retired and remedy.lifts and not cause.issuer:
            raise ProvisioningError("identity_retired", subject.id)
        applied, after = judge(before, remedy, cause, retired=retired)
        effects, changes = list(also(applied)), list[Change]()
        # Whatever changes a stop moves the revision, also when nothing else in the row is new: it is the guard.
        if applied is Applied.DONE or (applied is Applied.ALREADY and after != view.standing):
            effects.append(put_standing(view.standing, after))
        if applied is Applied.DONE:
            more, changes = self._done(view, remedy, after)
            effects += [*more, *self._outgoing(subject, remedy, cause)]
        below = NOTHING
        if remedy is Remedy.QUARANTINE and applied in {Applied.DONE, Applied.ALREADY}:
            below = ending(view.given, self._clock.now())
        effects += below.effects
        changes += below.changes
        write = Write(
            record=self._record(view, remedy, kind if applied is Applied.DONE else "", applied, cause, below),
            effects=tuple(effects),
            changes=tuple(changes),
        )
        return Plan(write, lambda outcome: _answer(outcome, subject, remedy, applied, cause))

    def _done(self, view: View, remedy: Remedy, after: Standing) -> tuple[tuple[Effect, ...], list[Change]]:
        subject = view.standing.name
        if subject.kind == "agent" and view.agent is not None and remedy in _STATES:
            effects, changes = state_change(view.registry, view.agent, _STATES[remedy])
            return effects, list(changes)
        return (), [Change(STOP_CHANGED, subject.id, b"null", Stop(subject, blocked=after.blocked))]

    def _record(  # noqa: PLR0917  inner function of one caller
        self, view: View, remedy: Remedy, kind: str, applied: Applied, cause: Cause, below: Ending
    ) -> Record:
        subject = view.standing.name
        by_admin = not cause.issuer
        fields: dict[str, Any] = {
            "type": kind or ("admin.action" if by_admin else "signal.received"),
            "outcome": "success",
            "time": self._clock.now(),
            "id": self._ids.new(),
            "request_id": cause.request_id,
            "txn": inert(cause.txn),
            "resource": _resource(subject),
            "action": f"{subject.kind}.{remedy}",
            "decision": cause.decision,
            "cause": cause.member,
            "operator": cause.operator,
            "principal": None if view.person is None else view.person.principal,
            "details": {"applied": applied.value, "agent": str(view.agent.spiffe_id) if view.agent else None},
        }
        fields["details"] |= below.details
        if view.agent is not None and kind and remedy in _STATES:
            fields["prev_state_digest"] = digest(view.agent)
        return recorder(refuse="admin.refuse" if by_admin else "signal.rejected", **fields)


def _agent_of(connection: sa.Connection, instance: str, agent: str) -> str:
    found = connection.execute(sa.select(instance_table.c.agent).where(instance_table.c.id == instance)).scalar()
    if found is None and not agent:
        raise MonitoringError("instance_unknown", instance)
    if found is not None and agent and agent != found:
        raise MonitoringError("instance_unknown", f"{instance} is of {found}")
    return str(found or agent)


def _as_registered(view: View) -> Standing:
    """How the subject stands, with the registry's word on whether an agent is blocked."""
    standing = view.standing
    if standing.name.kind != "agent" or view.agent is None:
        return standing
    blocked = view.agent.state is not State.ACTIVE
    if blocked == standing.blocked:
        return standing
    return replace(standing, blocked=blocked, held_by="admin" if blocked else "")


def _answer(outcome: Outcome, subject: Name, remedy: Remedy, applied: Applied, cause: Cause) -> Remedied:
    if outcome.verdict is Verdict.COMMITTED:
        return Remedied(subject=subject, remedy=remedy, applied=applied, txn=cause.txn, seq=outcome.seq)
    reason = "changed" if outcome.verdict is Verdict.CONFLICT else "refused"
    raise MonitoringError(reason, f"{outcome.verdict}: {outcome.culprit}")


def _check(subject: Name) -> None:
    if subject.kind == "instance":
        try:
            Fence(subject.id, 0)
        except AimsError as error:
            raise MonitoringError("subject_malformed", "instance") from error
    elif subject.kind == "person":
        if PERSON.fullmatch(subject.id) is None:
            raise MonitoringError("subject_malformed", subject.kind)
    elif subject.kind != "agent":
        raise MonitoringError("remedy", "nodes are banned, grants are revoked")


def _revision(registry: Registry, spiffe_id: str) -> int:
    try:
        return registry.workload_by_id(spiffe_id).revision
    except ProvisioningError:
        return 0


def _resource(subject: Name) -> str:
    # A person stands in the record only as a commitment.
    return "person" if subject.kind == "person" else inert(subject.id)
