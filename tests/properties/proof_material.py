"""A trust domain, a workload with its WIT, and requests that differ from a good one in whatever a test names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.properties.hostile import LocalKey

from aims.authentication import wpt
from aims.authentication.caller import CallProfile, CallRules, CallVerifier
from aims.authentication.errors import AuthenticationError
from aims.authentication.liveness import StopView
from aims.authentication.replay import MemoryWindow, ReplayWindow
from aims.authentication.request import HttpRequest
from aims.authentication.verified_wit import WitVerifier
from aims.credentials import wit
from aims.credentials.model import Fence
from aims.credentials.wit import WorkloadIdentityToken
from aims.identifiers import SpiffeId, TrustDomain
from aims.jose import KeySet, sign_now

NOW = 1_764_000_000
TD = TrustDomain("acme.example")
AGENT = SpiffeId.agent(TD, "researcher")
FENCE = Fence("node-1:" + "a" * 26, 1234)
ISSUER = LocalKey.new("ES256", "wit-1")
PROOF = LocalKey.new("ES256", "proof-1")
ANCHORS = {TD.uri: KeySet([ISSUER.verification])}
URL = "https://tool.example/mcp"
TXN = "aaa.bbb.ccc"


class FixedClock:
    """A clock that a test sets."""

    def __init__(self, now: float = NOW) -> None:
        self.at = now

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


def changed(claims: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``claims`` with ``changes``; an ellipsis removes."""
    return {name: value for name, value in {**claims, **changes}.items() if value is not ...}


def wit_text(key: LocalKey = ISSUER, *, proof: LocalKey = PROOF, **changes: Any) -> str:
    claims = wit.build_claims(
        AGENT, proof.private.public_key(), proof.algorithm, issued_at=NOW, expires=NOW + 3600, fence=FENCE
    )
    return sign_now(wit.HEADER, changed(claims, changes), key)


WIT = wit_text()


def wit_value(text: str = WIT) -> WorkloadIdentityToken:
    return wit.validate(text, ANCHORS, now=NOW, own=TD)


def proof_claims(**options: Any) -> dict[str, Any]:
    """The claims of a good method-bound WPT."""
    given: dict[str, Any] = {"token_id": "id-1", "now": NOW, "method": "POST", "target_uri": URL, **options}
    return wpt.build_claims(given.pop("wit", WIT), given.pop("audience", URL), **given)


def proof_text(key: LocalKey = PROOF, *, header: Mapping[str, Any] = wpt.HEADER, **changes: Any) -> str:
    return sign_now(header, changed(proof_claims(), changes), key, with_kid=False)


def http(
    authorization: str | None = None,
    *,
    wit: str | None = WIT,
    more: Sequence[tuple[str, str]] = (),
    method: str = "POST",
    uri: str = URL,
) -> HttpRequest:
    """A request with WIT and WPT as given; None leaves the field out."""
    headers = [("Host", "elsewhere.example"), ("Content-Type", "application/json"), *more]
    if wit is not None:
        headers.append(("Workload-Identity-Token", wit))
    if authorization is not None:
        headers.append(("Authorization", authorization))
    return HttpRequest.of(method, uri, headers)


def rules(profile: CallProfile = "wimse-method-bound", **options: Any) -> CallRules:
    return CallRules(**{"profile": profile, "url": URL, "audiences": frozenset({"urn:tool"}), **options})


class World:
    """An enforcement point that has run for a while, told of every stop so far."""

    def __init__(
        self, call: CallRules | None = None, *, window: ReplayWindow | None = None, capacity: int = 64
    ) -> None:
        self.clock = FixedClock(NOW - 10_000)
        self.window = MemoryWindow(self.clock) if window is None else window
        self.clock.at = NOW
        self.stops = StopView(self.clock, TD)
        self.stops.full(1234, ())
        self.stops.heartbeat(1234)
        self.wits = WitVerifier(ANCHORS, own=TD, capacity=capacity)
        self.door = CallVerifier(rules() if call is None else call, self.wits, self.stops, self.window, self.clock)

    def answer(self, request: HttpRequest) -> str:
        """``accept`` or the reason; nothing is spent."""
        try:
            self.door.prove(request)
        except AuthenticationError as error:
            return error.reason
        return "accept"

    async def spend(self, request: HttpRequest) -> str:
        """``accept`` or the reason; the proof is spent."""
        try:
            await self.door.authenticate(request)
        except AuthenticationError as error:
            return error.reason
        return "accept"
