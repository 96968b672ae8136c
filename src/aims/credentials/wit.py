"""The Workload Identity Token (draft-ietf-wimse-workload-creds) and its narrower form, the SPIFFE WIT-SVID.

Steps of ``validate``, in the order of workload-creds 5.1.4:

    1. one well-formed compact token           wit_malformed
    2. sub is one workload identifier, and     wit_sub
       anchors are held for its origin         wit_no_trust_anchor
    3. typ                                     wit_typ
    4. algorithm, anchor key, signature        wit_alg, wit_malformed (header), wit_no_trust_anchor, wit_signature
    5. claims, exp, nbf, lifetime              wit_missing, wit_malformed, wit_expired, wit_not_yet_valid, wit_lifetime
    6. cnf.jwk with an acceptable alg          wit_cnf
    7. fence of our own domain                 wit_missing

A WIT alone authenticates nobody: a proof by its confirmation key must follow, and the text must never be accepted in
``Authorization``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from aims.credentials.errors import CredentialError
from aims.credentials.model import Fence
from aims.credentials.printed_keys import PRINTED_KEYS
from aims.identifiers import IdentifierError, SpiffeId, TrustDomain, WorkloadIdentifier
from aims.jose import ClaimKind, JoseError, KeySet, Profile, VerificationKey, base64url, parse, verify
from aims.jose.algorithms import ALL_ALGORITHMS, SPIFFE_ALGORITHMS, PublicKey
from aims.jose.door import decode
from aims.jose.jwk import parse_public, public_jwk, thumbprint_of

REVISION: Final = "draft-ietf-wimse-workload-creds-02, validation order of its editor's copy; SPIFFE WIT-SVID 665a28f"
MAX_LIFETIME: Final = 86_400  # seconds
HEADER: Final[Mapping[str, str]] = {"typ": "wit+jwt"}

# RFC 9864 deprecates EdDSA; it is accepted only where a caller lists it.
ALGORITHMS: Final = ALL_ALGORITHMS - {"EdDSA"}


def _spiffe_subject(text: str) -> WorkloadIdentifier:
    identifier = WorkloadIdentifier.parse(text)
    identifier.spiffe_id()
    return identifier


WIT: Final = Profile(
    name="wit",
    algorithms=ALGORITHMS,
    typ=("wit+jwt",),
    kid="optional",
    ignore_unknown_headers=True,
    judge_iat=False,
    required={"sub": ClaimKind.STRING, "exp": ClaimKind.NUMERIC_DATE},
    optional={"iss": ClaimKind.STRING, "jti": ClaimKind.STRING},
    max_lifetime=MAX_LIFETIME,
    subject=WorkloadIdentifier.parse,
)


WIT_SVID: Final = Profile(
    name="wit-svid",
    algorithms=SPIFFE_ALGORITHMS,
    typ=("wit+jwt",),
    media_type=False,
    kid="required",
    ignore_unknown_headers=True,
    judge_iat=False,
    required={"sub": ClaimKind.STRING, "exp": ClaimKind.NUMERIC_DATE},
    optional={"iss": ClaimKind.STRING, "jti": ClaimKind.STRING},
    forbidden=frozenset({"aud"}),
    max_lifetime=MAX_LIFETIME,
    subject=_spiffe_subject,
)

_REASONS: Final[Mapping[str, str]] = {
    "typ": "wit_typ",
    "alg": "wit_alg",
    "kid_unknown": "wit_no_trust_anchor",
    "signature": "wit_signature",
    "claim_missing": "wit_missing",
    "expired": "wit_expired",
    "not_yet_valid": "wit_not_yet_valid",
    "lifetime": "wit_lifetime",
}  # every other refusal of the door is wit_malformed


@dataclass(frozen=True, slots=True)
class WorkloadIdentityToken:
    """A verified WIT, which still needs a proof.

    ``confirmation`` is the key that the proof must verify with, bound to the one algorithm that the WIT names;
    ``thumbprint`` is its RFC 7638 digest. ``expires`` is in Unix seconds. ``fence`` is set for our own trust domain
    only. ``issuer`` and ``token_id`` are for the audit: identity comes from ``subject``.
    """

    subject: WorkloadIdentifier
    confirmation: VerificationKey
    thumbprint: str
    expires: float
    fence: Fence | None
    issuer: str | None
    token_id: str | None
    text: str = field(repr=False)
    proof_keys: KeySet = field(init=False, repr=False, compare=False)
    """``confirmation`` alone, as the keys that a proof may verify with."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "proof_keys", KeySet((self.confirmation,)))

    @property
    def proof_algorithm(self) -> str:
        """The only ``alg`` that a proof may have."""
        return str(self.confirmation.algorithm)

    @property
    def wth(self) -> str:
        """The hash by which a proof names this WIT: base64url of SHA-256 over the text exactly as it was sent."""
        return base64url.encode(hashlib.sha256(self.text.encode("ascii")).digest()).decode("ascii")


