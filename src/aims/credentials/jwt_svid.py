"""The JWT-SVID (SPIFFE JWT-SVID): a short-lived token for one audience.

Steps of ``validate``:

    1. well-formed token of the profile       JoseError (steps 1 to 4 of the door)
    2. sub is a workload's SPIFFE ID           claim_missing, claim_type, subject
    3. bundle of exactly that trust domain     no_trust_anchor
    4. key, signature, claims, times, audience JoseError (steps 5 to 11 of the door)
    5. fence of our own domain                 unfenced
    6. cnf                                     cnf

The caller still decides what the subject may do, whether the fence has been crossed by a stop, and, where ``jkt`` is
set, verifies possession of that key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final

from aims.credentials.errors import CredentialError
from aims.credentials.model import Fence
from aims.errors import AimsError
from aims.identifiers import SpiffeId, TrustDomain
from aims.jose import ClaimKind, JoseError, KeySet, Profile, parse, verify
from aims.jose.algorithms import SPIFFE_ALGORITHMS
from aims.jose.jwk import is_thumbprint

REVISION: Final = "SPIFFE JWT-SVID, spiffe/spiffe 665a28f (2026-07-01)"
MAX_LIFETIME: Final = 600  # seconds, of those that we issue; the specification sets no bound
HEADER: Final[Mapping[str, str]] = {"typ": "JWT"}

PROFILE: Final = Profile(
    name="jwt-svid",
    algorithms=SPIFFE_ALGORITHMS,
    typ=("JWT", "JOSE"),
    typ_required=False,
    media_type=False,
    kid="optional",
    try_each=True,
    required={"sub": ClaimKind.STRING, "aud": ClaimKind.AUDIENCE, "exp": ClaimKind.NUMERIC_DATE},
    optional={"iss": ClaimKind.STRING, "jti": ClaimKind.STRING, "cnf": ClaimKind.OBJECT},
    audience="any",
    subject=SpiffeId.parse_workload,
)


@dataclass(frozen=True, slots=True)
class JwtSvid:
    """A verified JWT-SVID. Times are Unix seconds; ``fence`` is set for our own trust domain only; ``jkt`` is the
    thumbprint of the key to which the token is bound, if it is."""

    subject: SpiffeId
    audience: tuple[str, ...]
    expires: float
    issued_at: float | None
    issuer: str | None
    token_id: str | None
    fence: Fence | None
    jkt: str | None
    claims: Mapping[str, Any] = field(repr=False)


def build_claims(
    subject: SpiffeId,
    audience: Sequence[str],
    *,
    issued_at: int,
    expires: int,
    issuer: str,
    fence: Fence,
    jkt: str | None = None,
    token_id: str | None = None,
) -> dict[str, Any]:
    """Return the claims of a JWT-SVID, to be signed under ``HEADER`` with a key of purpose ``jwt-svid``.

    ``aud`` is always a list, as every known consumer expects. ``jkt`` binds the token to a key.

    Raises:
        CredentialError: ``template``: no workload, no audience, or a lifetime outside 1 to ``MAX_LIFETIME`` seconds.
    """
    if not subject.path or isinstance(audience, str) or not audience or not all(audience):
        raise CredentialError("template", "subject or audience")
    if not 0 < expires - issued_at <= MAX_LIFETIME:
        raise CredentialError("template", "lifetime")
    if jkt is not None and not is_thumbprint(jkt):
        raise CredentialError("template", "jkt")
    claims: dict[str, Any] = {
        "iss": issuer,
        "sub": str(subject),
        "aud": list(audience),
        "exp": expires,
        "iat": issued_at,
        **fence.claims(),
    }
    if token_id is not None:
        claims["jti"] = token_id
    if jkt is not None:
        claims["cnf"] = {"jkt": jkt}
    return claims


def validate(
    text: str | bytes,
    bundles: Mapping[TrustDomain, KeySet],
    *,
    audience: str | AbstractSet[str],
    now: float,
    own: TrustDomain | None,
    profile: Profile = PROFILE,
) -> JwtSvid:
    """Verify a JWT-SVID for the verifier that is named ``audience``.

    ``bundles`` holds the ``jwt-svid`` keys of each trust domain. ``own`` is the trust domain whose credentials must
    carry a fence; ``None`` only where the verifier belongs to no trust domain. ``profile`` may be a narrower one.

    Raises:
        JoseError: the token, its signature, times, audience or subject.
        CredentialError: ``no_trust_anchor``, ``unfenced`` or ``cnf``.
    """
    # 1. well-formed token of the profile
    parsed = parse(text, profile)
    # 2. sub is a workload's SPIFFE ID
    trust_domain = _unverified_subject(parsed.unverified).trust_domain
    # 3. bundle of exactly that trust domain
    keys = bundles.get(trust_domain)
    if keys is None or not len(keys):
        raise CredentialError("no_trust_anchor", str(trust_domain))
    # 4. key, signature, claims, times, audience
    token = verify(parsed, keys, now=now, audience=audience)
    claims = token.claims
    # 5. fence of our own domain; what a foreign domain means by these names is unknown
    fence = Fence.of_claims(claims) if trust_domain == own else None
    aud = claims["aud"]
    return JwtSvid(
        subject=token.subject,
        audience=(aud,) if isinstance(aud, str) else tuple(aud),
        expires=claims["exp"],
        issued_at=claims.get("iat"),
        issuer=claims.get("iss"),
        token_id=claims.get("jti"),
        fence=fence,
        jkt=_confirmation(claims),
        claims=claims,
    )


def _unverified_subject(claims: Mapping[str, Any]) -> SpiffeId:
    if "sub" not in claims:
        raise JoseError("claim_missing", "sub")
    subject = claims["sub"]
    if not isinstance(subject, str) or not subject:
        raise JoseError("claim_type", "sub")
    try:
        return SpiffeId.parse_workload(subject)
    except AimsError as error:
        raise JoseError("subject", error.code) from error


def _confirmation(claims: Mapping[str, Any]) -> str | None:
    # 6. cnf: a binding that is not understood must not be dropped, or a bound token would become a bearer
    confirmation = claims.get("cnf")
    if confirmation is None:
        return None
    jkt = confirmation.get("jkt")
    if len(confirmation) != 1 or not isinstance(jkt, str) or not is_thumbprint(jkt):
        raise CredentialError("cnf", "only jkt is understood in a JWT-SVID")
    return jkt
