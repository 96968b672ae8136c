"""From settings to a running server: everything that happens once, in order, before the first request.

1. Settings and folders. 2. The lock: one supervisor for a data folder. 3. The database has this version's tables.
4. Keys. 5. The policy that the operator names is in force. 6. The log's sequencer; on SQLite, keys that a crash left
are destroyed once it has found the database no older than the log. 7. Sockets and workers.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress

from aims.audit.checkpoint import VerifierKey
from aims.audit.sequencer import Sequencer
from aims.audit.store import sequencing_engine, turn
from aims.clock import Clock, IdSource
from aims.identifiers import TrustDomain
from aims.keys.current import current_key
from aims.keys.purpose import Purpose
from aims.keys.signing import SigningKey, immediate
from aims.keys.store import open_store
from aims.policy.bundle import Bundle
from aims.policy.store import active_version
from aims.provisioning.authority import store as authority_store
from aims.provisioning.authority.service import AuthorityService
from aims.server.admin_client import AdminClient
from aims.server.database import prepare as prepare_database
from aims.server.policy_activation import activate
from aims.server.settings import LOCAL_NODE, VKEY_FILE, Settings, make_private, prepare
from aims.server.supervisor import Running, Supervisor
from aims.storage.database import Database
from aims.storage.engine import Location
from aims.storage.lock import SupervisorLock

_log = logging.getLogger("aims.server")


async def serve(
    settings: Settings,
    *,
    clock: Clock,
    ids: IdSource,
    ready: Callable[[Running], Awaitable[None]],
    with_node: bool = False,
) -> None:
    """Run a server, and this host's node if asked, until it is told to stop; ``ready`` is called once it answers.

    Raises:
        AimsError: what stands in the way, before anything has been started.
    """
    with ExitStack() as held:
        # 1
        prepare(settings)
        # 2
        location = Location.parse(settings.database_url)
        held.callback(SupervisorLock(location, settings.server_dir).release)
        # 3
        prepare_database(settings.database_url)
        # 4
        make_private(settings.server_dir / "keys")
        log_key = await current_key(open_store(settings.keys_uri), Purpose.AUDIT_CHECKPOINT)
        # 5
        await put_policy_in_force(settings, clock=clock, ids=ids)
        # 6
        sequencer = sequencer_of(settings, location, log_key, clock=clock, ids=ids)
        if location.backend == "sqlite":
            # elsewhere another supervisor may be the one that compares database and log
            await asyncio.to_thread(sequencer.step)
            await destroy_left_over_keys(settings, clock=clock, ids=ids)
        # 7
        supervisor = Supervisor(
            settings, clock=clock, seal=sequencer.step, node=local_join_token if with_node else None
        )
        await supervisor.run(ready)
        await asyncio.to_thread(sequencer.stop)


async def local_join_token(settings: Settings) -> str:
    """Ask the running server for a token for this host's node, as its administrator.

    What an operator has said of the node outlives a restart.
    """
    wanted = {"node": LOCAL_NODE, "selectors": None}

    def ask() -> str:
        with AdminClient(settings.admin_socket, "start of this host's node") as client:
            return str(client.call("POST", "/admin/v1/nodes/token", wanted)["token"])

    return await asyncio.to_thread(ask)


def sequencer_of(settings: Settings, location: Location, key: SigningKey, *, clock: Clock, ids: IdSource) -> Sequencer:
    """Make the log's sequencer, and write down beside the log the key that verifies it."""
    public = key.public_key().public_bytes_raw()  # type: ignore[union-attr]  # this purpose makes Ed25519 keys first
    verifier = VerifierKey(settings.audit_origin, public)
    with suppress(FileExistsError), (settings.server_dir / VKEY_FILE).open("x", encoding="ascii") as file:
        file.write(f"{verifier}\n")
    return Sequencer(
        engine=sequencing_engine(location),
        folder=settings.log_dir,
        key=verifier,
        sign=immediate(key).sign_now,
        clock=clock,
        ids=ids,
        baton=turn(location),
    )


async def destroy_left_over_keys(settings: Settings, *, clock: Clock, ids: IdSource) -> None:
    """Destroy keys of the authority that no row names, in the folder of which this process holds the lock."""
    database = Database.open(settings.database_url, clock=clock, ids=ids, folder=settings.server_dir)
    try:
        state = await database.read(authority_store.read)
    finally:
        database.close()
    domain = TrustDomain(settings.trust_domain)
    service = AuthorityService(open_store(settings.keys_uri), settings.keys_uri, domain, clock, ids)
    for kid in await service.destroy_left_over(state):
        _log.warning("a key that no row names was destroyed", extra={"kid": kid})


async def put_policy_in_force(settings: Settings, *, clock: Clock, ids: IdSource) -> None:
    """Activate the bundle of the policy folder; without one, the shipped bundle where none was ever in force."""
    database = Database.open(settings.database_url, clock=clock, ids=ids, folder=settings.server_dir)
    try:
        with database.reading() as connection:
            before = active_version(connection)
        if settings.policy_dir is None and before is not None:
            return
        bundle = Bundle.from_folder(settings.policy_dir) if settings.policy_dir else Bundle.shipped()
        if before == bundle.version:
            return
        plan = activate(
            bundle,
            before=before,
            now=clock.now(),
            record_id=ids.new(),
            operator={"uid": os.geteuid(), "user": getpass.getuser(), "role": "operator"},
            cause={"admin": getpass.getuser(), "reason": "start of the server"},
        )
        plan.answer(await database.commit(plan.write))
    finally:
        database.close()
