"""What the server said last: this node's entries, the bundle, the stops and the settings, in memory.

Before the first full state, and after a gap until the next one, nothing is known. A server that is merely away takes
nothing back: what was known stays, and ``fresh`` says whether it was confirmed lately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aims.authentication.liveness import DEFAULT_MAX_STALE, MAX_STOPS
from aims.clock import Clock
from aims.credentials.bundle import Bundle, BundleSet
from aims.credentials.errors import CredentialError
from aims.identifiers import SpiffeId, TrustDomain
from aims.node.approvals import Approved
from aims.node.errors import NodeError, ended, suspended
from aims.node.messages import (
    MAX_ENTRIES,
    BundleChanged,
    EntriesChanged,
    Entry,
    FullState,
    Heartbeat,
    Message,
    Settings,
    Stop,
    StopKey,
    Stopped,
)


class ServerState:
    """The node's memory of its server; belongs to one event loop. ``on_change`` is called after each change."""

    def __init__(self, trust_domain: TrustDomain, clock: Clock) -> None:
        self.trust_domain = trust_domain
        self._clock = clock
        self._listeners: list[Callable[[], None]] = []
        self._entries: dict[str, Entry] = {}
        self._by_spiffe_id: dict[SpiffeId, tuple[Entry, ...]] = {}
        self._unlaunched: tuple[Entry, ...] = ()
        self._stops: dict[StopKey, Stop] = {}
        self._bundles = BundleSet()
        self._settings: Settings | None = None
        self._seq = 0
        self._known = False
        self._heard: float | None = None

    @property
    def known(self) -> bool:
        """Whether there is a full state without a gap since."""
        return self._known

    @property
    def fresh(self) -> bool:
        """Whether the server was heard within ``max_stale``."""
        return self._known and self._heard is not None and self._clock.monotonic() - self._heard <= self.max_stale

    @property
    def heard(self) -> float | None:
        """When the server was last heard, by the monotonic clock."""
        return self._heard

    @property
    def max_stale(self) -> float:
        """Seconds after which silence means that nothing is certain any more."""
        return DEFAULT_MAX_STALE if self._settings is None else min(self._settings.max_stale, DEFAULT_MAX_STALE)

    @property
    def seq(self) -> int:
        """The highest number of the change feed that was seen."""
        return self._seq

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every entry of this node, the oldest first."""
        return tuple(entry for _, entry in sorted(self._entries.items()))

    @property
    def unlaunched(self) -> tuple[Entry, ...]:
        """The entries that do not demand a launch, the oldest first."""
        return self._unlaunched

    def entries_of(self, spiffe_id: SpiffeId) -> tuple[Entry, ...]:
        """Return the entries of one agent or service, the oldest first."""
        return self._by_spiffe_id.get(spiffe_id, ())

    @property
    def stops(self) -> tuple[Stop, ...]:
        return tuple(self._stops.values())

    @property
    def settings(self) -> Settings | None:
        return self._settings

    @property
    def bundles(self) -> BundleSet:
        return self._bundles

    @property
    def bundle(self) -> Bundle | None:
        """The bundle of the own trust domain."""
        return self._bundles.get(self.trust_domain)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after each change that can matter to a workload; it must not block."""
        self._listeners.append(listener)

    def blocked(self, names: Iterable[StopKey]) -> bool:
        """Tell whether one of the names is stopped."""
        return any(stop.blocked for stop in map(self._stops.get, names) if stop is not None)

    def fenced(self, names: Iterable[StopKey], epoch: int) -> bool:
        """Tell whether a stop ended a credential with these names, issued at ``epoch``; resuming revives none."""
        return any(stop.blocked or epoch < stop.seq for stop in map(self._stops.get, names) if stop is not None)

    def approved(self, name: str) -> Approved | None:
        """Return what may be started as ``name`` now.

        Raises: NodeError ``state_unknown`` unless the server was heard lately, ``stopped`` for who is suspended or
            retired.
        """
        if not self.fresh:
            raise NodeError("state_unknown")
        named = [entry for entry in self.entries if entry.agent == name]
        for entry in named:
            approved = entry.approved()
            if approved is not None:
                if self.blocked([("agent", str(approved.spiffe_id))]):
                    raise suspended(name)
                return approved
        if any(not entry.active for entry in named):
            raise suspended(name)
        # What is retired has no entries left, nor has what is suspended elsewhere: only its stop is remembered.
        ids = (f"{self.trust_domain.uri}/{kind}/{name}" for kind in ("agents", "services"))
        if not named and self.blocked([("agent", one) for one in ids]):
            raise ended(name)
        return None

    def apply(self, message: Message, *, first: bool = False) -> None:
        """Take one line of the stream; the first line of each must be the full state.

        Raises: NodeError ``server_answer``: a gap, a number that goes back, or a state older than one that was seen (a
            server behind the others, or a restored backup, would bring back what was stopped). Nothing is known then.
        """
        changed = True
        if isinstance(message, FullState):
            self._begin(message)
        elif first or not self._known:
            raise NodeError("server_answer", "a line before the state")
        elif isinstance(message, EntriesChanged):
            self._advance(message.seq)
            self._change(message)
        elif isinstance(message, Stopped):
            self._advance(message.stop.seq)
            self._stops[message.stop.key] = message.stop
            if len(self._stops) > MAX_STOPS:
                self._gap("too many stops")
        elif isinstance(message, BundleChanged):
            self._accept(message.bundle)
        elif isinstance(message, Heartbeat):
            self._advance(message.seq)
            changed = False
        self._heard = self._clock.monotonic()
        if changed:
            self._tell()

    def refused(self) -> None:
        """Take it that the server knows this node no more: it may issue nothing."""
        self._known = True
        self._entries = {}
        self._sort()
        self._tell()

    def lost(self) -> None:
        """Know nothing until the next full state."""
        self._known = False

    def _begin(self, state: FullState) -> None:
        if state.seq < self._seq:
            self._gap(f"state {state.seq} after {self._seq}")
        self._accept(state.bundle)
        self._entries = {entry.id: entry for entry in state.entries}
        self._sort()
        self._stops = {stop.key: stop for stop in state.stops}
        self._settings = state.settings
        self._seq = state.seq
        self._known = True

    def _change(self, message: EntriesChanged) -> None:
        for entry_id in message.removed:
            self._entries.pop(entry_id, None)
        self._entries.update((entry.id, entry) for entry in message.entries)
        if len(self._entries) > MAX_ENTRIES:
            self._gap("too many entries")
        self._sort()

    def _sort(self) -> None:
        by_spiffe_id: dict[SpiffeId, list[Entry]] = {}
        for entry in self.entries:
            by_spiffe_id.setdefault(entry.spiffe_id, []).append(entry)
        self._by_spiffe_id = {spiffe_id: tuple(entries) for spiffe_id, entries in by_spiffe_id.items()}
        self._unlaunched = tuple(entry for entry in self.entries if not entry.launched)

    def _advance(self, seq: int) -> None:
        if seq < self._seq:
            self._gap(f"{seq} after {self._seq}")
        self._seq = seq

    def _accept(self, bundle: Bundle) -> None:
        try:
            self._bundles = self._bundles.accept(bundle)
        except CredentialError as error:
            self._known = False
            raise NodeError("server_answer", error.code) from error

    def _gap(self, detail: str) -> None:
        self._known = False
        raise NodeError("server_answer", detail)

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()
