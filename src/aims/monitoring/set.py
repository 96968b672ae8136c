"""The security event token (RFC 8417, SSF 1.0 section 4): parse, verify, build. No I/O.

Steps of a verification, in the order in which they fail:

    1. compact JWS of bounded size, strict JSON                 set_too_large, set_malformed
    2. ``typ`` and algorithm                                    set_typ, set_alg
    3. issuer is configured                                     set_issuer (the caller's, between the two halves)
    4. key by ``kid`` out of that issuer's keys; signature      set_kid, set_alg, set_signature
    5. claims present, of their types; no ``sub``, no ``exp``   set_claim
    6. not from the future                                      set_time
    7. the audience is ours                                     set_audience
    8. not too old; an event's own time neither                 set_time
    9. exactly one event of a known type, its payload valid     set_event, set_payload
    10. the subject identifier is understood                    set_subject

Whether the ``jti`` was seen before, and what the issuer may say, is the receiver's.
Wire version: RFC 8417, SSF 1.0 final.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from aims.jose import ClaimKind, JoseError, KeySet, Parsed, Profile, Signer, parse, sign, verify
from aims.monitoring import subjects
from aims.monitoring.errors import MonitoringError
from aims.monitoring.events import TYPES, Payload, Verification, happened_at, read
from aims.monitoring.subjects import Subject

MEDIA_TYPE: Final = "application/secevent+jwt"
HEADER: Final = {"typ": "secevent+jwt"}
MAX_OCTETS: Final = 8192
LEEWAY: Final = 60  # seconds that clocks of two parties may differ
MAX_AGE: Final = 24 * 3600
"""Seconds from ``iat`` on in which a SET is taken: longer than a transmitter retries, shorter than a jti is kept."""

PROFILE: Final = Profile(
    name="secevent",
    algorithms=frozenset({"ES256", "ES384", "Ed25519", "EdDSA", "RS256", "PS256"}),
    typ=("secevent+jwt",),
    required={
        "iss": ClaimKind.STRING,
        "jti": ClaimKind.STRING,
        "iat": ClaimKind.NUMERIC_DATE,
        "aud": ClaimKind.AUDIENCE,
        "sub_id": ClaimKind.OBJECT,
        "events": ClaimKind.OBJECT,
    },
    optional={"txn": ClaimKind.STRING, "toe": ClaimKind.NUMERIC_DATE},
    forbidden=frozenset({"sub", "exp"}),
    audience="any",
    max_octets=MAX_OCTETS,
    leeway=LEEWAY,
)

_ID: Final = re.compile(r"[\x21-\x7e]{1,256}")

_REASONS: Final[Mapping[str, str]] = {
    "too_large": "set_too_large",
    "typ": "set_typ",
    "alg": "set_alg",
    "kid": "set_kid",
    "kid_unknown": "set_kid",
    "signature": "set_signature",
    "claim_type": "set_claim",
    "claim_missing": "set_claim",
    "not_yet_valid": "set_time",
    "audience": "set_audience",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityEvent:
    """A verified SET: a statement of its issuer, not yet a command.

    ``at`` is when it happened, Unix milliseconds: the event's own time, else ``toe``, else ``iat``.
    """

    issuer: str
    jti: str
    at: int
    txn: str | None
    event: str
    payload: Payload
    subject: Subject
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ParsedSet:
    """A well-formed SET; nothing in it is true yet. ``issuer`` chooses the keys."""

    parsed: Parsed
    issuer: str
    token: str = field(repr=False)


def parse_set(octets: bytes) -> ParsedSet:
    """Steps 1 and 2. Raises: MonitoringError ``set_too_large``, ``set_malformed``, ``set_typ``, ``set_alg``,
    ``set_kid``."""
    try:
        parsed = parse(octets, PROFILE)
        token = octets.decode("ascii")
    except JoseError as error:
        raise _refusal(error) from error
    issuer = parsed.unverified.get("iss")
    if not isinstance(issuer, str) or not 1 <= len(issuer) <= 2048:
        raise MonitoringError("set_issuer", "no issuer")
    return ParsedSet(parsed, issuer, token)


def verify_set(parsed: ParsedSet, keys: KeySet, *, audience: str, now: float) -> SecurityEvent:
    """Steps 4 to 10, with the keys of the one issuer that the SET names.

    Raises: MonitoringError with the first step that failed.
    """
    # 4 to 7
    try:
        claims = verify(parsed.parsed, keys, now=now, audience=audience).claims
    except JoseError as error:
        raise _refusal(error) from error
    # 5: identifiers that are stored and recorded
    txn = claims.get("txn")
    if _ID.fullmatch(claims["jti"]) is None or (txn is not None and _ID.fullmatch(txn) is None):
        raise MonitoringError("set_claim", "jti or txn")
    # 8, 9
    if claims["iat"] < now - MAX_AGE:
        raise MonitoringError("set_time", "too old")
    event, payload = read(claims["events"])
    happened = happened_at(payload)
    at = float(claims.get("toe", claims["iat"]) if happened is None else happened)
    if at > now + LEEWAY:
        raise MonitoringError("set_time", "an event of the future")
    # 10
    subject = subjects.parse(claims["sub_id"])
    if isinstance(payload, Verification) and payload.state is not None:
        raise MonitoringError("set_state")  # nobody here asks for a verification
    return SecurityEvent(
        issuer=parsed.issuer,
        jti=claims["jti"],
        at=int(at * 1000),
        txn=txn,
        event=event,
        payload=payload,
        subject=subject,
        token=parsed.token,
    )


def build_claims(
    *, issuer: str, audience: str, jti: str, issued_at: int, txn: str, subject: Subject, payload: Payload
) -> dict[str, Any]:
    """Return the claims of a SET with one event; its type follows from the payload."""
    event = next(uri for uri, kind in TYPES.items() if kind is type(payload))
    return {
        "iss": issuer,
        "jti": jti,
        "iat": issued_at,
        "aud": audience,
        "txn": txn,
        "sub_id": subjects.build(subject),
        "events": {event: msgspec.to_builtins(payload)},
    }


async def sign_set(claims: Mapping[str, Any], key: Signer) -> str:
    """Sign the claims of ``build_claims``. Raises: JoseError, KeyStoreError."""
    return await sign(HEADER, claims, key)


def _refusal(error: JoseError) -> MonitoringError:
    return MonitoringError(_REASONS.get(error.reason, "set_malformed"), f"{error.code} {error.detail}"[:200])
