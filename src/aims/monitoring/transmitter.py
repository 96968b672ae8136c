"""What we tell others: the SETs of a remedy, as rows of the outbox in the Write that does it; and our metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from aims.clock import Clock, IdSource
from aims.monitoring import store
from aims.monitoring.events import CREDENTIAL_CHANGE, SESSION_REVOKED, CredentialChange, Payload, SessionRevoked
from aims.monitoring.model import Cause, Receiver, Remedy
from aims.monitoring.set import build_claims
from aims.monitoring.subjects import ComplexSubject, IssSubSubject, OpaqueSubject, Subject, UriSubject
from aims.storage.write import Effect, Name

PUSH: Final = "urn:ietf:rfc:8935"
_REASON: Final = {
    Remedy.REVOKE: "Credentials were revoked.",
    Remedy.SUSPEND: "The subject was suspended.",
    Remedy.RETIRE: "The subject was retired.",
    Remedy.QUARANTINE: "The instance was quarantined.",
}


class Transmitter:
    """Makes SETs as ``issuer`` for the one receiver. People are named by the subject in tokens of ``as_issuer``."""

    def __init__(
        self, *, issuer: str, as_issuer: str, receiver: Callable[[], Receiver | None], clock: Clock, ids: IdSource
    ) -> None:
        self._issuer = issuer
        self._as_issuer = as_issuer
        self._receiver = receiver
        self._clock = clock
        self._ids = ids

    def outgoing(self, subject: Name, remedy: Remedy, cause: Cause) -> tuple[Effect, ...]:
        """Return the rows that tell of a stop; nothing about what gives back, and nothing to whoever told us.

        All of them carry the ``txn`` of the cause, so that two servers that tell each other come to an end.
        """
        receiver = self._receiver()
        if receiver is None or remedy.lifts or (cause.issuer and cause.issuer == receiver.issuer):
            return ()
        named = self._named(subject, receiver)
        if named is None:
            return ()
        now = int(self._clock.now())
        rows = []
        payloads = tuple(self._payloads(subject, remedy, cause, receiver))
        # The order of the identifiers is the order of delivery, also within one millisecond.
        for jti, payload in zip(sorted(self._ids.new() for _ in payloads), payloads, strict=True):
            claims = build_claims(
                issuer=self._issuer,
                audience=receiver.audience,
                jti=jti,
                issued_at=now,
                txn=cause.txn,
                subject=named,
                payload=payload,
            )
            text = msgspec.json.encode(claims).decode("utf-8")
            key = f"{subject.kind}:{subject.id}"
            own = not cause.issuer
            rows.append(store.insert_outbox(jti=jti, txn=cause.txn, own=own, subject=key, claims=text, now=now))
        return tuple(rows)

    def _payloads(self, subject: Name, remedy: Remedy, cause: Cause, receiver: Receiver) -> Iterator[Payload]:
        common: dict[str, Any] = {
            "event_timestamp": cause.at // 1000,
            "initiating_entity": "policy" if cause.issuer else "admin",
            "reason_admin": {"en": _REASON[remedy]},
        }
        if SESSION_REVOKED in receiver.events:
            yield SessionRevoked(**common)
        if CREDENTIAL_CHANGE in receiver.events and subject.kind == "agent":
            yield CredentialChange(credential_type="x509", change_type="revoke", **common)

    def _named(self, subject: Name, receiver: Receiver) -> Subject | None:
        if subject.kind == "agent":
            return UriSubject(subject.id)
        if subject.kind == "person":
            return IssSubSubject(self._as_issuer, subject.id)
        # A receiver that passes over a member that it does not know would stop more than was meant.
        if not receiver.complex:
            return None
        return ComplexSubject({"instance": OpaqueSubject(subject.id)})


def metadata(issuer: str) -> dict[str, Any]:
    """Return the transmitter's configuration (SSF 1.0 section 7.1), with what is served and nothing else."""
    return {
        "spec_version": "1_0",
        "issuer": issuer,
        "jwks_uri": f"{issuer}/jwks",
        "delivery_methods_supported": [PUSH],
        "default_subjects": "ALL",
    }
