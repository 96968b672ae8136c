"""A Txn-Token service's key, good tokens, and an inner service that has run for a while."""

from __future__ import annotations

from typing import Any

from tests.properties.hostile import LocalKey
from tests.properties.proof_material import AGENT, FENCE, NOW, PROOF, TD, WIT, FixedClock, http, rules
from tests.properties.proof_material import World as CallWorld

from aims.authentication import wpt
from aims.authentication.caller import Caller
from aims.authentication.errors import AuthenticationError
from aims.authorization.errors import AuthorizationError
from aims.authorization.transactions.transaction_token import HEADER, TransactionToken, TransactionTokenVerifier
from aims.authorization.transactions.verification import Operation, TransactionVerifier
from aims.identifiers import SpiffeId
from aims.jose import KeySet, sign_now

KEY = LocalKey.new("ES256", "txn-1")
ISSUER = "https://localhost:8440/txn"
PERSON = "person:" + "a" * 26
EDGE = str(SpiffeId.service(TD, "edge"))
URL = "https://tool.example/mcp"
PAY = Operation(name="payments.create", purposes=frozenset({"pay"}), callers=frozenset({str(AGENT)}))
FACTS = {"amount": 100, "account": "DE00"}


def token(**changes: Any) -> TransactionToken:
    """A good token with changes."""
    fields: dict[str, Any] = {
        "issuer": ISSUER,
        "domain": TD,
        "txn": "t" * 22,
        "subject": PERSON,
        "purposes": frozenset({"pay"}),
        "requester": EDGE,
        "issued_at": NOW,
        "expires": NOW + 60,
        "grant_id": "g" * 26,
        "fence": FENCE,
        "began": NOW,
        "actors": (str(AGENT),),
        "details": FACTS,
        "context": {"req_ip": "192.0.2.1"},
    }
    return TransactionToken(**(fields | changes))


def text_of(value: TransactionToken | None = None, key: LocalKey = KEY, **claims: Any) -> str:
    """A signed token, with claims changed; an ellipsis removes."""
    changed = (token() if value is None else value).claims() | claims
    return sign_now(HEADER, {name: part for name, part in changed.items() if part is not ...}, key)


def verifier(*keys: LocalKey) -> TransactionTokenVerifier:
    return TransactionTokenVerifier(ISSUER, TD, KeySet(key.verification for key in (keys or (KEY,))))


class Inner:
    """An inner service: a door for callers, and the verifier of their transactions."""

    def __init__(self) -> None:
        self.calls = CallWorld(rules("wimse"))
        self.clock: FixedClock = self.calls.clock
        self.transactions = TransactionVerifier(verifier(), self.calls.stops, self.calls.window, self.clock)
        self._count = 0

    def caller(self, text: str | None) -> Caller:
        """A caller that has just proved itself together with this token."""
        self._count += 1
        claims = wpt.build_claims(WIT, URL, token_id=f"id-{self._count}", now=self.clock.now(), txn_token=text)
        more = [] if text is None else [("Txn-Token", text)]
        return self.calls.door.prove(http(f"WPT {wpt.issue_now(claims, PROOF)}", more=more))

    async def answer(self, text: str | None, facts: dict[str, Any] | None = None, operation: Operation = PAY) -> str:
        """``accept`` or the reason."""
        try:
            await self.transactions.authorize(self.caller(text), operation, FACTS if facts is None else facts)
        except (AuthorizationError, AuthenticationError) as error:
            return error.reason
        return "accept"
