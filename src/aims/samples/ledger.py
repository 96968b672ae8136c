"""An inner service: it pays only what the transaction says, for whom it says, once.

Start it as a registered service: ``aims run --as ledger -- python -m aims.samples.ledger --caller ID``. It takes
``POST /payments`` with ``{"amount": 5, "account": "..."}`` from a caller that proves itself and brings a Txn-Token, and
prints one line for each payment.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import msgspec

import aims
from aims.errors import AimsError
from aims.samples.lines import say
from aims.sdk.asgi import Middleware
from aims.sdk.caller import current
from aims.sdk.serving import serve
from aims.sdk.transactions import Operation, TransactionError, Transactions, status_of

MAX_BODY = 4096


class Payment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be paid, and to whom."""

    amount: int
    account: str


class Ledger:
    """The ASGI application behind the middleware. ``callers`` are the workloads that may call it."""

    def __init__(self, transactions: Transactions, callers: frozenset[str]) -> None:
        self._transactions = transactions
        self._pay = Operation(name="ledger.pay", purposes=frozenset({"pay"}), callers=callers)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status, answer = 200, b"{}"
        try:
            payment = msgspec.json.decode(await _body(scope["method"], receive), type=Payment)
            facts = msgspec.to_builtins(payment)
            transaction = await self._transactions.authorize(current(), self._pay, facts)
            token = transaction.token
            paid = {"paid": payment.amount, "for": str(token.subject), "by": transaction.caller, "txn": token.txn}
            say(paid)
            answer = msgspec.json.encode(paid)
        except TransactionError as error:
            status, answer = status_of(error), _refusal(error)
        except AimsError as error:
            status, answer = 401, _refusal(error)
        except msgspec.DecodeError:
            status, answer = 400, b'{"error":"ledger.body"}'
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode("ascii"))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


async def _body(method: str, receive: Any) -> bytes:
    if method != "POST":
        raise msgspec.DecodeError("payments are posted")
    octets = bytearray()
    while True:
        message = await receive()
        octets += message.get("body", b"")
        if len(octets) > MAX_BODY:
            raise msgspec.DecodeError("too long")
        if not message.get("more_body"):
            return bytes(octets)


def _refusal(error: AimsError) -> bytes:
    octets: bytes = msgspec.json.encode({"error": error.code, "message": error.sentence, "hint": error.hint})
    return octets


async def main(port: int, callers: list[str]) -> None:
    """Serve until the process is told to end."""
    async with aims.Identity() as me:
        app = Middleware(Ledger(Transactions(me), frozenset(callers)), me)
        await serve(app, me, port=port, ready=lambda bound: say({"ready": str(me.spiffe_id), "port": bound}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8451)
    parser.add_argument("--caller", action="append", required=True, help="SPIFFE ID that may call, may be repeated")
    given = parser.parse_args()
    asyncio.run(main(given.port, given.caller))
