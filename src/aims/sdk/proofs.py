"""Proving a request, without any HTTP library: facts of the request in, header fields out, facts of the answer back.

A proof is a generator. It yields the header fields to set on the request, is sent what came back, and yields again if
the request is worth sending once more; when it ends, the last answer stands::

    fields = next(proof)
    while True:
        answer = send(request, fields)
        try:
            fields = proof.send(AnswerFacts(answer.status, answer.headers))
        except StopIteration:
            return answer
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from aims.authentication import dpop, wpt
from aims.authentication.errors import AuthenticationError
from aims.clock import Clock, IdSource
from aims.sdk.errors import SdkError
from aims.sdk.material import ProofKey

MAX_NONCE_OCTETS: Final = 1024
MAX_NONCES: Final = 256


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What a proof covers of a request; ``url`` is absolute."""

    method: str
    url: str


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """What a proof looks at in an answer; names of header fields in lower case."""

    status: int
    headers: Mapping[str, str]


Fields: TypeAlias = Mapping[str, str]
Proof: TypeAlias = Generator[Fields, AnswerFacts, None]


def wimse(
    request: RequestFacts,
    key: ProofKey,
    clock: Clock,
    ids: IdSource,
    *,
    audience: str | None = None,
    method_bound: bool = False,
    txn_token: str | None = None,
) -> Proof:
    """Prove by WIT and WPT (draft-ietf-wimse-wpt-02); ``audience`` is the request's URL unless it is given.

    With ``txn_token`` the request carries it, and the proof covers it (``tth``).

    One proof is one request: there is no second one here, because an answer never asks for another WPT.

    Raises: SdkError ``request_invalid``.
    """
    try:
        claims = wpt.build_claims(
            key.wit,
            audience or request.url,
            token_id=ids.token(),
            now=clock.now(),
            method=request.method if method_bound else None,
            target_uri=request.url if method_bound else None,
            txn_token=txn_token,
        )
    except AuthenticationError as error:
        raise SdkError("request_invalid", str(error)) from error
    carried = {"txn-token": txn_token} if txn_token is not None else {}
    yield {"workload-identity-token": key.wit, "authorization": f"WPT {wpt.issue_now(claims, key)}", **carried}


def bound_token(
    request: RequestFacts,
    token: str,
    key: ProofKey,
    clock: Clock,
    ids: IdSource,
    *,
    nonces: MutableMapping[str, str],
) -> Proof:
    """Present a DPoP-bound access token (RFC 9449 7), once more if the resource asks for a nonce.

    ``nonces`` remembers the last nonce of each origin.

    Raises: SdkError ``request_invalid``.
    """
    origin = "/".join(request.url.split("/", 3)[:3])
    for last in (False, True):
        try:
            claims = dpop.build_claims(
                request.method,
                request.url,
                token_id=ids.token(),
                now=clock.now(),
                access_token=token,
                nonce=nonces.get(origin),
            )
        except AuthenticationError as error:
            raise SdkError("request_invalid", str(error)) from error
        answer = yield {"authorization": f"DPoP {token}", "dpop": dpop.issue_now(claims, key, key.public)}
        fresh = answer.headers.get("dpop-nonce")
        if fresh is not None and 0 < len(fresh) <= MAX_NONCE_OCTETS and fresh != nonces.get(origin):
            if len(nonces) >= MAX_NONCES and origin not in nonces:
                nonces.pop(next(iter(nonces)))
            nonces[origin] = fresh
        challenged = answer.status == 401 and "use_dpop_nonce" in answer.headers.get("www-authenticate", "")
        if last or fresh is None or not challenged:
            return
