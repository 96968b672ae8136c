"""The values of monitoring: what can be done to whom, by whom, and how a subject stands. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple, Self

from aims.storage.write import Name

ADMIN: Final = "admin"
SEVERAL: Final = "several"


class Remedy(StrEnum):
    """What is done to a subject.

    ``revoke``: everything issued so far is dead, new credentials may be had. ``suspend``: that, and nothing is issued
    until ``resume``. ``retire``: for good. ``quarantine`` and ``release`` are suspend and resume of one instance.
    """

    REVOKE = "revoke"
    SUSPEND = "suspend"
    RESUME = "resume"
    RETIRE = "retire"
    QUARANTINE = "quarantine"
    RELEASE = "release"

    @property
    def lifts(self) -> bool:
        """Whether it gives something back."""
        return self in {Remedy.RESUME, Remedy.RELEASE}


class Applied(StrEnum):
    """What a remedy came to: ``done``; ``already`` so; ``stale``, a newer event says otherwise; ``held`` by others."""

    DONE = "done"
    ALREADY = "already"
    STALE = "stale"
    HELD = "held"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Who or what asks for a remedy, in the members of the audit record.

    ``at`` is the time of the event in Unix milliseconds: when an administrator spoke, or what a SET says. ``issuer`` is
    the transmitter, "" for an administrator, whose word is never stale. ``txn`` joins everything that has one cause.
    """

    txn: str
    at: int
    request_id: str
    decision: Mapping[str, Any]
    member: Mapping[str, Any]
    operator: Mapping[str, Any] | None = None
    issuer: str = ""

    @classmethod
    def by_operator(
        cls, *, operator: Mapping[str, Any], decision: Mapping[str, Any], request_id: str, now: float, reason: str = ""
    ) -> Self:
        """The cause that an administrator is; ``operator`` is {role, uid, user}."""
        who = str(operator.get("user") or operator["role"])
        return cls(
            txn=request_id,
            at=int(now * 1000),
            request_id=request_id,
            decision=decision,
            member={"admin": who} | ({"reason": reason} if reason else {}),
            operator=operator,
        )

    @property
    def holder(self) -> str:
        """In whose name a stop stands."""
        return self.issuer or ADMIN


class Said(NamedTuple):
    """When one party last stopped a subject, and when it last lifted a stop: times of events, 0 for never."""

    stopped_at: int = 0
    lifted_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a subject stands. Times are those of events, in Unix milliseconds, 0 for never.

    ``held_by``: who may lift the stop: an issuer, ``admin``, or ``several`` (then only an administrator), "" while
    there is none. ``stopped_at``, ``resumed_at`` and ``revoked_at`` are of whoever did it last; ``said`` is what each
    issuer did, and ``admin``. ``revision`` is 0 where there is no row yet.
    """

    name: Name
    blocked: bool = False
    held_by: str = ""
    stopped_at: int = 0
    resumed_at: int = 0
    revoked_at: int = 0
    revision: int = 0
    said: Mapping[str, Said] = field(default_factory=dict)

    def said_by(self, holder: str) -> Said:
        """Return what one party did."""
        return self.said.get(holder, Said())


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedied:
    """What became of a remedy. ``seq`` is the number of the stop in the change feed, 0 if there was none to make."""

    subject: Name
    remedy: Remedy
    applied: Applied
    txn: str
    seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """The one party that our events are pushed to.

    ``issuer`` is the name under which the same party is a transmitter to us ("": it is none): what it told us is not
    told back. ``private``: the endpoint's host and port may have a private or loopback address. ``ca`` is PEM that is
    trusted instead of the system's authorities, "" for those. ``complex``: it understands complex subjects, so events
    about instances may go to it.
    """

    url: str
    audience: str
    events: frozenset[str]
    issuer: str = ""
    private: bool = False
    ca: str = field(default="", repr=False)
    complex: bool = False


@dataclass(frozen=True, slots=True)
class Due:
    """An event that may go out now. ``claims`` is JSON; ``tries`` and ``reason`` tell of earlier deliveries."""

    jti: str
    txn: str
    claims: str = field(repr=False)
    tries: int
    created: int
    reason: str
