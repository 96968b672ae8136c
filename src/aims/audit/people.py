"""A person in the audit: a salted commitment in the record, salt and value in a table that can be erased.

The record holds ``base64url(SHA-256(salt ‖ sub))``. Whoever has the row can show which person is meant; after the row
is deleted nobody can, and the tree of records stays valid. One salt per person, so that a person's records can be
found while the row exists.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Final, Self

import sqlalchemy as sa

from aims.audit.errors import AuditError
from aims.storage.schema import metadata
from aims.storage.write import Effect

SALT_OCTETS: Final = 16

# The identifier of a person: ``person:`` and 26 characters. Never allowed in a record.
PERSON: Final = re.compile(r"person:[0-9a-z]{26}")

audit_person = sa.Table(
    "audit_person",
    metadata,
    sa.Column("sub", sa.String(255), primary_key=True),
    sa.Column("salt", sa.LargeBinary(SALT_OCTETS), nullable=False),
    sa.Column("commitment", sa.String(43), nullable=False, unique=True),
)

_INSERT: Final = sa.insert(audit_person)
_ERASE: Final = sa.delete(audit_person).where(audit_person.c.sub == sa.bindparam("of_sub"))


@dataclass(frozen=True, slots=True, repr=False)
class Pseudonym:
    """A person's identifier, the salt, and what the record shows instead. Its repr shows only the commitment."""

    sub: str
    salt: bytes
    commitment: str

    @classmethod
    def make(cls, sub: str, salt: bytes) -> Self:
        """Commit to ``sub`` (1 to 255 characters) with 16 random octets that the caller drew for this person."""
        if not 1 <= len(sub) <= 255 or len(salt) != SALT_OCTETS:
            raise AuditError("record_malformed", "a commitment needs a subject and 16 octets of salt")
        try:
            digest = hashlib.sha256(salt + sub.encode("utf-8")).digest()
        except UnicodeEncodeError as error:
            raise AuditError("record_malformed", "subject with a lone surrogate") from error
        return cls(sub, salt, base64.urlsafe_b64encode(digest).decode("ascii").rstrip("="))

    def __repr__(self) -> str:
        return f"Pseudonym({self.commitment})"

    @property
    def principal(self) -> dict[str, str]:
        """The record's ``principal`` for this person, in the form of a subject identifier (RFC 9493)."""
        return {"format": "commitment", "commitment": self.commitment}

    def stored(self) -> Effect:
        """The effect that keeps salt and value; it belongs into the Write that creates the person."""
        return Effect(_INSERT, {"sub": self.sub, "salt": self.salt, "commitment": self.commitment})


def erased(sub: str) -> Effect:
    """The effect that forgets a person: afterwards no record can be traced to ``sub``. Audit it as ``log.redacted``."""
    return Effect(_ERASE, {"of_sub": sub}, must_match=True)


def agent_principal(spiffe_id: str) -> dict[str, str]:
    """The record's ``principal`` when an agent acts on its own right or on another agent's."""
    return {"format": "uri", "uri": spiffe_id}


def pseudonym(connection: sa.Connection, sub: str) -> Pseudonym:
    """Read the stored commitment of a person. Raises ``AuditError("person_unknown")``."""
    row = connection.execute(sa.select(audit_person).where(audit_person.c.sub == sub)).one_or_none()
    if row is None:
        raise AuditError("person_unknown")
    return Pseudonym(row.sub, row.salt, row.commitment)


def person(connection: sa.Connection, commitment: str) -> str | None:
    """Say which person a record means; None after erasure."""
    statement = sa.select(audit_person.c.sub).where(audit_person.c.commitment == commitment)
    return connection.execute(statement).scalar_one_or_none()
