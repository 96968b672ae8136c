"""Event types with their payloads: CAEP 1.0, RISC 1.0 and the two of SSF 1.0 about a stream itself. Pure.

Members that a type does not have are passed over (SSF 1.0: unknown members are ignored); those that it has are checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from aims.monitoring.errors import MonitoringError

_CAEP: Final = "https://schemas.openid.net/secevent/caep/event-type/"
_RISC: Final = "https://schemas.openid.net/secevent/risc/event-type/"
_SSF: Final = "https://schemas.openid.net/secevent/ssf/event-type/"

SESSION_REVOKED: Final = _CAEP + "session-revoked"
CREDENTIAL_CHANGE: Final = _CAEP + "credential-change"
CREDENTIAL_COMPROMISE: Final = _RISC + "credential-compromise"
ACCOUNT_DISABLED: Final = _RISC + "account-disabled"
ACCOUNT_ENABLED: Final = _RISC + "account-enabled"
VERIFICATION: Final = _SSF + "verification"
STREAM_UPDATED: Final = _SSF + "stream-updated"

Word = Annotated[str, Meta(min_length=1, max_length=256)]
Reasons = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=35)], Annotated[str, Meta(max_length=1024)]], Meta(max_length=16)
]
Seconds = Annotated[int, Meta(ge=0, le=2**43)] | Annotated[float, Meta(ge=0, le=2**43)]


class Payload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an event says."""


class CaepEvent(Payload, frozen=True, kw_only=True):
    """The members that every CAEP event may have. ``event_timestamp``: when it happened, Unix seconds."""

    event_timestamp: Seconds | None = None
    initiating_entity: Literal["admin", "user", "policy", "system"] | None = None
    reason_admin: Reasons | None = None
    reason_user: Reasons | None = None


class SessionRevoked(CaepEvent, frozen=True, kw_only=True):
    """CAEP 3.1: every session of the subject has ended."""


class CredentialChange(CaepEvent, frozen=True, kw_only=True):
    """CAEP 3.3: a credential was made, changed, revoked or deleted."""

    credential_type: Word
    change_type: Literal["create", "revoke", "update", "delete"]
    friendly_name: Word | None = None
    x509_issuer: Word | None = None
    x509_serial: Word | None = None


class CredentialCompromise(CaepEvent, frozen=True, kw_only=True):
    """RISC 2.7: a credential of the subject is in wrong hands."""

    credential_type: Word


class AccountDisabled(CaepEvent, frozen=True, kw_only=True):
    """RISC 2.3: the account is closed until further notice. ``event_timestamp`` is not RISC's, but understood."""

    reason: Literal["hijacking", "bulk-account"] | None = None


class AccountEnabled(CaepEvent, frozen=True, kw_only=True):
    """RISC 2.4: the account is open again."""


class Verification(Payload, frozen=True, kw_only=True):
    """SSF 8.1.4: the stream works. ``state`` repeats what the receiver asked for."""

    state: Word | None = None


class StreamUpdated(Payload, frozen=True, kw_only=True):
    """SSF 8.1.5: the transmitter changed the stream's status."""

    status: Literal["enabled", "paused", "disabled"]
    reason: Word | None = None


TYPES: Final[Mapping[str, type[Payload]]] = MappingProxyType(
    {
        SESSION_REVOKED: SessionRevoked,
        CREDENTIAL_CHANGE: CredentialChange,
        CREDENTIAL_COMPROMISE: CredentialCompromise,
        ACCOUNT_DISABLED: AccountDisabled,
        ACCOUNT_ENABLED: AccountEnabled,
        VERIFICATION: Verification,
        STREAM_UPDATED: StreamUpdated,
    }
)
ABOUT_STREAM: Final = frozenset({VERIFICATION, STREAM_UPDATED})
SENT: Final = frozenset({SESSION_REVOKED, CREDENTIAL_CHANGE})
"""The events that we send."""


def read(events: Mapping[str, Any]) -> tuple[str, Payload]:
    """Return type and payload of the one event of a SET.

    Raises: MonitoringError ``set_event`` unless there is exactly one, of a known type; ``set_payload``.
    """
    if len(events) != 1:
        raise MonitoringError("set_event", f"{len(events)} events")
    ((uri, payload),) = events.items()
    kind = TYPES.get(uri)
    if kind is None:
        raise MonitoringError("set_event", ascii(uri)[:200])
    try:
        return uri, msgspec.convert(payload, kind, strict=True)
    except msgspec.ValidationError as error:
        raise MonitoringError("set_payload", str(error)[:200]) from error


def happened_at(payload: Payload) -> float | None:
    """Return when it happened by the event's own word, Unix seconds."""
    return payload.event_timestamp if isinstance(payload, CaepEvent) else None
