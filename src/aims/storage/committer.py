"""Group commit: one thread per process that puts many Writes into one transaction and tells each its own outcome.

A batch is what is waiting when the last one has ended: no timer. What an event loop hands over in one turn comes
together, at the end of that turn: a loop with many requests at once fills batches instead of ringing for each of them,
and one without loses nothing. Answers leave only after the commit. Whoever stops waiting for its outcome does not
withdraw its Write.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as WaitedTooLong
from contextlib import suppress
from dataclasses import dataclass

from aims.clock import Clock, IdSource
from aims.storage.errors import StorageError
from aims.storage.plan import UndoError, execute
from aims.storage.session import Failure, Fault, Session
from aims.storage.write import Outcome, Write

QUEUE_LIMIT = 2_000
"""Writes that may wait; the next one is refused with ``storage.busy``."""
BATCH_LIMIT = 256
BATCH_OCTETS = 1 << 20

_ROUNDS = 3  # further attempts after a deadlock or a lost connection
_PATIENCE = 5.0  # seconds to get a lost connection back, and after which a batch counts as stuck
_PROBE_SECONDS = 1.0
_CLOSE_SECONDS = 30.0
_PRUNE_LIMIT = 1_000

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Job:
    """A Write that waits, who waits for it, and the outcome or the reason of the error."""

    write: Write
    future: asyncio.Future[Outcome] | Future[Outcome]
    result: Outcome | str = "internal"


class Committer:
    """The writer of this process. ``start`` and ``close`` once; the rest may be called from any thread."""

    def __init__(
        self,
        connect: Callable[[], Session],
        *,
        clock: Clock,
        ids: IdSource,
        on_changes: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.writer = ids.new()
        """The name under which records are numbered: new for each start."""
        self._connect = connect
        self._clock = clock
        self._on_changes = on_changes
        self._waiting: deque[_Job] = deque()
        self._turns: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
        self._chores: deque[Future[int]] = deque()
        self._bell = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._reached = 0
        self._in_sync = True
        self._down = ""
        self._since: float | None = None
        self._mean_octets = 1

    @property
    def healthy(self) -> bool:
        """Whether the last write worked and none hangs; while it is False the store tries again each second."""
        since = self._since
        return not self._down and (since is None or self._clock.monotonic() - since < _PATIENCE)

    def start(self) -> None:
        """Connect, register this writer and start the thread. Raises ``StorageError``."""
        self._session = self._connect()
        try:
            self._session.join(self.writer)
        except Exception as error:
            self._session.rollback()
            reason = self._session.judge(error).reason
            self._session.close()
            if isinstance(error, StorageError):
                raise
            raise StorageError("not_migrated" if reason == "internal" else reason, str(error)) from error
        self._thread = threading.Thread(target=self._work, name="aims-committer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Refuse new Writes, commit those that wait, end the thread."""
        with self._bell:
            self._closing = True
            self._bell.notify()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)
            self._thread = None

    async def commit(self, write: Write) -> Outcome:
        """Execute a Write together with others; return its outcome once it is durable.

        Raises ``StorageError``: ``busy`` (503 with Retry-After), ``closed``, ``internal``, ``unknown`` or why the
        database cannot be written. Cancelling the caller does not withdraw the Write.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        turn = self._turns.get(loop)
        if turn is None:
            self._require_room(1)
            self._turns[loop] = [_Job(write, future)]
            loop.call_soon(self._end_turn, loop)
        else:
            self._require_room(len(turn) + 1)
            turn.append(_Job(write, future))
        return await future

    def commit_now(self, write: Write) -> Outcome:
        """Do the same as ``commit`` and block the calling thread: for tools and tests, never on an event loop."""
        future: Future[Outcome] = Future()
        self._put(_Job(write, future))
        try:
            return future.result(_CLOSE_SECONDS)
        except WaitedTooLong as error:
            raise StorageError("unknown", "no outcome in time") from error

    def prune(self) -> Future[int]:
        """Delete some of what is too old, between two batches; the future has the number of rows that went."""
        future: Future[int] = Future()
        with self._bell:
            if self._closing or self._thread is None:
                raise StorageError("closed")
            self._chores.append(future)
            self._bell.notify()
        return future

    def _require_room(self, more: int) -> None:
        if self._closing or self._thread is None:
            raise StorageError("closed")
        if len(self._waiting) + more > QUEUE_LIMIT:
            raise StorageError("busy", f"{QUEUE_LIMIT} Writes wait")

    def _end_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        jobs = self._turns.pop(loop)
        with self._bell:
            if not self._closing:
                self._waiting.extend(jobs)
                self._bell.notify()
                return
        for job in jobs:
            job.result = "closed"
        _resolve(jobs)

    def _put(self, job: _Job) -> None:
        with self._bell:
            self._require_room(1)
            self._waiting.append(job)
            self._bell.notify()

    # From here on: the writer thread.

    def _work(self) -> None:
        try:
            while True:
                with self._bell:
                    if not self._waiting and not self._chores:
                        if self._closing:
                            break
                        self._bell.wait(_PROBE_SECONDS if self._down else None)
                    most = max(1, min(BATCH_LIMIT, BATCH_OCTETS // self._mean_octets))
                    jobs = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
                    chores = [self._chores.popleft() for _ in range(len(self._chores))]
                self._turn(jobs, chores)
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._bell:
            self._closing = True
            jobs, chores = list(self._waiting), list(self._chores)
            self._waiting.clear()
            self._chores.clear()
        for job in jobs:
            job.result = "closed"
        _deliver(jobs)
        for chore in chores:
            chore.cancel()
        self._session.close()

    def _turn(self, jobs: list[_Job], chores: list[Future[int]]) -> None:
        self._since = self._clock.monotonic()
        if jobs:
            try:
                self._commit(jobs, self._since + (0 if self._down else _PATIENCE))
            except Exception:  # noqa: BLE001 - the thread must outlive whatever happens
                # A defect of the committer itself: nobody may wait for ever, and nothing may be half open.
                _log.exception("the committer failed")
                self._session.rollback()
                self._in_sync = False
            _deliver(jobs)
        elif self._down:
            self._probe()
        for chore in chores:
            self._prune(chore)
        self._since = None

    def _commit(self, jobs: Sequence[_Job], deadline: float) -> None:
        """Commit the jobs as one transaction; a bad one is found by halving."""
        refused: frozenset[int] = frozenset()
        rounds = 0
        while True:
            fault = self._attempt(jobs, refused)
            if fault is None:
                self._down = ""
                return
            if isinstance(fault, UndoError):
                refused |= fault.writes
            elif fault.failure is Failure.CLASH and len(jobs) == 1 and not refused:
                refused = frozenset({0})
            else:
                obstacle = fault if rounds == _ROUNDS else self._obstacle(fault, deadline)
                if obstacle is not None:
                    self._abandon(jobs, obstacle, deadline)
                    return
                rounds += 1

    def _obstacle(self, fault: Fault, deadline: float) -> Fault | None:
        """Do what makes another attempt useful; return what is in its way, or None."""
        if fault.failure is Failure.LOST:
            return self._reconnect(deadline)
        return None if fault.failure is Failure.AGAIN else fault

    def _abandon(self, jobs: Sequence[_Job], fault: Fault, deadline: float) -> None:
        """Nothing was written: tell everybody, or look for the bad one."""
        if fault.failure in (Failure.CLASH, Failure.POISON) and len(jobs) > 1:
            middle = len(jobs) // 2
            self._commit(jobs[:middle], deadline)
            self._commit(jobs[middle:], deadline)
            return
        if fault.failure in (Failure.LOST, Failure.DOWN):
            self._in_sync = False
            if not self._down:
                _log.error("the database cannot be written: %s", fault.reason)
            self._down = fault.reason
        for job in jobs:
            job.result = fault.reason

    def _attempt(self, jobs: Sequence[_Job], refused: frozenset[int]) -> Fault | UndoError | None:
        session = self._session
        try:
            if not self._in_sync:
                session.reopen()
                self._catch_up()
            result = execute(
                session,
                [job.write for job in jobs],
                writer=self.writer,
                reached=self._reached,
                now=int(self._clock.now()),
                refused=refused,
            )
        except UndoError as undo:
            session.rollback()
            return undo
        except Exception as error:  # noqa: BLE001 - the back end says what it means
            fault = session.judge(error)
            session.rollback()
            if fault.failure is Failure.POISON and len(jobs) == 1:
                _log.exception("a Write could not be executed")
            return fault
        target = self._reached + len(jobs)
        try:
            session.commit()
        except Exception as error:  # noqa: BLE001 - the same
            fault = session.judge(error)
            session.rollback()
            if self._reconnect(self._clock.monotonic() + _PATIENCE) is not None:
                return Fault(Failure.DOWN, "unknown")
            if self._reached != target:
                return fault
        self._reached = target
        self._mean_octets = max(1, result.octets // len(jobs))
        for job, outcome in zip(jobs, result.outcomes, strict=True):
            job.result = outcome
        if result.seq:
            self._on_changes(result.seq)
        return None

    def _reconnect(self, deadline: float) -> Fault | None:
        """Connect anew and read how far this writer got; return why that is not possible, or None."""
        self._in_sync = False
        pause = 0.01
        while True:
            try:
                self._session.reopen()
                self._catch_up()
            except Exception as error:  # noqa: BLE001 - tried until the deadline
                fault = self._session.judge(error)
                self._session.rollback()
                if fault.failure is not Failure.LOST or self._clock.monotonic() + pause >= deadline:
                    _log.warning("the database does not come back: %s", error)
                    return fault
                time.sleep(pause)
                pause = min(2 * pause, 0.5)
            else:
                return None

    def _catch_up(self) -> None:
        self._reached = self._session.reached(self.writer)
        self._in_sync = True

    def _probe(self) -> None:
        try:
            if not self._in_sync:
                self._session.reopen()
                self._catch_up()
            self._session.probe(self.writer)
        except Exception as error:  # noqa: BLE001 - the back end says what it means
            self._session.rollback()
            self._in_sync = False
            self._down = self._session.judge(error).reason
        else:
            _log.warning("the database can be written again")
            self._down = ""

    def _prune(self, chore: Future[int]) -> None:
        if not chore.set_running_or_notify_cancel():
            return
        try:
            gone = self._session.prune(int(self._clock.now()), _PRUNE_LIMIT)
        except Exception as error:  # noqa: BLE001 - the same
            reason = self._session.judge(error).reason
            self._session.rollback()
            self._in_sync = False
            chore.set_exception(StorageError(reason, str(error)))
        else:
            chore.set_result(gone)


def _deliver(jobs: Sequence[_Job]) -> None:
    """Wake everybody that waits, each event loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in jobs:
        if isinstance(job.future, Future):
            _resolve([job])
        else:
            loops.setdefault(job.future.get_loop(), []).append(job)
    for loop, group in loops.items():
        # A loop that was closed meanwhile has nobody left who waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, group)


def _resolve(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        if job.future.done():
            continue
        with suppress(InvalidStateError):
            if isinstance(job.result, Outcome):
                job.future.set_result(job.result)
            else:
                job.future.set_exception(StorageError(job.result))
