"""What an enforcement point knows about stops, and whether it knows enough to let anybody in.

Three lines arrive from the node or server: the full state, one line per change, and heartbeats, which say "I have read
the feed to its head, number n, at most a second ago". State is known only after a full state, without a gap in the
numbers since, and for ``max_stale`` seconds after the last heartbeat by this process's own monotonic clock. Wall-clock
times are never compared: a credential is dead if one of its names has a stop with a higher number than its epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from aims.authentication.errors import AuthenticationError
from aims.clock import Clock
from aims.identifiers import TrustDomain
from aims.policy.rows import MAX_STALE_LIMIT

DEFAULT_MAX_STALE: Final = float(MAX_STALE_LIMIT)  # seconds; also the limit
MAX_STOPS: Final = 1_000_000
MAX_NUMBER: Final = 2**53 - 1
_KINDS = frozenset({"agent", "person", "grant", "node", "instance"})
_MAX_ID_OCTETS = 2048


class Liveness(StrEnum):
    """The answer of ``StopView.check``; the two refusals are reasons of ``AuthenticationError``."""

    OK = "ok"
    STOPPED = "stopped"
    STATE_UNKNOWN = "state_unknown"


class Named(Protocol):
    """What a stop can hit. `aims.storage.write.Name` is one too."""

    @property
    def kind(self) -> str: ...
    @property
    def id(self) -> str: ...


class StopName(NamedTuple):
    """A name that a credential depends on: an agent or service by its SPIFFE ID, a person, grant, node or instance."""

    kind: str
    id: str


@dataclass(frozen=True, slots=True)
class StopLine:
    """One row of the table of stops: ``seq`` is the number of the change that set it.

    ``blocked`` refuses whatever was issued; without it (resumed) everything issued before ``seq`` stays dead.

    Raises:
        ValueError: a kind, id or number that no stop has.
    """

    kind: str
    id: str
    seq: int
    blocked: bool

    def __post_init__(self) -> None:
        if self.kind not in _KINDS or not 0 < len(self.id) <= _MAX_ID_OCTETS:
            raise ValueError("kind or id of a stop")
        if type(self.seq) is not int or not 0 <= self.seq <= MAX_NUMBER or type(self.blocked) is not bool:
            raise ValueError("number or state of a stop")


# A workload has the same names in each of its requests.
@lru_cache(maxsize=1024)
def names_of(
    *subjects: str, instance: str | None = None, client_id: str | None = None, grant_id: str | None = None
) -> tuple[StopName, ...]:
    """Return every name of a credential: ``sub``, each ``act.sub``, client, grant, instance and the instance's node.

    A subject that begins with ``person:`` is a person, any other an agent. Order and repetition do not matter.
    """
    agents = [*subjects, *([] if client_id is None else [client_id])]
    names = [StopName("person" if name.startswith("person:") else "agent", name) for name in agents]
    if grant_id is not None:
        names.append(StopName("grant", grant_id))
    if instance is not None:
        names += [StopName("instance", instance), StopName("node", instance.partition(":")[0])]
    return tuple(names)


class StoppedError(AuthenticationError):
    """A credential that a stop ended; ``stop`` is which, None where it could not be reached by any."""

    def __init__(self, stop: StopLine | None) -> None:
        super().__init__("stopped", "" if stop is None else f"{stop.kind}:{stop.id} at {stop.seq}")
        self.stop = stop


class StopView:
    """The stops of trust domain ``own``, as far as they have been told. Not safe for threads.

    ``max_stale`` is in seconds, at most 10.
    """

    __slots__ = ("_clock", "_heard", "_highest", "_max_stale", "_number", "_own", "_stops")

    def __init__(self, clock: Clock, own: TrustDomain, *, max_stale: float = DEFAULT_MAX_STALE) -> None:
        if not 0 < max_stale <= DEFAULT_MAX_STALE:
            raise ValueError("max_stale")
        self._clock = clock
        self._own = own.uri + "/"
        self._max_stale = max_stale
        self._stops: dict[tuple[str, str], tuple[int, bool]] = {}
        self._number: int | None = None  # the last change that was seen; None asks for a full state
        self._highest = 0
        self._heard: float | None = None

    @property
    def number(self) -> int | None:
        """The last change that this view has seen; None when it needs a full state."""
        return self._number

    def full(self, number: int, lines: Iterable[StopLine]) -> None:
        """Take the full table of stops as it was at change ``number``. Nobody passes before the next heartbeat.

        A state older than one that was seen already is not taken (a server behind the others, or a restored backup,
        would bring stopped agents back): another one is needed.

        Raises:
            ValueError: more than a million stops. Nothing is known then.
        """
        self.lost()
        if number < self._highest:
            return
        stops: dict[tuple[str, str], tuple[int, bool]] = {}
        for line in lines:
            if len(stops) >= MAX_STOPS:
                raise ValueError("too many stops")
            stops[line.kind, line.id] = (line.seq, line.blocked)
        self._stops = stops
        self._number = self._highest = number

    def advance(self, after: int, number: int, line: StopLine | None = None) -> None:
        """Take the change ``number``, which follows ``after`` in what the sender sends; ``line`` only if it is a stop.

        What was seen already is passed over. If something is missing in between, nothing is known until ``full``, but
        the stop itself is kept.
        """
        if line is not None:
            self._apply(line)
        if self._number is None or number <= self._number:
            return
        if after != self._number or len(self._stops) > MAX_STOPS:
            self.lost()
            return
        self._number = self._highest = number

    def heartbeat(self, number: int, age: float = 0.0) -> None:
        """Take the sender's word that ``number`` is the head of the feed. An older number proves nothing.

        ``age`` is for how many seconds somebody between held it back.
        """
        if self._number is None:
            return
        if number > self._number:
            self.lost()
        elif number == self._number:
            heard = self._clock.monotonic() - max(0.0, age)
            self._heard = heard if self._heard is None else max(self._heard, heard)

    def lost(self) -> None:
        """Ask for a full state: until then nobody passes. Stops that are known go on refusing by their own name."""
        self._number = None
        self._heard = None

    def check(self, names: Iterable[Named], epoch: int | None) -> Liveness:
        """Judge a credential by all its names. ``epoch`` is None for one that another trust domain issued.

        Such a credential is not fenced, but a foreign agent that is blocked here by name is refused. One without epoch
        that has a name of ours is refused: no stop could reach it. So is one without any name.
        """
        stops, found = self._stops, False
        for name in names:
            found = True
            stop = stops.get(name if type(name) is StopName else (name.kind, name.id))
            if stop is not None and (stop[1] or (epoch is not None and epoch < stop[0])):
                return Liveness.STOPPED
            if epoch is None and (name.kind != "agent" or name.id.startswith(self._own)):
                return Liveness.STOPPED
        return Liveness.OK if found and self._fresh() else Liveness.STATE_UNKNOWN

    def stop_of(self, names: Iterable[Named], epoch: int | None) -> StopLine | None:
        """Return the stop that ``check`` found, the newest of several; None where no stop is why it refuses."""
        found: StopLine | None = None
        for name in names:
            stop = self._stops.get((name.kind, name.id))
            hit = stop is not None and (stop[1] or (epoch is not None and epoch < stop[0]))
            if stop is not None and hit and (found is None or stop[0] > found.seq):
                found = StopLine(name.kind, name.id, *stop)
        return found

    def require(self, names: Iterable[Named], epoch: int | None) -> None:
        """Raise ``AuthenticationError`` (a `StoppedError`, or ``state_unknown``) unless ``check`` says ``ok``."""
        answer = self.check(names, epoch)
        if answer is Liveness.STOPPED:
            raise StoppedError(self.stop_of(names, epoch))
        if answer is not Liveness.OK:
            raise AuthenticationError(answer.value)

    def _fresh(self) -> bool:
        heard = self._heard
        return heard is not None and 0 <= self._clock.monotonic() - heard <= self._max_stale

    def _apply(self, line: StopLine) -> None:
        held = self._stops.get((line.kind, line.id))
        if held is None or line.seq >= held[0]:
            self._stops[line.kind, line.id] = (line.seq, line.blocked)
