"""Everything that an identity consists of, kept fresh by the node's streams for as long as it is in use.

Four streams: X509-SVIDs, WITs and WIT bundles over the Workload API, stops and settings over agent.sock. A node that
cannot be heard takes nothing away: credentials stay good until they expire, and what was stopped is unknown after
``max_stale``. A node that *withdraws* the identity ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from aims.authentication.liveness import StopView
from aims.authentication.verified_wit import WitVerifier
from aims.clock import Clock
from aims.errors import AimsError
from aims.identifiers import TrustDomain
from aims.sdk.endpoint import workload_endpoint
from aims.sdk.errors import SdkError
from aims.sdk.material import ProofKey, TlsMaterial, wit_keys
from aims.sdk.node_client import SOCKET_NAME, NodeClient
from aims.sdk.node_state import Everything, Line, Settings, stale
from aims.sdk.node_window import NodeWindow
from aims.sdk.workload_client import Backoff, WorkloadClient
from aims.sdk.workload_state import Interrupted, Withdrawn

T = TypeVar("T")

_log = logging.getLogger("aims.sdk")
_AGAIN: Final = Backoff(first=0.1, most=2.0)


@dataclass(frozen=True, slots=True)
class Enforcement:
    """What a verifier of calls uses, replaced as a whole when the settings change."""

    settings: Settings
    stops: StopView
    wits: WitVerifier


class Live:
    """The streams and what they said last. Belongs to one event loop. ``max_stale`` (seconds) can only be lowered."""

    def __init__(self, address: str | None, clock: Clock, *, max_stale: float | None) -> None:
        self._path = path = workload_endpoint(address)
        self._clock = clock
        self._most_stale = max_stale
        self._client = WorkloadClient(f"unix://{path}")
        self._door = path.with_name(SOCKET_NAME)
        self._node = NodeClient(self._door)
        self._tasks: list[asyncio.Task[None]] = []
        self._hooks: list[Callable[[], None]] = []
        self._told = asyncio.Event()
        self._last: SdkError | None = None  # why the node was not heard
        self._refusal: SdkError | None = None  # why there is no identity
        self._fatal: SdkError | None = None  # why a stream will not be asked for again
        self._identified = asyncio.Event()
        self._verifying = asyncio.Event()
        self._anchored = False
        self._alone = False  # the node has no agent.sock, or does not let us in
        self._no_wit = False
        self.window = NodeWindow(self._node)
        self.tls: TlsMaterial | None = None
        self.proof: ProofKey | None = None
        self.settings: Settings | None = None
        self.enforcement: Enforcement | None = None
        self.wits: WitVerifier | None = None

    async def start(self, seconds: float) -> None:
        """Begin, and wait until everything was said once.

        Raises: SdkError ``not_entitled``, ``no_node``, or what the node answered, after ``seconds`` at most.
        """
        if not self._path.exists():
            raise SdkError("no_node", str(self._path))
        self._alone = not self._door.exists()
        self._run(
            self._keep(self._client.watch_x509(), lambda state: self._show(TlsMaterial.of(state)), optional=False)
        )
        self._run(self._keep(self._client.watch_wit(), lambda state: self._prove(ProofKey.of(state.wits[0]))))
        self._run(self._keep_anchors())
        if not self._alone:
            self._run(self._keep_node())
            self._run(self.window.keep())
        try:
            async with asyncio.timeout(seconds):
                while not self._complete():
                    if self._refusal is not None:
                        raise SdkError("not_entitled", self._refusal.brief)
                    if self._fatal is not None:
                        raise self._fatal
                    await self._told.wait()
                    self._told.clear()
        except TimeoutError:
            raise SdkError("no_node", self._lacking()) from None

    async def stop(self) -> None:
        """End the streams."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()
        self._give_up(None)
        self._client.close()
        self._node.close()

    def on_change(self, hook: Callable[[], None]) -> None:
        """Call ``hook`` after each change of whatever kind; it must not block."""
        self._hooks.append(hook)

    def require_tls(self) -> TlsMaterial:
        """Return the X509-SVID. Raises: SdkError ``stopped``, ``expired``, ``not_started``."""
        if self.tls is None:
            raise self._missing()
        if self.tls.expires < self._clock.now():
            raise SdkError("expired")
        return self.tls

    def require_proof(self) -> ProofKey:
        """Return the proof key with its WIT. Raises: SdkError ``no_wit``, and as ``require_tls``."""
        if self.proof is None:
            raise SdkError("no_wit") if self._no_wit else self._missing()
        if self.proof.expires <= self._clock.now():
            raise SdkError("expired")
        return self.proof

    def require_settings(self) -> Settings:
        """Return the settings. Raises: SdkError ``no_node``."""
        if self.settings is None:
            raise SdkError("no_node", "no settings")
        return self.settings

    def _missing(self) -> SdkError:
        if self._refusal is not None:
            return SdkError("stopped", self._refusal.brief)
        # after a resumption the streams bring one credential before the other
        return SdkError("awaited") if self._tasks else SdkError("not_started")

    def _complete(self) -> bool:
        wits = self._no_wit or (self.proof is not None and self._anchored)
        return self.tls is not None and wits and (self._alone or self.settings is not None)

    def _lacking(self) -> str:
        parts = {
            "X509-SVID": self.tls,
            "WIT": self.proof,
            "WIT bundle": self._anchored or None,
            "settings": self.settings,
        }
        lacking = ", ".join(name for name, part in parts.items() if part is None)
        return f"without {lacking}: {self._last.brief if self._last else 'no answer'}"

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        # A defect of ours: what this stream kept is not kept any more, so nothing of it is used any more.
        _log.error("the identity is given up", exc_info=error)
        self._fatal = SdkError("unavailable", type(error).__name__)
        self._give_up(self._fatal)

    def _tell(self) -> None:
        self._told.set()
        for hook in tuple(self._hooks):
            try:
                hook()
            except AimsError:
                _log.exception("what was renewed could not be put to use")

    def _give_up(self, error: SdkError | None) -> None:
        self.tls = self.proof = self.enforcement = None
        self._refusal = error
        self._tell()

    # The Workload API

    async def _keep(
        self,
        events: AsyncGenerator[T | Withdrawn | Interrupted, None],
        take: Callable[[T], None],
        *,
        optional: bool = True,
    ) -> None:
        async with contextlib.aclosing(events):
            try:
                async for event in events:
                    if isinstance(event, Withdrawn):
                        self._withdraw(event.error)
                    elif isinstance(event, Interrupted):
                        self._last = event.error
                    else:
                        self._take(event, take)
            except SdkError as error:
                self._last = error
                if error.reason == "unsupported" and optional:
                    self._no_wit = True
                    self._verifying.set()
                else:
                    self._fatal = error
                self._tell()

    def _take(self, event: T, take: Callable[[T], None]) -> None:
        try:
            take(event)
        except SdkError as error:
            self._last = error
            return
        self._tell()

    async def _keep_anchors(self) -> None:
        # Whose stops must reach a credential is known only with the own trust domain.
        await self._identified.wait()
        await self._keep(self._client.watch_wit_bundles(), self._anchor)

    def _show(self, tls: TlsMaterial) -> None:
        self.tls, self._refusal = tls, None
        self._identified.set()

    def _prove(self, proof: ProofKey) -> None:
        self.proof, self._refusal = proof, None

    def _anchor(self, bundles: Mapping[TrustDomain, str]) -> None:
        self._verifier().trust({domain.uri: wit_keys(jwks) for domain, jwks in bundles.items()})
        self._anchored = True
        self._verifying.set()

    def _verifier(self) -> WitVerifier:
        if self.wits is None:
            assert self.tls is not None  # noqa: S101 -- _identified
            self.wits = WitVerifier({}, own=self.tls.spiffe_id.trust_domain)
        return self.wits

    def _withdraw(self, error: SdkError) -> None:
        # Stops are still heard, for calls that are open.
        self.tls = self.proof = None
        self._refusal = error
        self._tell()

    # agent.sock

    async def _keep_node(self) -> None:
        await self._identified.wait()
        await self._verifying.wait()
        attempt = 0
        while True:
            try:
                async with contextlib.aclosing(self._node.watch()) as lines:
                    async for line in lines:
                        attempt = 0
                        if not self._hear(line):
                            break
            except SdkError as error:
                self._last = error
            await asyncio.sleep(_AGAIN.delay(attempt, 0.5))
            attempt += 1

    def _hear(self, line: Everything | Line) -> bool:
        """Take a line; False where only a new full state helps."""
        if isinstance(line, Everything):
            stops = self._enforce(line.settings)
            stops.full(line.seq, line.stops)
            self._tell()
            return stops.number is not None
        if self.enforcement is None:
            raise SdkError("response_invalid", "a line before the full state")
        stops = self.enforcement.stops
        stops.advance(line.after, line.seq, line.stop)
        if line.heartbeat:
            stops.heartbeat(line.seq, line.age)
        if line.stop is not None:
            self._tell()
        return stops.number is not None

    def _enforce(self, settings: Settings) -> StopView:
        held, limit = self.enforcement, self._limit(settings)
        self.settings = settings
        if held is not None and held.settings == settings:
            return held.stops
        if held is not None and self._limit(held.settings) == limit:
            stops = held.stops
        else:
            stops = StopView(self._clock, settings.trust_domain, max_stale=limit)
        self.enforcement = Enforcement(settings, stops, self._verifier())
        return stops

    def _limit(self, settings: Settings) -> float:
        own = () if self.tls is None else settings.of_peer(self.tls.spiffe_id)
        found = [settings.max_stale, *(resource.max_stale for resource in own)]
        return min(found if self._most_stale is None else [*found, stale(self._most_stale)])
