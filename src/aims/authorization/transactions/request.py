"""What a workload asks the Txn-Token service: a token exchange (RFC 8693) with two JSON objects (section 11.1).

Who asks is not in it: no parameter or member of an object names the requester, the transaction or the subject.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from aims.authorization import scope as scopes
from aims.authorization.errors import AuthorizationError
from aims.authorization.form import Form
from aims.authorization.transactions.errors import TransactionError
from aims.authorization.transactions.transaction_token import TOKEN_TYPE
from aims.jose import JoseError
from aims.jose.strict_json import read_object

GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  a name (RFC 8693 3)
ASSERTED_TYPES: Final = frozenset(
    {"urn:ietf:params:oauth:token-type:self_signed", "urn:ietf:params:oauth:token-type:unsigned_json"}
)
"""Subjects that the workload asserts by itself. Nobody may: there is no list of who could, and empty means nobody."""

MAX_JSON_OCTETS: Final = 8192
MAX_JSON_DEPTH: Final = 8
MAX_AUTHN: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionRequest:
    """A well-formed request. ``details`` is None where the parameter was left out."""

    audience: str
    purpose: str
    subject_token: str
    subject_token_type: str
    details: Mapping[str, Any] | None
    context: Mapping[str, str]

    def __repr__(self) -> str:
        return f"TransactionRequest({self.purpose!r})"


def parse(form: Form) -> TransactionRequest:
    """Read the parameters of a request.

    Raises:
        AuthorizationError: ``grant_type``, ``requested_token_type``, ``parameter_missing``, ``parameter_twice``,
            ``scope_malformed``.
        TransactionError: ``txn_kind``, ``txn_type``, ``txn_scope`` (several purposes), ``txn_json``.
    """
    if form.require("grant_type") != GRANT_TYPE:
        raise AuthorizationError("grant_type")
    if form.require("requested_token_type") != TOKEN_TYPE:
        raise AuthorizationError("requested_token_type")
    audiences = form.all("audience")
    if len(audiences) != 1:
        raise AuthorizationError("parameter_twice" if audiences else "parameter_missing", "audience")
    purpose = form.require("scope")
    # as narrow as possible: one token, one purpose
    if len(scopes.parse(purpose)) != 1:
        raise TransactionError("txn_scope", "several purposes")
    subject_token_type = form.require("subject_token_type")
    if subject_token_type in ASSERTED_TYPES:
        raise TransactionError("txn_kind", subject_token_type)
    if subject_token_type not in {ACCESS_TOKEN_TYPE, TOKEN_TYPE}:
        raise TransactionError("txn_type", subject_token_type[:200])
    details = form.get("request_details")
    context = form.get("request_context")
    return TransactionRequest(
        audience=audiences[0],
        purpose=purpose,
        subject_token=form.require("subject_token"),
        subject_token_type=subject_token_type,
        details=None if details is None else _object(details),
        context={} if context is None else _context(_object(context)),
    )


def _object(text: str) -> dict[str, Any]:
    octets = text.encode("utf-8", "surrogatepass")
    if len(octets) > MAX_JSON_OCTETS:
        raise TransactionError("txn_json", f"{len(octets)} octets")
    try:
        return read_object(octets, max_depth=MAX_JSON_DEPTH)
    except JoseError as error:
        raise TransactionError("txn_json", str(error)) from error


def _context(stated: Mapping[str, Any]) -> dict[str, str]:
    """Take over what the requester can know about its own caller, and nothing else.

    ``req_ip`` is an address, ``authn`` a word about how the caller authenticated. Other members are passed over: what a
    workload says about itself, its posture or its model would only be believed because it stands in our token.
    """
    taken: dict[str, str] = {}
    address, authn = stated.get("req_ip"), stated.get("authn")
    if address is not None:
        try:
            taken["req_ip"] = str(ipaddress.ip_address(address if type(address) is str else ""))
        except ValueError:
            raise TransactionError("txn_json", "req_ip is no address") from None
    if authn is not None:
        if type(authn) is not str or not 0 < len(authn) <= MAX_AUTHN or not authn.isascii() or not authn.isprintable():
            raise TransactionError("txn_json", "authn")
        taken["authn"] = authn
    return taken
