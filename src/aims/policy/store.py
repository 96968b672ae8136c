"""The stored bundles and which one is in force."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Connection, Integer, LargeBinary, String, Table, bindparam, select, update
from sqlalchemy.dialects.postgresql import insert

from aims.policy.bundle import Bundle
from aims.storage.schema import metadata

policy_bundle = Table(
    "policy_bundle",
    metadata,
    Column("version", String(64), primary_key=True),
    Column("body", LargeBinary, nullable=False),
    Column("loaded", BigInteger, nullable=False),
)

policy_active = Table(
    "policy_active",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("version", String(64), nullable=False),
)

ADD_BUNDLE = (
    insert(policy_bundle)
    .values(version=bindparam("version"), body=bindparam("body"), loaded=bindparam("loaded"))
    .on_conflict_do_nothing(index_elements=["version"])
)
FIRST_ACTIVE = insert(policy_active).values(one=1, version=bindparam("version"))
NEXT_ACTIVE = (
    update(policy_active)
    .where(policy_active.c.one == 1, policy_active.c.version == bindparam("before"))
    .values(version=bindparam("after"))
)


def active_version(connection: Connection) -> str | None:
    """Return the version of the bundle in force, or None before the first."""
    row = connection.execute(select(policy_active.c.version)).first()
    return None if row is None else str(row.version)


def active(connection: Connection) -> Bundle | None:
    """Return the bundle in force, checked again from its stored form, or None before the first."""
    query = select(policy_bundle.c.body).join(policy_active, policy_active.c.version == policy_bundle.c.version)
    row = connection.execute(query).first()
    return None if row is None else Bundle.from_bytes(bytes(row.body))
