"""The node as a process: its parts, in the order in which they start and end.

    1. harden, folders, locks      4. reports and renewal of the own identity
    2. own identity, or join       5. sockets: nothing is known yet, and they say so
    3. launcher and cache          6. the stream; after its first state the node is ready

It ends in the reverse order: launched programs first, while they can still be told apart, then the streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aims.clock import Clock, IdSource
from aims.node import pid_file
from aims.node.agent_api import SOCKET_NAME as AGENT_SOCKET
from aims.node.agent_api import AgentApi
from aims.node.agent_feed import AgentFeed
from aims.node.api_server import ApiServer
from aims.node.cache import IdentityCache, recognise
from aims.node.errors import NodeError
from aims.node.hardening import harden
from aims.node.issuing import Issuer
from aims.node.launch import Launcher
from aims.node.launches import Launch
from aims.node.own_identity import OwnIdentity, obtain
from aims.node.reports import Reports
from aims.node.server_client import ServerClient, ServerRefusedError
from aims.node.server_state import ServerState
from aims.node.state import StateFolder, private_folder, read_join_token
from aims.node.watching import Watch
from aims.node.window import FileWindow
from aims.node.workload_api import WorkloadApi

DRAIN_SECONDS: Final = 2.0
STOP_SECONDS: Final = 6.0
"""From SIGTERM to SIGKILL of a launched program when the node ends: shorter than the patience of who ends the node."""

_log = logging.getLogger("aims.node")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """``join_token``: a file, or ``-`` for standard input; used only without a valid identity. ``life``: a descriptor
    whose end means that the node shall end."""

    state_dir: Path
    run_dir: Path
    join_token: Path | None = None
    life: int | None = None


async def serve(settings: NodeSettings, *, clock: Clock, ids: IdSource, ready: Callable[[], None]) -> None:
    """Run the node until SIGTERM, SIGINT, or the end of ``life``; call ``ready`` once it can vouch for programs.

    Raises: AimsError for what stands in the way before that. Afterwards nothing but its end ends it.
    """
    # 1
    harden()
    stopping = asyncio.Event()
    async with AsyncExitStack() as stack:
        _end_on_signals(stack, stopping)
        if settings.life is not None:
            _end_with(stack, settings.life, stopping)
        folder = StateFolder(settings.state_dir, clock)
        stack.callback(folder.close)
        run_dir = private_folder(settings.run_dir, readable=True)
        stack.callback(os.close, pid_file.hold(run_dir))
        # 2
        source = settings.join_token
        token = None if source is None else lambda: read_join_token(source)
        own = OwnIdentity(await obtain(folder, token, clock), folder, clock)
        node, client = own.identity.node, ServerClient(own.identity.mtls_url, own.context)
        stack.push_async_callback(client.close)
        # 3
        state = ServerState(own.identity.trust_domain, clock)
        issuer = Issuer(lambda: client, state, node, clock)
        reports = Reports(lambda: client, lambda: state.entries, clock)
        cache: IdentityCache

        def ended(launch: Launch) -> None:
            cache.ended(launch)
            reports.ended(launch)

        launcher = Launcher(
            state,
            node=node,
            folder=run_dir,
            clock=clock,
            ids=ids,
            on_start=reports.started,
            on_end=ended,
            on_refuse=reports.refused,
            mode=0o666 if run_dir.stat().st_mode & 0o011 else 0o600,
            grace=STOP_SECONDS,
        )
        cache = IdentityCache(state, issuer, lambda: launcher, node=node, clock=clock, ids=ids)
        stack.callback(cache.close)
        # 4
        _task(stack, own.keep(client), stopping)
        _task(stack, reports.send(), stopping)
        stack.push_async_callback(reports.drain, DRAIN_SECONDS)
        # 5
        feed = AgentFeed(clock)
        window = FileWindow(settings.state_dir / "replay-window", clock)
        stack.callback(window.close)
        agents = ApiServer(AgentApi(cache, feed, window, clock), recognise)
        await agents.start(run_dir / AGENT_SOCKET)
        stack.push_async_callback(agents.stop)
        api = ApiServer(WorkloadApi(cache), recognise)
        await api.start(run_dir / "workload.sock")
        stack.push_async_callback(api.stop)
        await launcher.start()
        stack.push_async_callback(launcher.stop)
        # 6
        watch = Watch(client, state, own.believe, feed.hear)
        _task(stack, watch.keep(), stopping)
        if await _first_state(watch, stopping):
            ready()
        await stopping.wait()


async def _first_state(watch: Watch, stopping: asyncio.Event) -> bool:
    """Wait for the first state; False when the node shall end before.

    Raises: ServerRefusedError where the server knows this node no more.
    """
    said = False
    waits = {asyncio.ensure_future(event.wait()) for event in (watch.first, stopping)}
    try:
        while not watch.first.is_set() and not stopping.is_set():
            failed = asyncio.ensure_future(watch.failed.wait())
            await asyncio.wait({*waits, failed}, return_when=asyncio.FIRST_COMPLETED)
            failed.cancel()
            watch.failed.clear()
            if isinstance(watch.problem, ServerRefusedError):
                raise watch.problem
            if watch.problem is not None and not said:
                said = True
                _log.warning("waiting for the server", extra={"code": watch.problem.code, "fix": watch.problem.hint})
    finally:
        for wait in waits:
            wait.cancel()
    return watch.first.is_set()


def _end_on_signals(stack: AsyncExitStack, stopping: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stopping.set)
        stack.callback(loop.remove_signal_handler, number)


def _end_with(stack: AsyncExitStack, descriptor: int, stopping: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    os.set_inheritable(descriptor, False)

    def closed() -> None:
        loop.remove_reader(descriptor)
        stopping.set()

    try:
        loop.add_reader(descriptor, closed)
    except OSError as error:
        raise NodeError("node_folder", f"descriptor {descriptor}: {error.strerror}") from error
    stack.callback(loop.remove_reader, descriptor)


def _task(stack: AsyncExitStack, work: Coroutine[Any, Any, None], stopping: asyncio.Event) -> None:
    """Run ``work`` beside the rest. It never ends by itself: if a defect ends it, the node ends with it."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda _: stopping.set())

    async def end() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)
