"""Txn-Tokens at an inner service: is this caller, with this transaction, to do exactly this?

    pay = Operation(name="pay", purposes=frozenset({"refund"}), callers=frozenset({"spiffe://.../services/refunds"}))
    ...
    transaction = await Transactions(me).authorize(current(), pay, {"amount": amount})

The middleware has proved the caller, and that its proof covers the token; here the token itself is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aims.authentication.errors import AuthenticationError
from aims.authorization.errors import STATUS
from aims.authorization.transactions.errors import TransactionError
from aims.authorization.transactions.transaction_token import TransactionTokenVerifier
from aims.authorization.transactions.verification import Operation, Transaction, TransactionVerifier
from aims.sdk.caller import Caller
from aims.sdk.errors import SdkError
from aims.sdk.identity import Identity

__all__ = ["Operation", "Transaction", "TransactionError", "Transactions", "status_of"]

ISSUER: Final = "/txn"


def status_of(error: TransactionError) -> int:
    """The HTTP status for a refusal: 401 for the token, 403 for what it does not allow."""
    return STATUS.get(error.standard, 403)


class Transactions:
    """The enforcement point of one service; its keys are fetched, and again when the Txn-Token service has others."""

    def __init__(self, me: Identity) -> None:
        self._me = me

    async def authorize(self, caller: Caller, operation: Operation, facts: Mapping[str, Any]) -> Transaction:
        """Decide about ``operation`` on ``facts``, which the service read out of the request itself.

        Raises: TransactionError with the first thing that is wrong; AuthenticationError ``stopped``,
            ``state_unknown``, ``window_unavailable``; SdkError where the keys cannot be had.
        """
        keys = self._me.transaction_keys()
        await keys.current()
        try:
            return await self._verifier().authorize(caller, operation, facts)
        except TransactionError as error:
            if error.reason != "txn_signature" or not await keys.newer():
                raise
            return await self._verifier().authorize(caller, operation, facts)

    def _verifier(self) -> TransactionVerifier:
        settings = self._me.settings
        enforcement = self._me.live.enforcement
        if enforcement is None:
            raise AuthenticationError("state_unknown", "nothing was heard of stops yet")
        issuer = settings.issuer
        if not issuer:
            raise SdkError("issuer_invalid", "the node names no issuer")
        tokens = TransactionTokenVerifier(issuer + ISSUER, settings.trust_domain, self._me.transaction_keys().keys)
        return TransactionVerifier(tokens, enforcement.stops, self._me.live.window, self._me.clock)
