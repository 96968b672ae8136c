"""The DPoP proof (RFC 9449): the holder of a key made this request, whose thumbprint a token may be bound to.

Steps of ``verify_proof``, in the order of section 4.3:

    1. exactly one DPoP field                     dpop_header_count
    2. one well-formed token                      dpop_malformed
    3. typ                                        dpop_typ
    4. alg                                        dpop_alg
    5. jwk: one public key that fits alg          dpop_jwk, dpop_alg
    6. signature by that key                      dpop_signature
    7. claims and their types                     dpop_missing, dpop_malformed
    8. htm                                        dpop_htm
    9. htu, normalised, without query             dpop_htu
    10. nonce, where one is demanded              dpop_nonce
    11. iat within the window                     dpop_iat
    12. ath, where an access token came along     dpop_ath
    13. the key is the one that is expected       dpop_key

The caller then spends ``claim`` in a replay window. A bound token must be presented with scheme ``DPoP``, and the
``jkt`` in it is what to pass as ``jkt``: that is the authorization server's and the resource's part.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from aims.authentication.errors import AuthenticationError
from aims.authentication.replay import MAX_LEEWAY, ProofClaim
from aims.authentication.request import HttpRequest
from aims.authentication.target import normal, same, without_query
from aims.authentication.wpt import token_hash
from aims.jose import (
    ClaimKind,
    ImmediateSigner,
    JoseError,
    KeySet,
    Parsed,
    Profile,
    Signer,
    VerificationKey,
    parse,
    verify,
)
from aims.jose import sign as sign_token
from aims.jose import sign_now as sign_token_now
from aims.jose.algorithms import ALL_ALGORITHMS, PublicKey
from aims.jose.jwk import parse_verification_key, public_jwk, thumbprint_of

DOCUMENT: Final = "RFC 9449"
DEFAULT_AGE: Final = 60  # seconds
MAX_AGE: Final = 300  # seconds

DPOP: Final = Profile(
    name="dpop",
    algorithms=ALL_ALGORITHMS - {"EdDSA"},  # deprecated by RFC 9864
    typ=("dpop+jwt",),
    kid="ignored",
    headers=frozenset({"jwk"}),
    required={
        "jti": ClaimKind.STRING,
        "htm": ClaimKind.STRING,
        "htu": ClaimKind.STRING,
        "iat": ClaimKind.NUMERIC_DATE,
    },
    optional={"ath": ClaimKind.STRING, "nonce": ClaimKind.STRING},
)

_READING = {"typ": "dpop_typ", "alg": "dpop_alg", "header_forbidden": "dpop_malformed"}
_VERIFYING = {"alg": "dpop_alg", "signature": "dpop_signature", "claim_missing": "dpop_missing"}
_MEMBERS = frozenset({"kty", "crv", "x", "y", "n", "e", "alg", "use", "kid"})
_TIMES = frozenset({"expired", "not_yet_valid"})


@dataclass(frozen=True, slots=True)
class DpopProof:
    """A verified proof. ``jkt`` is the thumbprint of its key; ``claim`` must be spent before the proof counts."""

    jkt: str
    key: VerificationKey
    issued_at: float
    claim: ProofClaim


def build_claims(
    method: str,
    target_uri: str,
    *,
    token_id: str,
    now: float,
    access_token: str | None = None,
    nonce: str | None = None,
) -> dict[str, Any]:
    """Return the claims of a proof for one request; ``access_token`` is the token that goes with it.

    Raises:
        AuthenticationError: ``proof_template``: an empty input, or a target URI that has no normal form.
    """
    if not (method and token_id) or access_token == "" or nonce == "" or normal(target_uri) is None:
        raise AuthenticationError("proof_template", "method, target URI, jti, token or nonce")
    claims: dict[str, Any] = {"jti": token_id, "htm": method, "htu": without_query(target_uri), "iat": int(now)}
    if access_token is not None:
        claims["ath"] = token_hash(access_token)
    if nonce is not None:
        claims["nonce"] = nonce
    return claims


async def issue(claims: Mapping[str, Any], key: Signer, public: PublicKey) -> str:
    """Sign what ``build_claims`` returned; ``public`` is the public half of ``key``.

    Raises: JoseError, as `aims.jose.sign`.
    """
    return await sign_token(_header(public), claims, key, with_kid=False)


def issue_now(claims: Mapping[str, Any], key: ImmediateSigner, public: PublicKey) -> str:
    """Do what ``issue`` does with a key in this process."""
    return sign_token_now(_header(public), claims, key, with_kid=False)


def verify_proof(
    request: HttpRequest,
    *,
    now: float,
    access_token: str | None = None,
    jkt: str | None = None,
    nonces: AbstractSet[str] | None = None,
    max_age: int = DEFAULT_AGE,
    profile: Profile = DPOP,
) -> DpopProof:
    """Verify the proof in ``request`` at ``now`` (Unix seconds).

    ``access_token`` is the one presented with it, ``jkt`` the thumbprint that the token, code or client is bound to.
    ``nonces`` are those that this verifier gave out and still takes; None demands none, and an empty set takes none.
    ``max_age`` is in seconds, at most 300. ``profile`` is ``DPOP`` or one with another leeway of at most 30 seconds.

    Raises:
        AuthenticationError: the first of steps 1 to 13 that failed.
    """
    if not 0 < max_age <= MAX_AGE or profile.leeway > MAX_LEEWAY:
        raise ValueError("max_age or leeway")
    # 1. exactly one DPoP field
    text = request.one("dpop", "dpop_header_count")
    # 2, 3, 4. one well-formed token, typ, alg
    try:
        parsed = parse(text, profile)
    except JoseError as error:
        raise AuthenticationError(_READING.get(error.reason, "dpop_malformed"), str(error)) from error
    key, keys, thumbprint = _embedded_key(parsed)
    late = _verified(parsed, keys, now)
    claims = parsed.unverified  # believed from here on: the signature is good
    # 8. htm
    if claims["htm"] != request.method:
        raise AuthenticationError("dpop_htm")
    # 9. htu, normalised, without query
    if not same(claims["htu"], request.target_uri):
        raise AuthenticationError("dpop_htu")
    # 10. nonce, where one is demanded
    if nonces is not None and claims.get("nonce") not in nonces:
        raise AuthenticationError("dpop_nonce")
    # 11. iat within the window; an exp or nbf that the sender added is honoured
    issued_at = claims["iat"]
    if late is not None or now - issued_at >= max_age + profile.leeway:
        raise AuthenticationError("dpop_iat") from late
    # 12. ath, where an access token came along
    if access_token is not None and claims.get("ath") != token_hash(access_token):
        raise AuthenticationError("dpop_ath")
    # 13. the key is the one that is expected
    if jkt is not None and thumbprint != jkt:
        raise AuthenticationError("dpop_key")
    claim = ProofClaim.until("dpop", thumbprint, claims["jti"], issued_at + MAX_AGE)
    return DpopProof(thumbprint, key, float(issued_at), claim)


def _header(public: PublicKey) -> dict[str, Any]:
    return {"typ": "dpop+jwt", "jwk": public_jwk(public)}


def _embedded_key(parsed: Parsed) -> tuple[VerificationKey, KeySet, str]:
    # 5. jwk: one public key that fits alg; private members and unfit points are refused by the reader
    jwk = parsed.header.get("jwk")
    if not isinstance(jwk, Mapping) or jwk.get("use", "sig") != "sig":
        raise AuthenticationError("dpop_jwk", "absent, no object or for another use")
    members = tuple(jwk.items())
    flat = _MEMBERS.issuperset(jwk) and all(type(value) is str for _, value in members)
    read = _known_key if flat else _key
    return read(members)


def _key(members: tuple[tuple[str, Any], ...]) -> tuple[VerificationKey, KeySet, str]:
    jwk = dict(members)
    try:
        key, thumbprint = parse_verification_key(jwk), thumbprint_of(jwk)
    except JoseError as error:
        raise AuthenticationError("dpop_jwk", str(error)) from error
    return key, KeySet((key,)), thumbprint


# A client shows the same key with each proof. What is remembered follows from every member of the JWK and from nothing
# else; keys that were refused are not remembered.
_known_key = lru_cache(maxsize=1024)(_key)


def _verified(parsed: Parsed, keys: KeySet, now: float) -> JoseError | None:
    """Return None, or what is wrong with the times of a proof that is signed well: step 11, which comes later."""
    try:
        # 6, 7. signature, then claims and their types
        verify(parsed, keys, now=now)
    except JoseError as error:
        if error.reason in _TIMES:
            return error
        raise AuthenticationError(_VERIFYING.get(error.reason, "dpop_malformed"), str(error)) from error
    return None
