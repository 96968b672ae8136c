"""Set up the database: which tables belong to it, and how a file or a PostgreSQL database gets them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from aims.storage.engine import Location, connect_sqlite, sqlite_failure
from aims.storage.errors import StorageError
from aims.storage.schema import metadata

STORES = (
    "aims.storage.schema",
    "aims.policy.store",
    "aims.audit.store",
    "aims.audit.people",
    "aims.provisioning.registry.store",
    "aims.provisioning.authority.store",
    "aims.provisioning.instances",
    "aims.authorization.store",
    "aims.monitoring.store",
    "aims.authorization.people.store",
)
"""Every module that declares tables. A room adds its ``store`` here, and a revision to ``migrations/versions``."""

_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x61696D735F6D6967  # "aims_mig"


def all_tables() -> MetaData:
    """Import every store and return the metadata with all tables on it."""
    for name in STORES:
        import_module(name)
    return metadata


def prepare(url: str) -> None:
    """Make sure that the database has the tables of this version.

    A SQLite file is made and migrated; PostgreSQL is only looked at. Raises ``StorageError``: ``not_migrated`` with the
    line to run, and what opening can raise.
    """
    location = Location.parse(url)
    if location.backend == "sqlite":
        migrate(url)
        return
    engine = _engine(location)
    try:
        with engine.connect() as connection:
            have = MigrationContext.configure(connection).get_current_revision()
    except DBAPIError as error:
        raise StorageError("unreachable", str(error.orig).strip()) from error
    finally:
        engine.dispose()
    want = newest()
    if have != want:
        raise StorageError("not_migrated", f"the database is at revision {have}, this version needs {want}")


def migrate(url: str, revision: str = "head") -> None:
    """Bring the database up (or down, for ``base`` and older revisions) to a revision, in one transaction.

    Raises ``StorageError``.
    """
    location = Location.parse(url)
    engine = _engine(location)
    try:
        with engine.begin() as connection:
            migrate_on(connection, revision)
    except DBAPIError as error:
        reason = (
            sqlite_failure(error.orig) if error.orig is not None and location.backend == "sqlite" else "unreachable"
        )
        raise StorageError(reason or "internal", str(error.orig).strip()) from error
    finally:
        engine.dispose()


def newest() -> str | None:
    """Return the newest revision that this version knows."""
    return ScriptDirectory(str(_MIGRATIONS)).get_current_head()


def migrate_on(connection: Connection, revision: str) -> None:
    """Bring the database of this connection to a revision, within its transaction."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    have = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory.from_config(config)
    known = {entry.revision for entry in script.walk_revisions()}
    if have is not None and have not in known:
        raise StorageError("not_migrated", f"revision {have} is of a newer version")
    target = {"head": script.get_current_head(), "base": None}.get(revision, revision)
    older = {entry.revision for entry in script.iterate_revisions(have, "base")} if have else set()
    if target is None or (target in older and target != have):
        command.downgrade(config, revision)
    else:
        command.upgrade(config, revision)


def _engine(location: Location) -> Engine:
    if location.backend == "postgresql":
        return create_engine(location.url.set(drivername="postgresql+psycopg"), poolclass=NullPool)
    engine = create_engine("sqlite://", creator=lambda: connect_sqlite(location, create=True), poolclass=NullPool)
    # The driver begins no transaction around DDL; IMMEDIATE keeps a second migration out until this one has ended.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine
