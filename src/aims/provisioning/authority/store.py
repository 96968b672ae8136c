"""The table of the authority's keys, and the number of the bundle, which guards every step.

Private keys are not here: they are in key stores, under the key's name.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from aims.keys import Purpose
from aims.provisioning.authority.model import AuthorityKey, AuthorityState, Slot
from aims.storage.schema import Number, metadata
from aims.storage.write import Change, Effect

CHANGED: Final = "authority"
"""Kind of the line of the change feed after which every process reads the authority again."""

authority_key = sa.Table(
    "authority_key",
    metadata,
    sa.Column("kid", sa.String(43), primary_key=True),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("slot", sa.String(8)),
    sa.Column("uri", sa.String(2048), nullable=False),
    sa.Column("jwk", sa.Text(), nullable=False),
    sa.Column("certificate", sa.LargeBinary(), nullable=False),
    sa.Column("created", Number, nullable=False),
    sa.Column("not_after", Number, nullable=False),
    sa.Column("activated", Number, nullable=False),
    sa.Column("retire_until", Number, nullable=False),
    sa.UniqueConstraint("purpose", "slot"),
)
"""A retired key has no slot; null is equal to nothing, so any number of them may stand beside each other."""

bundle_number = sa.Table(
    "bundle_number",
    metadata,
    sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("sequence", Number, nullable=False),
    sa.CheckConstraint("one = 1", name="one"),
)
"""One row: ``spiffe_sequence`` of the bundle. It only rises, by one with each step."""

_FIRST: Final = sa.insert(bundle_number)
_RAISE: Final = (
    sa.update(bundle_number)
    .where(bundle_number.c.one == 1, bundle_number.c.sequence == sa.bindparam("of_sequence"))
    .values(sequence=sa.bindparam("new_sequence"))
)
_INSERT: Final = sa.insert(authority_key)
_MOVE: Final = (
    sa.update(authority_key)
    .where(authority_key.c.kid == sa.bindparam("of_kid"))
    .values(
        slot=sa.bindparam("new_slot"),
        activated=sa.bindparam("new_activated"),
        retire_until=sa.bindparam("new_retire_until"),
    )
)
_DELETE: Final = sa.delete(authority_key).where(authority_key.c.kid == sa.bindparam("of_kid"))


def raised(state: AuthorityState) -> Effect:
    """Give the bundle its next number; refuses the Write if somebody else did so since ``state`` was read."""
    if state.sequence == 0:
        return Effect(_FIRST, {"one": 1, "sequence": 1}, must_match=True)
    row = {"of_sequence": state.sequence, "new_sequence": state.sequence + 1}
    return Effect(_RAISE, row, must_match=True)


def inserted(key: AuthorityKey) -> Effect:
    """Add a key."""
    row = {
        "kid": key.kid,
        "purpose": key.purpose.value,
        "slot": None if key.slot is None else key.slot.value,
        "uri": key.uri,
        "jwk": key.jwk,
        "certificate": key.certificate,
        "created": key.created,
        "not_after": key.not_after,
        "activated": key.activated,
        "retire_until": key.retire_until,
    }
    return Effect(_INSERT, row, must_match=True)


def moved(key: AuthorityKey) -> Effect:
    """Write a key's slot and times."""
    row = {
        "of_kid": key.kid,
        "new_slot": None if key.slot is None else key.slot.value,
        "new_activated": key.activated,
        "new_retire_until": key.retire_until,
    }
    return Effect(_MOVE, row, must_match=True)


def removed(kid: str) -> Effect:
    """Forget a retired key."""
    return Effect(_DELETE, {"of_kid": kid}, must_match=True)


def changed(state: AuthorityState) -> Change:
    """The line of the feed for the step that follows ``state``."""
    return Change(CHANGED, "keys", b'{"sequence":%d}' % (state.sequence + 1))


def read(connection: sa.Connection) -> AuthorityState:
    """Read keys and number, inside the caller's transaction."""
    sequence = connection.execute(sa.select(bundle_number.c.sequence)).scalar_one_or_none()
    rows = connection.execute(sa.select(authority_key).order_by(authority_key.c.created, authority_key.c.kid))
    return AuthorityState(int(sequence or 0), tuple(map(_key, rows)))


def _key(row: sa.Row[Any]) -> AuthorityKey:
    return AuthorityKey(
        kid=row.kid,
        purpose=Purpose(row.purpose),
        slot=None if row.slot is None else Slot(row.slot),
        uri=row.uri,
        jwk=row.jwk,
        certificate=bytes(row.certificate),
        created=row.created,
        not_after=row.not_after,
        activated=row.activated,
        retire_until=row.retire_until,
    )
