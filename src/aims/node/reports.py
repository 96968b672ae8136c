"""Telling the server that launches began and ended: for its audit, so it is repeated until the server took it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from aims.errors import AimsError
from aims.node.launches import Launch
from aims.node.messages import Entry
from aims.node.pauses import Backoff
from aims.node.server_client import ServerClient

MAX_WAITING: Final = 2048
MAX_ATTEMPTS: Final = 8
AGAIN: Final = Backoff(first=0.5, most=30.0)

_log = logging.getLogger("aims.node")


@dataclass(frozen=True, slots=True)
class Report:
    entry: str
    instance: str
    event: Literal["start", "end"]
    detail: dict[str, str | int | bool]


class Reports:
    """Sends reports in their order, one at a time; keeps at most 2,048 while the server is away.

    ``entries`` returns the node's entries: a launch is reported under the one that approved it.
    """

    def __init__(self, client: Callable[[], ServerClient], entries: Callable[[], tuple[Entry, ...]]) -> None:
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