def build_claims(
    subject: SpiffeId,
    confirmation: PublicKey,
    proof_algorithm: str,
    *,
    issued_at: int,
    expires: int,
    fence: Fence,
    token_id: str | None = None,
) -> dict[str, Any]:
    """Return the claims of a WIT-SVID, to be signed under ``HEADER`` with a key of purpose ``wit-svid``.

    ``iss`` is ``spiffe://TRUST-DOMAIN``, which no OpenID discovery could resolve.

    Raises:
        CredentialError: ``template``: no workload, a proof algorithm outside WIT-SVID or not of the key, a key printed
            in a draft, or a lifetime outside 1 to ``MAX_LIFETIME`` seconds.
    """
    if not subject.path or not 0 < expires - issued_at <= MAX_LIFETIME:
        raise CredentialError("template", "subject or lifetime")
    if proof_algorithm not in SPIFFE_ALGORITHMS:
        raise CredentialError("template", "proof algorithm")
    try:
        jwk = public_jwk(confirmation, alg=proof_algorithm)
    except JoseError as error:
        raise CredentialError("template", error.code) from error
    if thumbprint_of(jwk) in PRINTED_KEYS:
        raise CredentialError("template", "a key printed in a draft")
    claims: dict[str, Any] = {
        "iss": subject.trust_domain.uri,
        "sub": str(subject),
        "exp": expires,
        "iat": issued_at,
        "cnf": {"jwk": jwk},
        **fence.claims(),
    }
    if token_id is not None:
        claims["jti"] = token_id
    return claims


def validate(
    text: str,
    anchors: Mapping[str, KeySet],
    *,
    now: float,
    own: TrustDomain | None,
    profile: Profile = WIT,
    proof_algorithms: AbstractSet[str] = ALGORITHMS,
    unsafe_printed_keys: bool = False,
) -> WorkloadIdentityToken:
    """Verify a WIT as far as that is possible without its proof.

    ``anchors`` holds the ``wit-svid`` keys by origin: ``spiffe://td`` and ``wimse://td`` are different keys. ``own`` is
    the trust domain whose credentials must carry a fence; ``None`` only where the verifier belongs to no trust domain.
    ``profile`` is ``WIT`` or ``WIT_SVID``. ``unsafe_printed_keys`` lets keys pass whose private half a draft prints;
    it exists for vectors.

    Raises:
        CredentialError: a ``wit_…`` reason, the first failed step.
    """
    try:
        parsed = parse(text, profile)
    except JoseError as error:
        # 1, 2. come before every rule about the header, so they decide first which refusal it is
        _subject_and_anchors(_decoded_claims(text, profile), anchors, profile)
        _refuse(error)
    # 2. sub is one workload identifier, and anchors are held for its origin
    subject, keys = _subject_and_anchors(parsed.unverified, anchors, profile)
    # 3, 4, 5. typ (while parsing); algorithm, key, signature; claims and times
    try:
        token = verify(parsed, keys, now=now)
    except JoseError as error:
        _refuse(error)
    claims = token.claims
    # 6. cnf.jwk with an acceptable alg
    confirmation, thumbprint = _confirmation(claims, proof_algorithms, unsafe_printed_keys=unsafe_printed_keys)
    # 7. fence of our own domain; what a foreign domain means by these names is unknown
    fence = None
    if own is not None and subject.origin == own.uri:
        try:
            fence = Fence.of_claims(claims)
        except CredentialError as error:
            raise CredentialError("wit_missing", f"{error.detail} of our own domain") from error
    return WorkloadIdentityToken(
        subject=subject,
        confirmation=confirmation,
        thumbprint=thumbprint,
        expires=claims["exp"],
        fence=fence,
        issuer=claims.get("iss"),
        token_id=claims.get("jti"),
        text=text,
    )


def _refuse(error: JoseError) -> NoReturn:
    raise CredentialError(_REASONS.get(error.reason, "wit_malformed"), str(error)) from error


def _decoded_claims(text: str, profile: Profile) -> Mapping[str, Any]:
    try:
        return decode(text, profile.max_octets)[1]
    except JoseError as error:
        raise CredentialError("wit_malformed", str(error)) from error


def _subject_and_anchors(
    claims: Mapping[str, Any], anchors: Mapping[str, KeySet], profile: Profile
) -> tuple[WorkloadIdentifier, KeySet]:
    text = claims.get("sub")
    if not isinstance(text, str):
        raise CredentialError("wit_sub", "missing or no string")
    try:
        subject: WorkloadIdentifier = (profile.subject or WorkloadIdentifier.parse)(text)
    except IdentifierError as error:
        raise CredentialError("wit_sub", error.code) from error
    keys = anchors.get(subject.origin)
    if keys is None or not len(keys):
        raise CredentialError("wit_no_trust_anchor", subject.origin)
    return subject, keys


def _confirmation(
    claims: Mapping[str, Any], accepted: AbstractSet[str], *, unsafe_printed_keys: bool
) -> tuple[VerificationKey, str]:
    confirmation = claims.get("cnf")
    jwk = confirmation.get("jwk") if isinstance(confirmation, dict) else None
    if not isinstance(jwk, dict):
        raise CredentialError("wit_cnf", "no jwk")
    alg = jwk.get("alg")
    if not isinstance(alg, str) or alg not in accepted or jwk.get("use", "sig") != "sig":
        raise CredentialError("wit_cnf", "alg or use")
    try:
        key = VerificationKey(None, alg, parse_public(jwk))
    except JoseError as error:
        raise CredentialError("wit_cnf", str(error)) from error
    thumbprint = thumbprint_of(jwk)
    if thumbprint in PRINTED_KEYS and not unsafe_printed_keys:
        raise CredentialError("wit_cnf", "the private half is printed in a draft")
    return key, thumbprint
