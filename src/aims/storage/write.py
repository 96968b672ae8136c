"""The one thing that a request hands to the store: a guarded write and its record.

A ``Write`` is a value. Deciding builds it, committing executes it, perhaps more than once (after a rollback), so
nothing in it may have an effect of its own. See ``plan`` for the order in which its parts run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from sqlalchemy.sql.dml import UpdateBase

StopKind = Literal["agent", "person", "grant", "node", "instance"]


@dataclass(frozen=True, slots=True)
class Name:
    """What a stop can hit: an agent (its SPIFFE ID), person, grant, node or instance."""

    kind: StopKind
    id: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A single-use identifier that is spent by being presented (``jti``, nonce); it stays spent if the Write fails.

    ``space`` keeps kinds of proof apart, ``holder`` is the key thumbprint or subject that presented it, ``expires``
    (Unix seconds) says how long the row is kept. It must follow from what was presented, never from the time of
    arrival: it is part of the key, and the same proof must give the same key.
    """

    space: str
    holder: str
    id: str
    expires: int

    @property
    def key(self) -> bytes:
        """Five octets of expiry, then SHA-256 of the parts, each behind its length: in order of time, so that the
        index grows at one end, and equal only for equal claims."""
        digest = hashlib.sha256()
        for part in (self.space, self.holder, self.id):
            octets = part.encode("utf-8", "surrogatepass")
            digest.update(len(octets).to_bytes(4, "big") + octets)
        return self.expires.to_bytes(5, "big") + digest.digest()


@dataclass(frozen=True, slots=True)
class Consume:
    """A one-time thing of ours that the Write uses up (authorization code, login link, join token)."""

    kind: str
    id_hash: bytes


@dataclass(frozen=True, slots=True)
class Stop:
    """Raise the epoch of a name; ``blocked`` also refuses what is issued from now on (False: resumed)."""

    name: Name
    blocked: bool


@dataclass(frozen=True, slots=True)
class Change:
    """A line of the change feed: what other processes must learn. ``body`` is JSON text without secrets."""

    kind: str
    id: str
    body: bytes
    stop: Stop | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """One row-level statement (SQLAlchemy Core insert, update or delete) and its parameters.

    Effects of the same statement object are executed together; build statements once per module, not per request.
    ``must_match`` refuses the Write (``storage.conflict``) unless at least one row was inserted, updated or deleted;
    a plain insert then skips a key that exists. It is cheapest as the first effect of a Write without ``consume``;
    elsewhere a conflict makes the whole batch run twice. A unique or foreign key broken by any other effect ends in
    ``CONFLICT`` too, at a higher price.

    The statement returns nothing and expands no list, and the parameters name every value that is not fixed in it:
    Python defaults of columns are not run. An upsert is ``sqlalchemy.dialects.postgresql.insert(...).on_conflict_...``
    with ``index_elements``, which both back ends understand.
    """

    statement: UpdateBase
    parameters: Mapping[str, Any]
    must_match: bool = False


class Verdict(StrEnum):
    """How a Write ended. Every verdict leaves the record; only ``COMMITTED`` leaves the effects and changes."""

    COMMITTED = "committed"
    STOPPED = "stopped"
    REPLAYED = "replayed"
    CONSUMED = "consumed"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a Write.

    ``culprit`` names the stop, claim or consume that lost; ``seq`` is the number of the last change of this Write (0
    without changes); ``stop_seq`` is the epoch of the stop that refused it.
    """

    verdict: Verdict
    culprit: str = ""
    seq: int = 0
    stop_seq: int = 0


Record = Callable[[Outcome], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Guards, effects, changes and the audit record of one request.

    ``names`` are fenced: the Write is refused if one of them is blocked or was stopped after ``seen``, the number of
    the change feed that the decision was made with. ``claims`` are spent in any case. ``consume`` runs last and only
    if all other guards held; when it loses, ``lost`` effects and ``lost_changes`` happen instead (the second use of a
    code revokes what the first produced). ``record`` is called with the outcome and returns the canonical audit body.
    """

    record: Record
    names: tuple[Name, ...] = ()
    seen: int = 0
    claims: tuple[Claim, ...] = ()
    consume: Consume | None = None
    effects: tuple[Effect, ...] = ()
    changes: tuple[Change, ...] = ()
    lost: tuple[Effect, ...] = ()
    lost_changes: tuple[Change, ...] = ()

    def __post_init__(self) -> None:
        if (self.lost or self.lost_changes) and self.consume is None:
            raise ValueError("only a consume can be lost")
        if any(effect.must_match for effect in self.lost):
            raise ValueError("what happens after a lost consume cannot be refused again")

    @property
    def guarded(self) -> bool:
        """Whether something other than a broken key can refuse the Write."""
        return bool(
            self.names or self.claims or self.consume is not None or any(effect.must_match for effect in self.effects)
        )
