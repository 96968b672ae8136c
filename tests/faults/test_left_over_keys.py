"""Keys that a killed process left between the key store and the database: destroyed by the next start, and no other."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.test_server import Server

from aims.clock import IdSource, SystemClock, SystemIds
from aims.demo.processes import output_of
from aims.identifiers import TrustDomain
from aims.keys.store import open_store
from aims.provisioning.authority import store
from aims.provisioning.authority.keeper import Keeper
from aims.provisioning.authority.model import LIFE, SIGNED_LIFE, SKEW
from aims.provisioning.authority.service import LEFT_OVER_SECONDS, PURPOSES, AuthorityService
from aims.server.database import prepare as prepare_database
from aims.server.settings import Settings, make_private
from aims.server.settings import prepare as prepare_folders
from aims.server.start import destroy_left_over_keys
from aims.storage.database import Database

# the process that dies: argv is the state folder, the step, and how far its clock is ahead
_DYING = """
import asyncio, os, signal, sys
from pathlib import Path
from aims.clock import SystemClock, SystemIds
from aims.identifiers import TrustDomain
from aims.keys import Purpose
from aims.keys.store import open_store
from aims.provisioning.authority.keeper import Keeper
from aims.provisioning.authority.model import Step
from aims.provisioning.authority.service import SCHEDULE, AuthorityService
from aims.server.settings import Settings
from aims.storage.database import Database

async def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    settings = Settings(state_dir=Path(sys.argv[1]), run_dir=Path(sys.argv[1]))
    clock = SystemClock(float(sys.argv[3]))
    ids = SystemIds(clock)
    database = Database.open(settings.database_url, clock=clock, ids=ids, folder=settings.server_dir)
    domain = TrustDomain("local.test")
    service = AuthorityService(open_store(settings.keys_uri), settings.keys_uri, domain, clock, ids)
    keeper = Keeper(database, service, domain)
    await keeper.open()
    if sys.argv[2] == "prepare":
        database.commit = die
        await keeper.step(Purpose.TXN_TOKEN, Step.PREPARE, SCHEDULE)
    else:
        service.destroy = die
        await keeper.step(Purpose.TXN_TOKEN, Step.PRUNE, SCHEDULE)

asyncio.run(main())
"""


@pytest.fixture
def settings() -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(prefix="aims-t-") as name:
        settings = Settings(state_dir=Path(name), run_dir=Path(name) / "run")
        prepare_folders(settings)
        make_private(settings.server_dir / "keys")
        prepare_database(settings.database_url)
        yield settings


class Authority:
    """The authority of a server that does not run at present."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.ids: IdSource = SystemIds(self.clock)
        self.folder = settings.server_dir / "keys"

    async def turns(self, *moments: float) -> None:
        """Do what is due at these moments, in seconds from now."""
        database = Database.open(
            self.settings.database_url, clock=self.clock, ids=self.ids, folder=self.settings.server_dir
        )
        domain = TrustDomain(self.settings.trust_domain)
        uri = self.settings.keys_uri
        keeper = Keeper(database, AuthorityService(open_store(uri), uri, domain, self.clock, self.ids), domain)
        try:
            await keeper.open()
            for moment in moments:
                self.clock.offset = moment
                await keeper.turn(self.clock.now())
        finally:
            database.close()

    async def named(self) -> set[str]:
        """The keys that rows name."""
        database = Database.open(
            self.settings.database_url, clock=self.clock, ids=self.ids, folder=self.settings.server_dir
        )
        try:
            return {key.kid for key in (await database.read(store.read)).keys}
        finally:
            database.close()

    def stored(self) -> set[str]:
        """The keys of the authority in the key store."""
        form = re.compile(rf"(?:{'|'.join(PURPOSES)})\.(.{{43}})\.pem")
        return {found[1] for path in self.folder.iterdir() if (found := form.fullmatch(path.name))}

    async def clean(self, moment: float) -> None:
        self.clock.offset = moment
        await destroy_left_over_keys(self.settings, clock=self.clock, ids=self.ids)

    async def dies(self, step: str) -> None:
        """Another process is killed in this step."""
        status, text = await output_of(
            (sys.executable, "-c", _DYING, str(self.settings.state_dir), step, str(self.clock.offset))
        )
        assert status == -signal.SIGKILL, text


@pytest.mark.parametrize("step", ["prepare", "prune"])
async def test_a_key_that_a_crash_left_is_destroyed_by_a_later_start(settings: Settings, step: str) -> None:
    authority = Authority(settings)
    await authority.turns()
    if step == "prune":
        purpose = next(purpose for purpose in PURPOSES if purpose == "txn-token")
        begin = LIFE[purpose]
        await authority.turns(begin * 0.6, begin * 0.9)
        authority.clock.offset = begin * 0.9 + SIGNED_LIFE[purpose] + SKEW + 60
    before = authority.clock.offset
    await authority.dies(step)
    named = await authority.named()
    (left,) = authority.stored() - named
    # what is not of the authority, or not ours at all, is never touched
    foreign = [f"set.{'A' * 42}.pem", "notes.pem", f"other.{'B' * 43}.pem", f"audit-checkpoint.{'C' * 43}.pem"]
    for name in foreign:
        (authority.folder / name).write_bytes(b"")
    # written now by the system's clock, so it is young whatever the other process believed
    await authority.clean(LEFT_OVER_SECONDS - 60)
    assert authority.stored() - named == {left}
    await authority.clean(LEFT_OVER_SECONDS + 60)
    assert left not in authority.stored()
    assert named <= authority.stored()
    for name in foreign:
        assert (authority.folder / name).exists()
    authority.clock.offset = before
    await authority.turns()


async def test_a_database_without_an_authority_takes_no_keys_away(settings: Settings) -> None:
    authority = Authority(settings)
    key = await open_store(settings.keys_uri).create(PURPOSES[0])
    await authority.clean(2 * LEFT_OVER_SECONDS)
    assert authority.stored() == {key.kid}
    assert await open_store("memory:").made_before(PURPOSES[0], authority.clock.now()) == ()


async def test_a_start_of_the_server_cleans_and_one_that_the_log_refuses_does_not(settings: Settings) -> None:
    server = Server(settings.state_dir)
    server.state = settings.state_dir
    authority = Authority(settings)

    async def leave() -> str:
        key = await open_store(settings.keys_uri).create(PURPOSES[0])
        path = authority.folder / f"{PURPOSES[0]}.{key.kid}.pem"
        long_ago = path.stat().st_mtime - LEFT_OVER_SECONDS - 60
        os.utime(path, (long_ago, long_ago))
        return key.kid

    await (await server.start()).end()
    named = await authority.named()
    assert authority.stored() == named
    left = await leave()
    try:
        await server.start()
        assert (await server.status())["writable"]
        assert left not in authority.stored()
    finally:
        assert server.process is not None
        await server.process.end()
    # a database that is older than the log: an operator will put the right one back, and that names keys
    left = await leave()
    database = sqlite3.connect(settings.server_dir / "aims.db")
    with database:
        database.execute("DELETE FROM audit_sequence")
        database.execute("DELETE FROM audit_head")
    database.close()
    status, text = await output_of(server.argv())
    assert (status, "audit.log_" in text) == (1, True), text
    assert left in authority.stored()
