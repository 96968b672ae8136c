"""What one process holds for one entry, and the task that keeps it fresh."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from aims.clock import Clock
from aims.errors import AimsError
from aims.node.errors import NodeError
from aims.node.identities import JwtIdentity
from aims.node.issuing import Credential, Issuer, Token
from aims.node.messages import Entry
from aims.node.pauses import SLICE, Backoff
from aims.node.processes import Process
from aims.node.workload_errors import WorkloadApiError

MAX_TOKENS: Final = 64
AGAIN: Final = Backoff(first=0.25, most=15.0)
REFUSED_PAUSE: Final = 1.0
"""Seconds that a refusal stands before a process that asks again makes the node ask again."""
LEAST_PAUSE: Final = 1.0
"""Seconds between issues, however short the life that the server gives."""

_log = logging.getLogger("aims.node")


class Holding:
    """A credential that is renewed at half-life while somebody uses it.

    ``changed`` is called whenever ``credential`` or ``error`` is another one. ``in_use`` says whether renewing is worth
    it. A refusal takes the credential away; a server that is away leaves it until it expires.
    """

    def __init__(
        self,
        entry: Entry,
        process: Process,
        issuer: Issuer,
        clock: Clock,
        *,
        in_use: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        self.entry = entry
        self.credential: Credential | None = None
        self.error: AimsError | None = None
        self._process = process
        self._issuer = issuer
        self._clock = clock
        self._in_use = in_use
        self._on_change = changed
        self._tokens: OrderedDict[tuple[str, ...], Token] = OrderedDict()
        self._token_lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        self._failed_at = float("-inf")
        self._task = asyncio.get_running_loop().create_task(self._keep())

    @property
    def current(self) -> Credential | None:
        """The credential while it is good, never beyond its end."""
        held = self.credential
        return held if held is not None and self._clock.now() < held.expires else None

    @property
    def pending(self) -> bool:
        """Whether the first answer is still to come."""
        return self.current is None and self.error is None

    def close(self) -> None:
        """End it; nothing is held any more."""
        self._task.cancel()
        self.credential = None
        self.error = WorkloadApiError("not_entitled")
        self._tokens.clear()
        self._news.set()

    def take(self, entry: Entry) -> None:
        """Follow a changed entry: its lifetimes and hint count from the next issue on, which is now."""
        if entry != self.entry:
            self.entry = entry
            self.renew()

    def drop(self) -> None:
        """Forget a credential that a stop has ended, and ask for another one."""
        self.credential = None
        self.renew()

    def renew(self) -> None:
        """Ask again now, whatever was refused before."""
        self.error = None
        self._tokens.clear()
        self._wake.set()

    def ask_again(self) -> None:
        """Ask again if there is nothing, and the last failure is not from just now."""
        if self._clock.monotonic() - self._failed_at < REFUSED_PAUSE:
            return
        held = self.credential
        if self.current is None and (held is not None or self.error is not None):
            self.renew()
        elif held is not None and self._clock.now() >= held.renew_at:
            self._wake.set()

    async def ready(self) -> Credential:
        """Return the credential, waiting for an issue that is under way.

        Raises: the error that it ended with.
        """
        while (held := self.current) is None:
            if self.error is not None:
                raise self.error.with_traceback(None)
            await self._news.wait()
        return held

    async def token(self, audiences: tuple[str, ...]) -> JwtIdentity:
        """Return a JWT-SVID for ``audiences``: the one at hand until its half-life, then a new one.

        While the server is away the one at hand is good until it expires.

        Raises: as `Issuer.token`.
        """
        held = await self.ready()
        audiences = tuple(sorted(audiences))
        async with self._token_lock:
            now = self._clock.now()
            token = self._tokens.get(audiences)
            if token is not None and now < token.renew_at:
                self._tokens.move_to_end(audiences)
                return token.identity
            try:
                fresh = await self._issuer.token(self.entry, self._process, audiences, held.jkt)
            except NodeError as error:
                if token is not None and now < token.expires and error.standard == "UNAVAILABLE":
                    return token.identity
                raise
            if self.credential is held:
                self._tokens[audiences] = fresh
                while len(self._tokens) > MAX_TOKENS:
                    self._tokens.popitem(last=False)
            return fresh.identity

    def _changed(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
        self._on_change()

    async def _keep(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            entry = self.entry
            try:
                credential = await self._issue(entry)
            except AimsError as error:
                failures += 1
                self._fail(error)
                if error.standard != "UNAVAILABLE":
                    await self._wake.wait()  # asking again by itself would change nothing
                else:
                    await self._sleep(self._clock.now() + AGAIN.delay(failures - 1))
                continue
            failures = 0
            self.credential, self.error = credential, None
            self._tokens.clear()
            self._changed()
            if self.entry == entry:
                await self._sleep(max(credential.renew_at, self._clock.now() + LEAST_PAUSE))

    async def _issue(self, entry: Entry) -> Credential:
        try:
            return await self._issuer.credential(entry, self._process)
        except AimsError:
            raise
        except Exception as failure:
            _log.exception("a defect while issuing")
            raise WorkloadApiError("state_invalid", type(failure).__name__) from failure

    def _fail(self, error: AimsError) -> None:
        self._failed_at = self._clock.monotonic()
        self.error = error
        if error.standard != "UNAVAILABLE":
            self.credential = None
            self._tokens.clear()
        _log.warning(
            "nothing was issued",
            extra={
                "code": error.code,
                "detail": str(error),
                "entry": self.entry.id,
                "instance": self._process.instance,
            },
        )
        self._changed()

    async def _sleep(self, moment: float) -> None:
        """Wait until it is time and somebody is there, or until woken; tell when the credential expires meanwhile."""
        told = self.current is None
        while not self._wake.is_set():
            now = self._clock.now()
            if now >= moment and self._in_use():
                return
            if not told and self.current is None:
                told = True
                self._changed()
            ends = self.credential.expires if self.credential is not None and not told else now + SLICE
            until = min(moment if now < moment else now + SLICE, ends)
            try:
                async with asyncio.timeout(max(0.0, min(until - now, SLICE))):
                    await self._wake.wait()
            except TimeoutError:
                continue
