"""The header field that carries a Txn-Token: one, or none."""

from __future__ import annotations

import re
from typing import Final

from aims.authentication.request import HttpRequest
from aims.authorization.transactions.errors import TransactionError

NAME: Final = "txn-token"

# One compact JWS: neither comma nor space can stand in it, so a value that was joined of two is told from one.
_ONE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


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
