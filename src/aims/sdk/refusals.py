"""What HTTP says when the middleware refuses: status, challenge, and a body with the stable code and a hint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from aims.authentication.dpop import DPOP
from aims.authentication.errors import CONSEQUENCES, AuthenticationError, Consequence
from aims.authentication.liveness import StoppedError
from aims.errors import AimsError
from aims.sdk.call_doors import OAUTH, Place
from aims.sdk.errors import SdkError
from aims.sdk.open_calls import Send

_ALGORITHMS: Final = " ".join(sorted(DPOP.algorithms))
# RFC 6750 3.1, by the standard code of an AuthorizationError
_STATUS: Final[Mapping[str, int]] = {"invalid_request": 400, "insufficient_scope": 403, "temporarily_unavailable": 503}
INSUFFICIENT: Final = frozenset({"scope_insufficient", "details_insufficient"})
"""Reasons of an SdkError by which an application refuses its caller."""
_OURS: Final = {
    "error": "sdk.unavailable",
    "message": "This service cannot check its callers now.",
    "hint": "The log of the service says why.",
}


def consequence(error: AimsError, place: Place | None) -> Consequence:
    """Return what HTTP says: a fault of this side is 503, and never a word about the caller."""
    bound = place is not None and place.resource.profile == OAUTH
    if isinstance(error, AuthenticationError):
        found = CONSEQUENCES[error.reason]
        if not bound or found.status != 401:
            return found
        code = {"authorization_count": "", "stopped": "invalid_token"}.get(error.reason, error.standard)
        return Consequence(401, _challenge(place, code))
    if error.layer == "authorization":
        status = _STATUS.get(error.standard, 401)
        return Consequence(status, _challenge(place, error.standard) if status in {401, 403} else "")
    if _of_caller(error):
        return Consequence(403, _challenge(place, "insufficient_scope") if bound else "")
    return Consequence(503, retry_after=5)


async def refuse(send: Send, error: AimsError, place: Place | None) -> None:
    """Answer a request that was refused."""
    answer = consequence(error, place)
    told: dict[str, Any] = {"error": error.code, "message": error.sentence, "hint": error.hint}
    if isinstance(error, StoppedError) and error.stop is not None:
        # The caller proved these names: it learns which stop it was, by its number in the change feed.
        stop = error.stop
        told["stop"] = {"kind": stop.kind, "id": stop.id, "seq": stop.seq, "blocked": stop.blocked}
    headers = [(b"cache-control", b"no-store")]
    if answer.challenge:
        headers.append((b"www-authenticate", answer.challenge.encode("ascii")))
    if answer.retry_after:
        headers.append((b"retry-after", str(answer.retry_after).encode("ascii")))
    ours = isinstance(error, SdkError) and not _of_caller(error)
    await _json(send, answer.status, _OURS if ours else told, headers)


def insufficient(error: BaseException) -> SdkError | None:
    """Return the refusal of a caller by the application that ``error`` is, alone or in groups."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, SdkError) and error.reason in INSUFFICIENT else None


def _of_caller(error: AimsError) -> bool:
    return insufficient(error) is not None


async def describe(send: Send, place: Place, issuer: str) -> None:
    """Answer with the metadata of a resource that takes access tokens (RFC 9728)."""
    members = {
        "resource": place.resource.url,
        "authorization_servers": [issuer],
        "bearer_methods_supported": ["header"],
        "resource_name": place.resource.id,
        "dpop_signing_alg_values_supported": sorted(DPOP.algorithms),
        "dpop_bound_access_tokens_required": True,
    }
    await _json(send, 200, members, [(b"cache-control", b"public, max-age=300")])


def _challenge(place: Place | None, error: str) -> str:
    parts = [f'error="{error}"'] if error else []
    parts.append(f'algs="{_ALGORITHMS}"')
    if place is not None:
        parts.append(f'resource_metadata="{place.origin}{place.metadata_path}"')
    return f"DPoP {', '.join(parts)}"


async def _json(send: Send, status: int, members: Mapping[str, Any], headers: list[tuple[bytes, bytes]]) -> None:
    body = msgspec.json.encode(members)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode("ascii")),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
