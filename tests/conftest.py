"""Fixtures that several rooms share: time, identifiers and databases on both back ends."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.postgres import Cluster, programs

from aims.clock import IdSource, SystemClock, SystemIds
from aims.server.database import migrate
from aims.storage.database import Database


def pytest_configure() -> None:
    """Take signals again that a shell's background job or ``nohup`` ignores; every program of a test would, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def clock() -> SystemClock:
    """The machine's clock; a test moves it by its ``offset``."""
    return SystemClock()


@pytest.fixture
def ids(clock: SystemClock) -> IdSource:
    return SystemIds(clock)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running PostgreSQL. Without the programs: skipped, and a failure where ``CI`` is true."""
    found = programs()
    if found is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail("PostgreSQL is not installed")
        pytest.skip("PostgreSQL is not installed")
    cluster = Cluster(found)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="session")
def postgresql_template(cluster: Cluster) -> str:
    """The name of a migrated, empty database."""
    name = cluster.fresh()
    migrate(cluster.url(name))
    return name


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty file."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """The URL of a migrated, empty SQLite file of this test's own."""
    path = tmp_path / "aims.db"
    shutil.copyfile(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgresql_url(cluster: Cluster, postgresql_template: str) -> Iterator[str]:
    """The URL of a migrated, empty PostgreSQL database of this test's own."""
    name = cluster.fresh(postgresql_template)
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated, empty database; the test runs once on each back end."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def database(database_url: str, tmp_path: Path, clock: SystemClock, ids: IdSource) -> Iterator[Database]:
    """An open database on each back end."""
    database = Database.open(database_url, clock=clock, ids=ids, folder=tmp_path)
    yield database
    database.close()
