"""Telling the server that launches began, ended and were refused: for its audit, so it is repeated until it took it.

Refusals are what a local user can make many of: ten a second are told one by one, the others with the next one as a
number. A refusal under a name that no entry of this node has concerns no agent, and stays in the node's own log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from aims.clock import Clock
from aims.errors import AimsError
from aims.node.launches import Launch
from aims.node.messages import Entry
from aims.node.pauses import Backoff
from aims.node.server_client import ServerClient

MAX_WAITING: Final = 2048
MAX_ATTEMPTS: Final = 8
REFUSALS_PER_SECOND: Final = 10
AGAIN: Final = Backoff(first=0.5, most=30.0)

_log = logging.getLogger("aims.node")


@dataclass(frozen=True, slots=True)
class Report:
    entry: str
    instance: str
    event: Literal["start", "end", "refuse"]
    detail: dict[str, str | int | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Somebody of this ``uid`` asked for a launch as ``name`` and did not get it; ``instance`` would have been its."""

    name: str
    instance: str
    uid: int
    error: AimsError


class Reports:
    """Sends reports in their order, one at a time; keeps at most 2,048 while the server is away.

    ``entries`` returns the node's entries: a launch is reported under the one that approved it.
    """

    def __init__(
        self, client: Callable[[], ServerClient], entries: Callable[[], tuple[Entry, ...]], clock: Clock
    ) -> None:
        self._clock = clock
        self._second, self._left, self._untold = -1, 0, 0
        self._client = client
        self._entries = entries
        self._waiting: asyncio.Queue[Report] = asyncio.Queue(MAX_WAITING)
        self._under: dict[str, str] = {}

    def started(self, launch: Launch) -> None:
        """A program runs."""
        for entry in self._entries():
            if entry.launched and entry.spiffe_id == launch.spiffe_id and entry.selectors <= launch.selectors:
                self._under[launch.instance] = entry.id
                detail: dict[str, str | int | bool] = {
                    "posture": str(launch.posture),
                    "pid": launch.pid,
                    "uid": launch.uid,
                    "executable": launch.measured.path[:500],
                    "executable_digest": launch.measured.measurement.executable,
                }
                self._put(Report(entry.id, launch.instance, "start", detail))
                return

    def ended(self, launch: Launch) -> None:
        """A program ended; one whose start was reported."""
        entry = self._under.pop(launch.instance, None)
        if entry is not None:
            how = launch.ended.result()
            reason = f"signal {how.signal}" if how.signal else f"exit {how.status}"
            self._put(Report(entry, launch.instance, "end", {"posture": str(launch.posture), "reason": reason}))

    def refused(self, refusal: Refusal) -> None:
        """A program was not started."""
        second = int(self._clock.monotonic())
        if second != self._second:
            self._second, self._left = second, REFUSALS_PER_SECOND
        if self._left <= 0:
            self._untold += 1
            return
        self._left -= 1
        code = refusal.error.code
        _log.warning("a launch was refused", extra={"code": code, "agent": refusal.name, "uid": refusal.uid})
        entry = next((entry for entry in self._entries() if entry.launched and entry.agent == refusal.name), None)
        if entry is not None:
            detail: dict[str, str | int | bool] = {"reason": code, "uid": refusal.uid, "more": self._untold}
            self._untold = 0
            self._put(Report(entry.id, refusal.instance, "refuse", detail))

    async def send(self) -> None:
        """Send what waits, for ever."""
        while True:
            report = await self._waiting.get()
            try:
                await self._deliver(report)
            finally:
                self._waiting.task_done()

    async def drain(self, seconds: float) -> None:
        """Wait until everything was sent, at most so long; ``send`` must run."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._waiting.join()

    async def _deliver(self, report: Report) -> None:
        failures = 0
        while True:
            try:
                await self._client().launched(
                    entry=report.entry, instance=report.instance, event=report.event, detail=report.detail
                )
            except AimsError as error:
                failures += 1
                # a server that is away gets it once it is back; one that answers "not now" for ever gets the next one
                if error.standard != "UNAVAILABLE" or (error.reason == "server_busy" and failures >= MAX_ATTEMPTS):
                    _log.error("a report of a launch is lost", extra={"code": str(error), "event": report.event})
                    return
                await asyncio.sleep(AGAIN.delay(failures - 1))
            else:
                return

    def _put(self, report: Report) -> None:
        try:
            self._waiting.put_nowait(report)
        except asyncio.QueueFull:
            _log.error("a report of a launch is lost", extra={"event": report.event, "instance": report.instance})
