"""A request under the call profile of one resource: from header fields to a caller that is believed.

Steps of ``CallVerifier.authenticate``; the first that fails is named:

    1. the target lies within the resource           target_outside
    2. WIT                                           wit_…
    3. proof, in the order of `aims.authentication.wpt`   authorization_…, wpt_…, wth_…, tth_…, oth_…
    4. liveness of the names of the credential       stopped, state_unknown
    5. the proof is younger than the replay window   window_starting
    6. the proof is spent                            wpt_replay, window_unavailable
    7. liveness again, for 6 was awaited             stopped, state_unknown

A proof is spent only when everything else about it held, so nobody can burn the proofs of others. Whether the caller
may do what it asks is the next layer's question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import msgspec

from aims.authentication.errors import AuthenticationError
from aims.authentication.liveness import StopName, StopView, names_of
from aims.authentication.replay import ProofClaim, ReplayWindow, check_started
from aims.authentication.request import HttpRequest
from aims.authentication.target import covers, normal
from aims.authentication.verified_wit import WitVerifier
from aims.authentication.wpt import MAX_REMAINING, WPT, ProofRules, verify_proof
from aims.clock import Clock
from aims.identifiers import WorkloadIdentifier
from aims.jose import Profile

CallProfile = Literal["wimse", "wimse-method-bound"]
_PROFILES: Final = frozenset({"wimse", "wimse-method-bound"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRules:
    """What one resource accepts: exactly one call profile, on targets at or below ``url``.

    ``audiences`` are further names of the resource; the target URI itself is always one, because it lies below ``url``.
    ``contexts`` and ``longest`` are those of ``ProofRules``; ``leeway`` is in seconds, at most 30.

    Raises:
        ValueError: another profile, a URL without a normal form, or a limit out of bounds.
    """

    profile: CallProfile
    url: str
    audiences: frozenset[str]
    contexts: frozenset[str] = frozenset()
    longest: int = MAX_REMAINING
    leeway: int = 5
    proof: ProofRules = field(init=False, repr=False)
    token: Profile = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.profile not in _PROFILES or normal(self.url) is None:
            raise ValueError("profile or url")
        if not 0 <= self.leeway <= 30:
            raise ValueError("leeway")
        proof = ProofRules(
            audiences=self.audiences,
            target_is_audience=True,
            method_bound=self.profile == "wimse-method-bound",
            contexts=self.contexts,
            longest=self.longest,
        )
        object.__setattr__(self, "proof", proof)
        object.__setattr__(self, "token", replace(WPT, leeway=self.leeway))


class Caller(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who made a request, proved by it.

    ``instance`` and ``epoch`` are None for a workload of another trust domain. ``thumbprint`` is that of the key which
    proved; ``claim`` is the proof that was spent (or, from ``prove``, that is to be). ``txn_token`` is the text that
    the proof covers, still to be verified. ``expires`` (Unix seconds) is the end of the credential, after which no
    stream of this caller may go on. ``names`` is everything whose stop ends this caller.
    """

    agent: WorkloadIdentifier
    instance: str | None
    epoch: int | None
    thumbprint: str
    profile: CallProfile
    audience: str
    claim: ProofClaim
    issued_at: float | None
    expires: float
    txn_token: str | None
    contexts: Mapping[str, str]
    names: tuple[StopName, ...]

    def __repr__(self) -> str:
        return f"Caller({self.agent}, profile={self.profile})"


class CallVerifier:
    """The enforcement point of one resource. Not safe for threads; tasks of one event loop may share it."""

    __slots__ = ("_clock", "_rules", "_stops", "_window", "_wits")

    def __init__(
        self, rules: CallRules, wits: WitVerifier, stops: StopView, window: ReplayWindow, clock: Clock
    ) -> None:
        self._rules = rules
        self._wits = wits
        self._stops = stops
        self._window = window
        self._clock = clock

    async def authenticate(self, request: HttpRequest) -> Caller:
        """Return the caller of ``request``, whose proof is spent by that.

        Raises:
            AuthenticationError: the first step that failed.
        """
        caller = self.prove(request)
        if await self._window.claim([caller.claim.key]) != [True]:
            raise AuthenticationError("wpt_replay")
        self._stops.require(caller.names, caller.epoch)
        return caller

    def prove(self, request: HttpRequest) -> Caller:
        """Do steps 1 to 5 without waiting. The caller counts only when its ``claim`` was spent and step 7 held.

        Raises:
            AuthenticationError: the first step that failed.
        """
        rules, now = self._rules, self._clock.now()
        # 1. the target lies within the resource
        if not covers(rules.url, request.target_uri):
            raise AuthenticationError("target_outside")
        # 2. WIT
        wit = self._wits.of_request(request, now=now)
        # 3. proof
        proof = verify_proof(request, wit, rules.proof, now=now, profile=rules.token)
        instance, epoch = (None, None) if wit.fence is None else (wit.fence.instance, wit.fence.epoch)
        names = names_of(proof.claim.holder, instance=instance)
        # 4. liveness
        self._stops.require(names, epoch)
        # 5. the proof is younger than the window
        check_started(self._window, proof.issued_at, now, leeway=rules.leeway)
        return Caller(
            agent=wit.subject,
            instance=instance,
            epoch=epoch,
            names=names,
            thumbprint=wit.thumbprint,
            profile=rules.profile,
            audience=proof.audience,
            claim=proof.claim,
            issued_at=proof.issued_at,
            expires=wit.expires,
            txn_token=proof.txn_token,
            contexts=proof.contexts,
        )
