"""The header field at the edges of the trust domain: it comes in from nobody, and leaves with nobody."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, TypeVar

from aims.authentication.request import HttpRequest
from aims.authorization.transactions.errors import TransactionError

NAME: Final = "txn-token"

# One compact JWS: neither comma nor space can stand in it, so a value that was joined of two is told from one.
_ONE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

Value = TypeVar("Value", str, bytes)


def of_request(request: HttpRequest) -> str | None:
    """Return the text of the request's one Txn-Token, None without the field.

    To be asked before the proof is verified, so that two tokens are 400 whatever the proof covers.

    Raises:
        TransactionError: ``txn_header``: two fields, a joined value, or one that is no compact JWS.
    """
    values = request.all(NAME)
    if not values:
        return None
    if len(values) > 1 or _ONE.fullmatch(values[0]) is None:
        raise TransactionError("txn_header", f"{len(values)} fields")
    return values[0]


def stripped(fields: Iterable[tuple[Value, Value]]) -> list[tuple[Value, Value]]:
    """Return header fields without ``Txn-Token``, for requests that enter the trust domain or leave it."""
    return [(name, value) for name, value in fields if _text(name).lower() != NAME]


def _text(name: str | bytes) -> str:
    return name.decode("latin-1") if isinstance(name, bytes) else name
