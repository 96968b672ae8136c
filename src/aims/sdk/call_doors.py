"""The resources of one service, each with the one call profile that it accepts: from a request to its caller."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, cast

from aims.authentication.caller import CallProfile, CallRules, CallVerifier
from aims.authentication.replay import ReplayWindow
from aims.authentication.request import HttpRequest
from aims.authentication.target import normal
from aims.clock import Clock
from aims.sdk.caller import Caller
from aims.sdk.errors import SdkError
from aims.sdk.issuer_keys import IssuerKeys
from aims.sdk.live import Enforcement
from aims.sdk.node_state import Resource

WIMSE: Final = frozenset({"wimse", "wimse-method-bound"})
OAUTH: Final = "oauth-bound"
MAX_REMEMBERED: Final = 256  # paths
METADATA_PATH: Final = "/.well-known/oauth-protected-resource"


class Door(Protocol):
    """Judges the requests to one resource."""

    async def caller(self, request: HttpRequest) -> Caller:
        """Return who made the request. Raises: AimsError."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """A resource behind its door. ``origin`` and ``path`` are the parts of its URL."""

    resource: Resource
    origin: str
    path: str
    door: Door

    @property
    def metadata_path(self) -> str:
        """Where the resource's metadata is served: the well-known part goes before its path (RFC 9728 3.1)."""
        return METADATA_PATH + ("" if self.path == "/" else self.path)

    def holds(self, path: str) -> bool:
        """Tell whether a request path is this resource's, by whole segments."""
        return path == self.path or path.startswith(self.path if self.path.endswith("/") else f"{self.path}/")


class WimseDoor:
    """WIT and WPT."""

    __slots__ = ("_id", "_verifier")

    def __init__(self, resource: Resource, enforcement: Enforcement, window: ReplayWindow, clock: Clock) -> None:
        rules = CallRules(profile=cast("CallProfile", resource.profile), url=resource.url, audiences=resource.audiences)
        self._id = resource.id
        self._verifier = CallVerifier(rules, enforcement.wits, enforcement.stops, window, clock)

    async def caller(self, request: HttpRequest) -> Caller:
        found = await self._verifier.authenticate(request)
        agent = str(found.agent)
        return Caller(
            agent=agent,
            subject=agent,
            profile=found.profile,
            resource=self._id,
            audience=found.audience,
            instance=found.instance,
            thumbprint=found.thumbprint,
            expires=found.expires,
            epoch=found.epoch,
            names=found.names,
            txn_token=found.txn_token,
        )


class Doors:
    """The doors of all resources that one service has.

    Raises: SdkError ``resource_unknown`` for none, ``profile_unknown`` for a profile that is not spoken here.
    """

    __slots__ = ("_found", "_places")

    def __init__(
        self,
        resources: Iterable[Resource],
        enforcement: Enforcement,
        window: ReplayWindow,
        clock: Clock,
        issuer_keys: Callable[[], IssuerKeys],
    ) -> None:
        places = []
        for resource in resources:
            base = normal(resource.url)
            if base is None:
                raise SdkError("response_invalid", "the URL of a resource")
            at = base.index("/", base.index("://") + 3)
            door = _door(resource, enforcement, window, clock, issuer_keys)
            places.append(Place(resource, base[:at], base[at:], door))
        if not places:
            raise SdkError("resource_unknown")
        self._found: dict[tuple[bytes, str], Place] = {}
        self._places = tuple(sorted(places, key=lambda place: len(place.path), reverse=True))

    def described_at(self, path: str) -> Place | None:
        """Return the resource for tokens whose metadata is served at exactly this path."""
        found = [place for place in self._places if place.metadata_path == path]
        return found[0] if found and found[0].resource.profile == OAUTH else None

    def of(self, raw_path: bytes, path: str) -> Place | None:
        """Return the resource that a request belongs to: the one with the longest path.

        ``raw_path`` is what was sent and proved, ``path`` the decoded one, by which the application finds its way: None
        where the two do not lead to the same resource.
        """
        found = self._found.get((raw_path, path))
        if found is None:
            found = self._holding(raw_path.decode("latin-1"))
            if found is None or self._holding(path) is not found or not {".", ".."}.isdisjoint(path.split("/")):
                return None
            if len(self._found) >= MAX_REMEMBERED:
                self._found.clear()
            self._found[raw_path, path] = found
        return found

    def _holding(self, path: str) -> Place | None:
        for place in self._places:
            if place.holds(path):
                return place
        return None


def _door(
    resource: Resource,
    enforcement: Enforcement,
    window: ReplayWindow,
    clock: Clock,
    issuer_keys: Callable[[], IssuerKeys],
) -> Door:
    if resource.profile in WIMSE:
        return WimseDoor(resource, enforcement, window, clock)
    if resource.profile == OAUTH:
        from aims.sdk.oauth_door import OauthDoor

        return OauthDoor(resource, enforcement, window, clock, issuer_keys())
    raise SdkError("profile_unknown", resource.profile)
