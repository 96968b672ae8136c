"""What an administrator decides about the signal exchange. Each function returns a ``Plan`` with its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from cryptography import x509

from aims.audit.people import Pseudonym, pseudonym
from aims.audit.record import inert, recorder
from aims.clock import Clock, IdSource
from aims.errors import AimsError
from aims.fetch import FetchError, parse_url
from aims.jose.jwk import public_jwk
from aims.jose.jwks import build_jwks
from aims.monitoring import store, subjects
from aims.monitoring.errors import MonitoringError
from aims.monitoring.events import SENT
from aims.monitoring.model import Cause, Receiver
from aims.monitoring.peers import key_set
from aims.storage.intent import Plan
from aims.storage.write import Effect, Outcome, Verdict, Write

MAX_CA: Final = 64 * 1024
MAX_AUDIENCE: Final = 2048
SALT: Final = 16

T = TypeVar("T")


class Configuration:
    """Plans changes of transmitters, the receiver and the names of people."""

    def __init__(self, clock: Clock, ids: IdSource) -> None:
        self._clock = clock
        self._ids = ids

    def add_transmitter(self, issuer: str, jwks: str, cause: Cause) -> Plan[tuple[str, ...]]:
        """Listen to a transmitter under these keys, or replace its keys. The answer are the names of the keys.

        What it may say stands in the policy's tables; without a row there it is heard and refused.

        Raises: MonitoringError ``issuer_malformed``, ``jwks_malformed``.
        """
        _check_issuer(issuer)
        try:
            keys = key_set(jwks)
        except AimsError as error:
            raise MonitoringError("jwks_malformed", str(error)) from error
        kids = tuple(sorted(str(key.kid) for key in keys))
        kept = build_jwks(public_jwk(key.key, kid=key.kid, alg=key.algorithm, use="sig") for key in keys)
        return self._plan(
            "trust.changed",
            "transmitter.add",
            issuer,
            (store.put_transmitter(issuer, kept.decode("utf-8")),),
            cause,
            kids,
            details={"kids": inert(" ".join(kids))},
        )

    def remove_transmitter(self, issuer: str, cause: Cause) -> Plan[str]:
        """Listen to a transmitter no more. On commit: MonitoringError ``transmitter_unknown``."""
        effects = (store.remove_transmitter(issuer),)
        return self._plan("trust.changed", "transmitter.remove", inert(issuer), effects, cause, issuer)

    def set_receiver(self, receiver: Receiver, cause: Cause) -> Plan[Receiver]:
        """Push our events to this party from now on, dead letters included.

        Raises: MonitoringError ``receiver_malformed``, ``issuer_malformed``.
        """
        try:
            parse_url(receiver.url)
            if receiver.ca:
                x509.load_pem_x509_certificates(receiver.ca.encode("ascii"))
        except (FetchError, ValueError) as error:
            raise MonitoringError("receiver_malformed", str(error)[:200]) from error
        if len(receiver.ca) > MAX_CA or not receiver.events or not receiver.events <= SENT:
            raise MonitoringError("receiver_malformed", "ca or events")
        audience = receiver.audience
        if not 1 <= len(audience) <= MAX_AUDIENCE or not audience.isascii() or not audience.isprintable():
            raise MonitoringError("receiver_malformed", "audience")
        if receiver.issuer:
            _check_issuer(receiver.issuer)
        effects = (store.put_receiver(receiver), store.revived(int(self._clock.now())))
        details: dict[str, str | int | bool | None]
        details = {"audience": inert(audience), "private": receiver.private, "complex": receiver.complex}
        return self._plan("signal.stream", "receiver.set", receiver.url, effects, cause, receiver, details=details)

    def map_person(self, who: Pseudonym | None, issuer: str, subject: object, cause: Cause) -> Plan[str]:
        """Say who is meant by a transmitter's name for a person: ``who``, or somebody new. The answer is the person.

        Raises: MonitoringError ``issuer_malformed``, ``set_subject``.
        """
        _check_issuer(issuer)
        parsed = subjects.parse(subject)
        if isinstance(parsed, subjects.ComplexSubject):
            raise MonitoringError("set_subject", "a person has a simple name")
        effects: tuple[Effect, ...] = ()
        if who is None:
            salt = self._ids.token(SALT).encode("ascii")[:SALT]
            who = Pseudonym.make(f"person:{self._ids.new()}", salt)
            effects = (who.stored(),)
        effects += (store.put_person(issuer, subjects.canonical(parsed), who.sub),)
        return self._plan("admin.action", "person.map", issuer, effects, cause, who.sub, principal=who.principal)

    def forget(self) -> Write:
        """Forget events that were accepted, sent or given up more than thirty days ago."""
        record = recorder(
            refuse="signal.stream",
            type="signal.stream",
            outcome="success",
            time=self._clock.now(),
            id=self._ids.new(),
            request_id=self._ids.new(),
            resource="signals",
            action="signals.forget",
            decision={"effect": "permit", "reason": "schedule"},
        )
        return Write(record=record, effects=store.forgotten(int(self._clock.now())))

    def _plan(  # noqa: PLR0917  one line per plan, read side by side
        self,
        kind: str,
        action: str,
        resource: str,
        effects: tuple[Effect, ...],
        cause: Cause,
        value: T,
        *,
        details: Mapping[str, str | int | bool | None] | None = None,
        principal: Mapping[str, Any] | None = None,
    ) -> Plan[T]:
        record = recorder(
            refuse="admin.refuse",
            type=kind,
            outcome="success",
            time=self._clock.now(),
            id=self._ids.new(),
            request_id=cause.request_id,
            resource=resource,
            action=action,
            decision=cause.decision,
            cause=cause.member,
            operator=cause.operator,
            principal=principal,
            details=details,
        )
        changes = () if action == "person.map" else (store.changed(resource),)
        return Plan(
            Write(record=record, effects=effects, changes=changes), lambda outcome: _settled(outcome, value, action)
        )


def known_person(connection: sa.Connection, sub: str) -> Pseudonym:
    """Read somebody who is known already. Raises: MonitoringError ``person_unknown``."""
    try:
        return pseudonym(connection, sub)
    except AimsError as error:
        raise MonitoringError("person_unknown") from error


def _settled(outcome: Outcome, value: T, action: str) -> T:
    if outcome.verdict is Verdict.COMMITTED:
        return value
    reason = "refused"
    if outcome.verdict is Verdict.CONFLICT:
        # Only what must be there can be missing; the other Writes add or replace, and met another one of their kind.
        reason = "transmitter_unknown" if action == "transmitter.remove" else "changed"
    raise MonitoringError(reason, f"{outcome.verdict}: {outcome.culprit}")


def _check_issuer(issuer: str) -> None:
    try:
        endpoint = parse_url(issuer)
    except FetchError as error:
        raise MonitoringError("issuer_malformed", error.detail) from error
    if "?" in endpoint.target or issuer.startswith(f"https://{endpoint.host}:443"):
        raise MonitoringError("issuer_malformed", issuer[:200])
