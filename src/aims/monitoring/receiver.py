"""Events of other parties: pushed to us (RFC 8935), stored with their effect in one Write, then acknowledged.

 1. The body has the media type and the size of a SET, and is a verified one for us (``set``). Whoever fails here is a
    stranger: recorded up to a rate, counted above it.
 2. A SET that was accepted before is acknowledged again, and that is all.
 3. The transmitter has a share per minute.
 4. Its row in the policy's table lets it say this of that subject, and the rules permit the effect (T11).
 5. One Write: the SET, its effect, the record. An effect that somebody else was faster with is planned anew.

An event about nobody that we know, about a stream, without a remedy, or that is an echo of our own is stored and has no
effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from aims.audit.record import body as record_body
from aims.audit.record import inert, recorder
from aims.clock import Clock, IdSource
from aims.errors import AimsError
from aims.identifiers import SpiffeId
from aims.monitoring import store
from aims.monitoring.errors import MonitoringError
from aims.monitoring.events import ABOUT_STREAM
from aims.monitoring.model import Applied, Cause, Remedy
from aims.monitoring.peers import Peers
from aims.monitoring.remediation import Remediation, View, look
from aims.monitoring.set import MAX_OCTETS, MEDIA_TYPE, SecurityEvent, parse_set, verify_set
from aims.monitoring.subjects import ComplexSubject, IssSubSubject, Simple, UriSubject, canonical
from aims.monitoring.tally import Counted, Rates, Tally
from aims.policy.errors import PolicyError
from aims.policy.question import Decision, Entity, Question
from aims.policy.rows import SignalAction
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry.memory import Registry
from aims.provisioning.stages import Policy
from aims.storage.database import Database
from aims.storage.write import Effect, Name, Outcome, Verdict, Write

STRANGERS_PER_SECOND: Final = 10
OVER_RATE_PER_SECOND: Final = 1
ATTEMPTS: Final = 5
_AGENTS: Final = frozenset({"application", "agent", "workload"})


@dataclass(frozen=True, slots=True)
class _Survey:
    """What the database says about an event: accepted before, echo of our own, and how its subject stands."""

    seen: bool
    echo: bool = False
    view: View | None = None


class SignalReceiver:
    """Receives for ``audience``; ``as_issuer`` is the issuer under which agents may be named by ``iss_sub``."""

    def __init__(
        self,
        *,
        database: Database,
        peers: Peers,
        registry: Callable[[], Registry],
        policy: Callable[[], Policy],
        remediation: Remediation,
        audience: str,
        as_issuer: str,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._database = database
        self._peers = peers
        self._registry = registry
        self._policy = policy
        self._remediation = remediation
        self._audience = audience
        self._as_issuer = as_issuer
        self._clock = clock
        self._ids = ids
        self._strangers = Tally(clock, STRANGERS_PER_SECOND)
        self._over_rate = Tally(clock, OVER_RATE_PER_SECOND)
        self._rates = Rates(clock)

    async def receive(self, octets: bytes, media_type: str, source: str) -> None:
        """Take one pushed SET. When this returns it is durable and has had its effect.

        Raises: MonitoringError with the first step that failed, ``changed`` if it could not be settled now;
            StorageError when nothing could be written.
        """
        await self.tend()
        # 1
        try:
            event = self._verified(octets, media_type)
        except MonitoringError as error:
            await self._refuse_stranger(error, source)
            raise
        # 2
        survey = await self._survey(event)
        if survey.seen:
            return
        # 3
        if not self._rates.take(event.issuer, self._policy().tables.per_minute(event.issuer) or 1):
            over = MonitoringError("set_rate", event.issuer)
            if self._over_rate.alone(over.code, event.issuer):
                await self._reject(event, over)
            raise over
        # 4, 5
        try:
            await self._settle(event, survey)
        except MonitoringError as error:
            if error.reason != "changed":
                await self._reject(event, error)
            raise

    async def tend(self) -> None:
        """Write the records of what was only counted. Call it now and then; ``receive`` does so too."""
        for counted in (*self._strangers.drain(), *self._over_rate.drain()):
            octets = self._flood(counted)
            await self._database.commit(Write(record=_constant(octets)))

    def _verified(self, octets: bytes, media_type: str) -> SecurityEvent:
        if media_type.partition(";")[0].strip().lower() != MEDIA_TYPE:
            raise MonitoringError("set_media_type", ascii(media_type)[:100])
        if len(octets) > MAX_OCTETS:
            raise MonitoringError("set_too_large")
        parsed = parse_set(octets)
        keys = self._peers.keys(parsed.issuer)
        return verify_set(parsed, keys, audience=self._audience, now=self._clock.now())

    async def _survey(self, event: SecurityEvent) -> _Survey:
        try:
            who = self._concerned(event)
        except MonitoringError:
            who = None  # said in step 4, where it is recorded
        return await self._database.read(lambda connection: self._read(connection, event, who))

    def _read(self, connection: sa.Connection, event: SecurityEvent, who: SpiffeId | Simple | None) -> _Survey:
        if store.is_received(connection, event.issuer, event.jti):
            return _Survey(True)
        name = Name("agent", str(who)) if isinstance(who, SpiffeId) else None
        if who is not None and not isinstance(who, SpiffeId):
            found = store.read_person(connection, event.issuer, canonical(who))
            name = None if found is None else Name("person", found)
        if name is None:
            return _Survey(False)
        if event.txn is not None and is_echo(event, name, store.sent_of(connection, event.txn)):
            return _Survey(False, echo=True)
        try:
            return _Survey(False, view=look(connection, self._registry(), name))
        except (ProvisioningError, MonitoringError):
            return _Survey(False)  # nobody of ours

    def _concerned(self, event: SecurityEvent) -> SpiffeId | Simple | None:
        """Return the agent, or a transmitter's name for a person; None for an event about a stream."""
        if event.event in ABOUT_STREAM:
            return None
        subject = event.subject
        if isinstance(subject, ComplexSubject):
            # Several members narrow each other down; what cannot be met exactly is refused, not widened.
            if len(subject.members) != 1:
                raise MonitoringError("set_subject", "several members")
            ((member, subject),) = subject.members.items()
            if member != "user" and not (member in _AGENTS and self._is_agent(subject)):
                raise MonitoringError("set_subject", member[:40])
        text = subject.uri if isinstance(subject, UriSubject) else ""
        if isinstance(subject, IssSubSubject) and self._is_agent(subject):
            text = subject.sub
        if not text:
            canonical(subject)
            return subject
        try:
            return SpiffeId.parse_workload(text)
        except AimsError as error:
            raise MonitoringError("set_subject", error.code) from error

    def _is_agent(self, subject: Simple) -> bool:
        if isinstance(subject, UriSubject):
            return True
        return (
            isinstance(subject, IssSubSubject)
            and subject.iss == self._as_issuer
            and subject.sub.startswith("spiffe://")
        )

    async def _settle(self, event: SecurityEvent, survey: _Survey) -> None:
        who = self._concerned(event)
        for _ in range(ATTEMPTS):
            if survey.seen:
                return
            effect, decision = self._decide(event, who, survey)
            cause = self._cause(event, decision)
            if survey.view is None or effect is None or survey.echo:
                applied = "echo" if survey.echo else ("noted" if effect is None else "unknown")
                outcome = await self._database.commit(self._noted(event, cause, applied))
                if outcome.verdict is Verdict.COMMITTED:
                    return
            else:
                plan = self._remediation.plan(survey.view, effect, cause, self._stored(event))
                outcome = await self._database.commit(plan.write)
                if outcome.verdict is not Verdict.CONFLICT:
                    plan.answer(outcome)
                    return
            survey = await self._survey(event)
        raise MonitoringError("changed")

    def _decide(
        self, event: SecurityEvent, who: SpiffeId | Simple | None, survey: _Survey
    ) -> tuple[Remedy | None, Mapping[str, Any]]:
        """Return the remedy, None for none, and the record's decision. Raises: MonitoringError ``set_authority``."""
        policy = self._policy()
        permit: dict[str, Any] = {"effect": "permit", "policy_digest": policy.engine.version}
        if who is None:
            return None, permit | {"reason": "about the stream"}
        effect = policy.tables.remedy(event.event)
        action: SignalAction = "suspend" if effect == "resume" else effect
        agent = who if isinstance(who, SpiffeId) else None
        try:
            row = policy.tables.transmitter(event.issuer, event.event, agent, action)
        except PolicyError as error:
            raise MonitoringError("set_authority", error.detail) from error
        rules: tuple[str, ...] = (f"transmitters.{row.name}",)
        if effect == "record":
            return None, permit | {"rules": rules}
        if survey.view is not None:
            decision = self._ask(policy, event, survey.view, effect)
            if not decision.allow:
                raise MonitoringError("set_authority", decision.explanation)
            rules += decision.rules
        return Remedy(effect), permit | {"rules": rules}

    def _ask(self, policy: Policy, event: SecurityEvent, view: View, effect: str) -> Decision:
        name = view.standing.name
        if view.agent is None:
            if effect == "retire":
                raise MonitoringError("set_authority", "people are not retired")
            subject = Entity("Person", name.id)
        else:
            subject = Entity("Agent", name.id, {"owner": view.agent.owner})
        return policy.engine.decide(
            Question(
                principal=Entity("Operator", event.issuer, {"roles": ("transmitter",)}),
                action="stop",
                resource=subject,
                context={"effect": effect, "cause": event.event},
            )
        )

    # --- what is written

    def _cause(self, event: SecurityEvent, decision: Mapping[str, Any]) -> Cause:
        return Cause(
            txn=event.txn or self._ids.new(),
            # A clock that is ahead must not make what others say meanwhile look older.
            at=min(event.at, int(self._clock.now() * 1000)),
            request_id=self._ids.new(),
            decision=decision,
            member=_member(event),
            issuer=event.issuer,
        )

    def _stored(self, event: SecurityEvent) -> Callable[[Applied], tuple[Effect, ...]]:
        return lambda applied: (self._insert(event, applied.value),)

    def _insert(self, event: SecurityEvent, applied: str) -> Effect:
        return store.insert_received(event.issuer, event.jti, int(self._clock.now()), event.event, applied, event.token)

    def _noted(self, event: SecurityEvent, cause: Cause, applied: str) -> Write:
        record = recorder(
            refuse="signal.rejected",
            type="signal.received",
            outcome="success",
            time=self._clock.now(),
            id=self._ids.new(),
            request_id=cause.request_id,
            txn=inert(cause.txn),
            action="signals.receive",
            decision=cause.decision,
            cause=cause.member,
            details={"applied": applied},
        )
        return Write(record=record, effects=(self._insert(event, applied),))

    async def _reject(self, event: SecurityEvent, error: MonitoringError) -> None:
        octets = record_body(
            type="signal.rejected",
            outcome="refused",
            time=self._clock.now(),
            id=self._ids.new(),
            request_id=self._ids.new(),
            action="signals.receive",
            decision={"effect": "deny", "reason": error.code},
            cause=_member(event) | {"code": error.code},
        )
        await self._database.commit(Write(record=_constant(octets)))

    async def _refuse_stranger(self, error: MonitoringError, source: str) -> None:
        if not self._strangers.alone(error.code, source):
            return
        octets = record_body(
            type="request.refuse",
            outcome="refused",
            time=self._clock.now(),
            id=self._ids.new(),
            request_id=self._ids.new(),
            action="signals.receive",
            decision={"effect": "deny", "reason": error.code},
            claimed={"source": source or "unknown"},
        )
        await self._database.commit(Write(record=_constant(octets)))

    def _flood(self, counted: Counted) -> bytes:
        return record_body(
            type="request.refuse",
            outcome="refused",
            time=self._clock.now(),
            id=self._ids.new(),
            request_id=self._ids.new(),
            action="signals.receive",
            decision={"effect": "deny", "reason": counted.code},
            flood={
                "count": counted.count,
                "since": counted.since,
                "listener": "public",
                "source": inert(counted.source or "unknown"),
            },
        )


def is_echo(event: SecurityEvent, subject: Name, sent: Sequence[tuple[bool, str, str]]) -> bool:
    """Whether an event is one of ours that came back: the same event about the same subject under the same cause.

    Where the cause was not ours, its time must be the same as well; several events may have one ``txn``. What says more
    than we said (another subject, another event) is no echo. ``sent`` is (own, subject, claims).
    """
    for own, about, claims in sent:
        ((kind, payload),) = msgspec.json.decode(claims)["events"].items()
        same = (about, kind) == (f"{subject.kind}:{subject.id}", event.event)
        if same and (own or payload["event_timestamp"] == event.at // 1000):
            return True
    return False


def _member(event: SecurityEvent) -> dict[str, str]:
    return {"set_iss": inert(event.issuer), "set_jti": inert(event.jti), "event": event.event}


def _constant(octets: bytes) -> Callable[[Outcome], bytes]:
    return lambda _: octets
