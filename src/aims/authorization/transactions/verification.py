"""What an inner service asks before it acts: is this caller, with this Txn-Token, to do exactly this?

Steps of ``TransactionVerifier.authorize``, after the caller itself was proved (`aims.authentication.caller`, where the
proof's ``tth`` bound it to the text of the token); the first that fails is named:

    1. the caller's proof covers a Txn-Token         txn_missing
    2. the token, see ``transaction_token``          txn_…                      (401)
    3. liveness of every name in it                  stopped, state_unknown     (401, 503)
    4. its purpose covers the operation              txn_purpose                (403)
    5. its facts are the request's own               txn_facts                  (403)
    6. the immediate caller may call this            txn_caller                 (403)
    7. whoever asked for the token may               txn_requester              (403)
    8. once: (aud, txn, operation) is spent          txn_used                   (403)

5 compares in both directions: a fact that the token holds and the operation does not look at would be a promise that
nobody keeps, and one that the operation looks at and the token does not hold was approved by nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from aims.authentication.liveness import StopView
from aims.authentication.replay import ProofClaim, ReplayWindow, check_started
from aims.authorization.transactions.errors import TransactionError
from aims.authorization.transactions.transaction_token import (
    MAX_LIFETIME,
    TransactionToken,
    TransactionTokenVerifier,
)
from aims.clock import Clock
from aims.jose import base64url

SPACE: Final = "txn"
"""The space of claims of single use in a replay window."""

_encode = msgspec.json.Encoder(order="deterministic").encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing that a service does.

    ``name`` is its own within the trust domain. ``purposes`` are those of which a token must have one; ``callers`` the
    workloads that may call it, and ``requesters`` those that may have asked for the token (None: whoever the service
    gave one). ``single_use``: it happens once in a transaction, whatever replacements its token had.

    Raises:
        ValueError: a name, purposes or callers that are empty, for empty admits nobody by mistake only once.
    """

    name: str
    purposes: frozenset[str]
    callers: frozenset[str]
    requesters: frozenset[str] | None = None
    single_use: bool = True

    def __post_init__(self) -> None:
        if (
            not self.name
            or "\0" in self.name
            or not self.purposes
            or not self.callers
            or self.requesters == frozenset()
        ):
            raise ValueError("an operation has a name, purposes and callers")


@dataclass(frozen=True, slots=True)
class Transaction:
    """An operation that may go on: the token behind it, and the digest under which the audit knows its text."""

    token: TransactionToken
    digest: str
    caller: str


class Presenter(Protocol):
    """Who presents a Txn-Token: a caller that was proved, and the text that its proof covers."""

    @property
    def agent(self) -> object: ...
    @property
    def txn_token(self) -> str | None: ...


class TransactionVerifier:
    """The enforcement point of an inner service. Not safe for threads; tasks of one event loop may share it."""

    __slots__ = ("_clock", "_leeway", "_stops", "_tokens", "_window")

    def __init__(
        self,
        tokens: TransactionTokenVerifier,
        stops: StopView,
        window: ReplayWindow,
        clock: Clock,
        *,
        leeway: int = 5,
    ) -> None:
        self._tokens = tokens
        self._stops = stops
        self._window = window
        self._clock = clock
        self._leeway = leeway

    async def authorize(self, caller: Presenter, operation: Operation, facts: Mapping[str, Any]) -> Transaction:
        """Decide about ``operation`` on ``facts``, which the service read out of the request itself.

        Raises:
            TransactionError: the first step that failed.
            AuthenticationError: step 3, and ``window_starting``, ``window_unavailable`` in step 8.
        """
        transaction = self.examine(caller, operation, facts)
        # 8. once: (aud, txn, operation) is spent
        if operation.single_use:
            token = transaction.token
            check_started(self._window, token.began, self._clock.now(), leeway=self._leeway)
            if await self._window.claim([claim_of(token, operation).key]) != [True]:
                raise TransactionError("txn_used")
            # it was awaited: a stop may have come meanwhile
            self._stops.require(token.names, token.epoch)
        return transaction

    def examine(self, caller: Presenter, operation: Operation, facts: Mapping[str, Any]) -> Transaction:
        """Do steps 1 to 7, which do not wait; a single use is not spent. Raises as ``authorize``."""
        # 1. the caller's proof covers a Txn-Token
        text = caller.txn_token
        if text is None:
            raise TransactionError("txn_missing")
        # 2. the token
        token = self._tokens.read(text, now=self._clock.now())
        # 3. liveness of every name in it
        self._stops.require(token.names, token.epoch)
        # 4. its purpose covers the operation
        if operation.purposes.isdisjoint(token.purposes):
            raise TransactionError("txn_purpose", f"{sorted(token.purposes)}")
        # 5. its facts are the request's own
        check_facts(token.details, facts)
        # 6. the immediate caller may call this
        immediate = str(caller.agent)
        if immediate not in operation.callers:
            raise TransactionError("txn_caller", immediate)
        # 7. whoever asked for the token may
        if operation.requesters is not None and not operation.requesters.issuperset(
            (token.requester, *token.requesters)
        ):
            raise TransactionError("txn_requester", token.requester)
        digest = base64url.encode(hashlib.sha256(text.encode("ascii")).digest()).decode("ascii")
        return Transaction(token, digest, immediate)


def check_facts(details: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Refuse facts that are not the token's, member for member, value for value and type for type.

    Raises:
        TransactionError: ``txn_facts``, naming the members and no value.
    """
    missing = sorted(details.keys() ^ facts.keys())
    if missing:
        raise TransactionError("txn_facts", f"only on one side: {missing}")
    for member, value in details.items():
        if not _same(value, facts[member]):
            raise TransactionError("txn_facts", member)


def claim_of(token: TransactionToken, operation: Operation) -> ProofClaim:
    """Return what a single use spends. It is the same for a token and all its replacements, so it follows from the
    beginning of the transaction and not from ``exp``."""
    return ProofClaim.until(SPACE, token.domain.name, f"{token.txn}\0{operation.name}", token.began + MAX_LIFETIME)


def _same(one: Any, other: Any) -> bool:
    # JSON's own types: 1, 1.0, true and "1" are four different facts
    try:
        return _encode(one) == _encode(other)
    except (TypeError, ValueError, RecursionError):
        return False
