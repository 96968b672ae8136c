"""The launcher: it starts what the node vouches for.

    1. who asks: the kernel's peer, not a launched process nor below one, a uid that may launch
    2. what: resolve the program with the cleaned search path, open it once
    3. compare executable, arguments and paths with the approved profile; measure in a thread, compare the content
    4. start the gate, enter the launch into the table, and only then give the word to execute
    5. recognise connections by pidfd; look at executable and code again before each credential
    6. reap, tell the client, forget

What holds when somebody dies. *The client*: the program's group gets SIGHUP, and after 10 s SIGKILL. *The node, on
purpose*: SIGTERM, and after 10 s SIGKILL. *The node, killed*: the kernel sends SIGTERM to the program, because its
parent died, and `aims run` sends SIGKILL after 10 s, for which it holds a pidfd. If node and `aims run` are both
killed, a program that ignores SIGTERM lives on, without a node and so without any new credential.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from aims.attestation import (
    UNMEASURED,
    AttestationError,
    LaunchProfile,
    UnixEvidence,
    compare,
    compare_words,
    separation,
)
from aims.clock import Clock, IdSource
from aims.node import environment
from aims.node.approvals import Approvals, Approved
from aims.node.connection_limits import ConnectionLimits, Seats
from aims.node.errors import NodeError
from aims.node.gate_control import Gate, Identity
from aims.node.launch_protocol import Ended, Start, refusal, started, variables
from aims.node.launch_socket import Descriptors, Waiting, bind, left, receive_signal, receive_start, reply
from aims.node.launches import Launch, Launches
from aims.node.measure import Measured, Measurer, homes_of, refuse_wide, root_paths
from aims.node.moves import Moves
from aims.node.peer import Peer, peer_of
from aims.node.program import DEFAULT_PATH, Program, resolve
from aims.node.reports import Refusal

GRACE = 10.0
"""Seconds between asking a program to end and SIGKILL."""

MAX_LAUNCHES = 1024
WAITING = ConnectionLimits(total=128, per_uid=64, per_process=8)
"""Connections that have not yet led to a launch. One that says nothing goes as soon as another needs its place."""

BREATH = 0.5
"""Seconds without new connections after the system had no descriptors left."""

MEASURING = 2
"""Programs that are measured at once before their launch; as many again are looked at again for a credential."""

NAMED_OCTETS = 32 * 1024**2
"""Up to this size the executable of a refused launch is read, so that the answer says whether it differs too."""


def _nothing(_: object) -> None:
    return


class Launcher:
    """Serves ``launch.sock`` in the main thread's event loop and knows what it started.

    ``node``: the node's name, first part of each instance. ``folder``: private folder of the sockets.
    ``on_end``: called in the loop when a launch has ended, before its client is told; ``on_refuse`` when a request was
    understood and nothing was started. ``grace``: seconds.
    """

    def __init__(
        self,
        approvals: Approvals,
        *,
        node: str,
        folder: Path,
        clock: Clock,
        ids: IdSource,
        on_start: Callable[[Launch], None] = _nothing,
        on_end: Callable[[Launch], None] = _nothing,
        on_refuse: Callable[[Refusal], None] = _nothing,
        mode: int = 0o600,
        grace: float = GRACE,
        waiting: ConnectionLimits = WAITING,
    ) -> None:
        self._approvals = approvals
        self._node = node
        self._folder = folder
        self._ids = ids
        self._on_start = on_start
        self._on_end = on_end
        self._on_refuse = on_refuse
        self._mode = mode
        self._grace = grace
        self._moves = Moves()
        self._measurer = Measurer(clock, self._moves)
        self._measuring = asyncio.Semaphore(MEASURING)
        # apart, so that no launch delays the renewals of what runs
        self._rechecking = asyncio.Semaphore(MEASURING)
        self._launches = Launches()
        self._seats = Seats(waiting)
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Future[None]] = set()
        self._launching: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def start(self) -> None:
        """Bind the socket and serve.

        Raises: NodeError ``socket_path``, ``code_unwatched``; OSError.
        """
        # at once, so that nobody can fill the kernel's queue for others
        asyncio.get_running_loop().add_reader(self._moves.fileno(), self._moves.drain)
        shutil.rmtree(self._bytecode, ignore_errors=True)
        self._listener = bind(self._folder / "launch.sock", self._mode)
        self._listen()

    async def stop(self) -> None:
        """Refuse new launches, end the running ones (SIGTERM, after ``grace`` SIGKILL) and reap them."""
        self._stopping = True
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            (self._folder / "launch.sock").unlink(missing_ok=True)
        # 1. requests on their way: whoever has not executed yet never will
        for task in self._launching:
            task.cancel()
        await asyncio.gather(*self._launching, return_exceptions=True)
        # 2. what runs; its clients are told
        await asyncio.gather(*(self._end(launch, signal.SIGTERM) for launch in self._launches))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        asyncio.get_running_loop().remove_reader(self._moves.fileno())
        self._moves.close()

    def launched(self, peer: Peer) -> Launch | None:
        """Return the launch that ``peer`` is, if it lives: by pidfd, never by pid alone or anything it says."""
        return self._launches.find(peer.pidfd)

    def nested(self, peer: Peer) -> bool:
        """Tell whether ``peer`` is a launched process or hangs below one; such a peer neither launches nor administers.

        Raises: NodeError ``peer_gone``.
        """
        return self.launched(peer) is not None or peer.descends_from(self._launches.pids())

    async def recheck(self, launch: Launch) -> None:
        """Look at executable and code again; call it before each issue and renewal.

        Raises: NodeError ``launch_ended``, ``exe_changed``, ``exe_unreadable``, ``launch_mismatch``.
        """
        launch.check_executable()
        if launch.measured.measurement.roots:
            try:
                async with self._rechecking:
                    again = await asyncio.to_thread(self._measurer.again, launch.measured)
            except NodeError as error:
                raise NodeError("launch_mismatch", error.reason) from error
            if again is None:
                raise NodeError("launch_mismatch", "code")
            launch.measured = again
        # what was read counts only if the process is still the one that was meant
        launch.check_executable()
        launch.vouched = True

    def running(self) -> tuple[Launch, ...]:
        """Return the launches that have not been reaped."""
        return tuple(self._launches)

    def _listen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        listener = self._listener
        if listener is None:
            return
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # the client has left
        except OSError:
            # out of descriptors: asking again at once would only keep the loop busy
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(BREATH, self._listen)
            return
        connection.setblocking(False)
        waiting = Waiting(connection)
        if not self._seats.take(waiting.seat):
            reply(connection, refusal(NodeError("launches_full")))
            connection.close()
            return
        waiting.task = task = asyncio.get_running_loop().create_task(self._serve(waiting))
        self._launching.add(task)
        task.add_done_callback(self._launching.discard)
        # a task that is cancelled before its first step closes nothing by itself
        task.add_done_callback(lambda _: self._leave(waiting))
        self._keep(task)

    def _leave(self, waiting: Waiting) -> None:
        self._seats.leave(waiting.seat)
        waiting.connection.close()

    def _keep(self, task: asyncio.Future[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, waiting: Waiting) -> None:
        connection = waiting.connection
        try:
            launch = await self._launch(waiting)
        except (NodeError, AttestationError) as error:
            reply(connection, refusal(error))
            return
        if launch is not None:
            self._launching.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            self._seats.leave(waiting.seat)
            await self._accompany(connection, launch)

    async def _accompany(self, connection: socket.socket, launch: Launch) -> None:
        """Forward signals until the program ends; end it when the client leaves."""
        client = asyncio.get_running_loop().create_task(self._forward(connection, launch))
        try:
            both: list[asyncio.Future[Any]] = [client, launch.ended]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not launch.ended.done():
                await self._end(launch, signal.SIGHUP)
        finally:
            client.cancel()
            await asyncio.gather(client, return_exceptions=True)
        ended = launch.ended.result()
        reply(connection, Ended(status=ended.status, signal=ended.signal))

    async def _forward(self, connection: socket.socket, launch: Launch) -> None:
        while (message := await receive_signal(connection)) is not None:
            number = message.number
            # its group has no parent in its session, and there the kernel drops the default action of SIGTSTP
            launch.send(signal.SIGSTOP if number == signal.SIGTSTP else number)

    async def _end(self, launch: Launch, number: int) -> None:
        launch.send_group(number)
        launch.send_group(signal.SIGCONT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                await asyncio.shield(launch.ended)
        if not launch.ended.done():
            launch.send_group(signal.SIGKILL)
            await asyncio.shield(launch.ended)

    async def _launch(self, waiting: Waiting) -> Launch | None:
        connection = waiting.connection
        with peer_of(connection) as peer:
            received = await receive_start(connection)
            waiting.silent = False
            if received is None:
                return None
            start, descriptors = received
            with descriptors:
                try:
                    # 1. who asks, and for what
                    approved = self._allowed(peer, start)
                    return await self._execute(connection, peer, start, descriptors, approved)
                except (NodeError, AttestationError) as error:
                    instance = f"{self._node}:{self._ids.new()}"
                    self._on_refuse(Refusal(name=start.name, instance=instance, uid=peer.uid, error=error))
                    raise

    def _allowed(self, peer: Peer, start: Start) -> Approved:
        if self._stopping:
            raise NodeError("stopping")
        if self.nested(peer):
            raise NodeError("launch_nested", repr(peer))
        approved = self._approvals.approved(start.name)
        if approved is None:
            raise NodeError("not_registered", start.name)
        if peer.uid != os.geteuid() and (peer.uid not in approved.launch_uids or os.geteuid() != 0):
            # without the right to change its uid the program would run as the node
            raise NodeError("uid_forbidden", f"uid {peer.uid}")
        if len(self._launches) >= MAX_LAUNCHES:
            raise NodeError("launches_full")
        return approved

    async def _execute(
        self, connection: socket.socket, peer: Peer, start: Start, descriptors: Descriptors, approved: Approved
    ) -> Launch:
        kept, dropped = environment.clean(variables(start))
        # 2. the program
        async with self._measuring:
            if left(connection):
                raise NodeError("peer_gone")
            program, measured = await asyncio.to_thread(
                self._look,
                [os.fsdecode(item) for item in start.argv],
                descriptors.folder,
                kept,
                peer.uid,
                approved,
                gone=lambda: left(connection),
            )
        with program, contextlib.ExitStack() as undo:
            undo.callback(measured.release)
            # 3. is it what was approved
            if isinstance(approved.profile, LaunchProfile):
                differs = compare(approved.profile, measured.measurement)
                if differs:
                    raise NodeError("launch_mismatch", "\n".join(differs))
            if not peer.alive():
                raise NodeError("peer_gone")
            if self._stopping:
                raise NodeError("stopping")
            # 4. start it
            instance = self._ids.new()
            bytecode = str(self._bytecode / instance)
            identity = None if peer.uid == os.geteuid() else Identity.of(peer)
            gate = Gate.start(
                executable=program.descriptor,
                argv=program.arguments(
                    bytecode,
                    [root.path for root in measured.measurement.roots]
                    if isinstance(approved.profile, LaunchProfile)
                    else None,
                ),
                environment=environment.launched(
                    kept, workload_socket=str(self._folder / "workload.sock"), bytecode=bytecode
                ),
                stdio=descriptors.stdio,
                folder=descriptors.folder,
                terminal=start.terminal,
                umask=start.umask,
                identity=identity,
            )
            launch = self._enter(
                gate=gate,
                peer=peer,
                name=start.name,
                instance=f"{self._node}:{instance}",
                approved=approved,
                measured=measured,
            )
            try:
                await gate.ready()
                descriptors.close()
                # the client is told first, so that its terminal and its pidfd are in place when the program runs
                announcement = started(launch.pid, launch.instance, launch.posture, dropped)
                reply(connection, announcement, () if launch.ended.done() else (launch.pidfd,))
                await gate.go()
            except BaseException:
                launch.send(signal.SIGKILL)
                gate.close()
                await asyncio.shield(launch.ended)
                raise
            gate.close()
            undo.pop_all()  # from here on the watch ends with the launch
        self._on_start(launch)
        return launch

    def _look(
        self,
        argv: list[str],
        folder: int,
        kept: dict[str, str],
        uid: int,
        approved: Approved,
        *,
        gone: Callable[[], bool],
    ) -> tuple[Program, Measured]:
        cwd = os.readlink(f"/proc/self/fd/{folder}")  # noqa: PTH115 - a magic link, whose text is wanted
        program = resolve(argv, cwd=cwd, path=kept.get("PATH", DEFAULT_PATH))
        try:
            if not isinstance(approved.profile, LaunchProfile):
                return program, self._measurer.executable(program)
            roots = tuple(root.path for root in approved.profile.roots)
            homes = homes_of(uid, kept.get("HOME"))
            alone = self._as_approved(program, approved.profile, roots, homes)
            return program, self._measurer.measure(program, roots=roots, homes=homes, alone=alone, gone=gone)
        except BaseException:
            program.close()
            raise

    def _as_approved(
        self, program: Program, profile: LaunchProfile, roots: Sequence[str], homes: Sequence[str]
    ) -> Measured:
        """Refuse what is not the approved program before its code is read: gigabytes of anybody's choice."""
        paths = root_paths(program, roots)
        for path in paths:
            refuse_wide(path, homes)
        differs = compare_words(profile, program.argv, paths)
        if differs and os.fstat(program.descriptor).st_size > NAMED_OCTETS:
            raise NodeError("launch_mismatch", "\n".join(differs))
        alone = self._measurer.executable(program)
        if alone.measurement.executable != profile.executable:
            differs = ("executable", *differs)
        if differs:
            raise NodeError("launch_mismatch", "\n".join(differs))
        return alone

    def _enter(
        self, *, gate: Gate, peer: Peer, name: str, instance: str, approved: Approved, measured: Measured
    ) -> Launch:
        selector = approved.profile.selector() if isinstance(approved.profile, LaunchProfile) else UNMEASURED
        uid, gid = (os.geteuid(), os.getegid()) if peer.uid == os.geteuid() else (peer.uid, peer.gid)
        evidence = UnixEvidence(
            pid=gate.process.pid, uid=uid, gid=gid, path=measured.path, sha256=measured.measurement.executable
        )
        launch = Launch(
            instance=instance,
            name=name,
            spiffe_id=approved.spiffe_id,
            process=gate.process,
            uid=uid,
            gid=gid,
            posture=separation(node_uid=os.geteuid(), agent_uid=uid),
            selectors=evidence.selectors() | {selector},
            measured=measured,
        )
        self._launches.add(launch)
        asyncio.get_running_loop().add_reader(launch.pidfd, self._ended, launch)
        return launch

    def _ended(self, launch: Launch) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(launch.pidfd)
        # out of the table first: once reaped, its pid can be another's
        self._launches.remove(launch)
        launch.measured.release()
        ended = launch.reap()
        bytecode = self._bytecode / launch.instance.rpartition(":")[2]
        if bytecode.exists():
            self._keep(loop.run_in_executor(None, shutil.rmtree, bytecode, True))
        launch.ended.set_result(ended)
        self._on_end(launch)

    @property
    def _bytecode(self) -> Path:
        return self._folder / "bytecode"
