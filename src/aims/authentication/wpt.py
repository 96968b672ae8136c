"""The Workload Proof Token (draft-ietf-wimse-wpt-02): the holder of a WIT's key made this request.

Steps of ``verify_proof``, in the order of section 2, after the WIT itself was validated (step 1):

    2. one Authorization field of scheme WPT,     authorization_count, authorization_scheme,
       with one well-formed token                 wpt_malformed
    3. alg is the string in cnf.jwk.alg           wpt_alg_mismatch
    4. signature by cnf.jwk                       wpt_signature
    5. typ                                        wpt_typ
    6. aud                                        wpt_aud
    7. exp; nbf and iat where present             wpt_exp_missing, wpt_expired, wpt_exp_too_far, wpt_not_yet_valid
    8. wth                                        wth_missing, wth_mismatch
    9. jti                                        wpt_jti_missing
    10. tth exactly when there is a Txn-Token     txn_token_header_count, tth_missing, tth_mismatch
    11. oth and context tokens                    oth_key_case, oth_unknown, oth_header_count, oth_mismatch
    12. method-bound only: htm, htu, iss          wpt_htm, wpt_htu, wpt_iss

Claims of a wrong JSON type are ``wpt_malformed`` after step 5. What is left to the caller: to spend ``claim`` in a
replay window *before* anything happens, and to ask whether the subject was stopped. The proof covers neither query nor
fields nor content, and the method only where it is bound.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NoReturn

import msgspec

from aims.authentication.errors import AuthenticationError
from aims.authentication.replay import MAX_LEEWAY, ProofClaim
from aims.authentication.request import HttpRequest
from aims.authentication.target import normal, same, without_query
from aims.credentials.wit import WorkloadIdentityToken
from aims.jose import ClaimKind, ImmediateSigner, JoseError, Parsed, Profile, Signer, base64url, parse, verify
from aims.jose import sign as sign_token
from aims.jose import sign_now as sign_token_now
from aims.jose.algorithms import ALL_ALGORITHMS, verify_raw
from aims.jose.door import decode

REVISION: Final = "draft-ietf-wimse-wpt-02"
DEFAULT_LIFETIME: Final = 120  # seconds
MAX_REMAINING: Final = 600  # seconds; a proof with so many left is refused
HEADER: Final[Mapping[str, str]] = {"typ": "wpt+jwt"}

# Every algorithm may stand here, because the WIT narrows it to one. Only types are the door's affair; presence is
# judged below, in the order of the draft.
WPT: Final = Profile(
    name="wpt",
    algorithms=ALL_ALGORITHMS,
    typ=("wpt+jwt",),
    kid="ignored",
    required={},
    optional={
        "jti": ClaimKind.STRING,
        "wth": ClaimKind.STRING,
        "tth": ClaimKind.STRING,
        "oth": ClaimKind.OBJECT,
    },
)

_BY_STEP: Final[Mapping[int, str]] = {
    2: "authorization_count authorization_scheme wpt_malformed",
    3: "wpt_alg_mismatch",
    4: "wpt_signature",
    5: "wpt_typ",
    6: "wpt_aud",
    7: "wpt_exp_missing wpt_expired wpt_exp_too_far wpt_not_yet_valid",
    8: "wth_missing wth_mismatch",
    9: "wpt_jti_missing",
    10: "txn_token_header_count tth_missing tth_mismatch",
    11: "oth_key_case oth_unknown oth_header_count oth_mismatch",
    12: "wpt_htm wpt_htu wpt_iss",
    13: "wpt_replay",
}
STEPS: Final[Mapping[str, int]] = MappingProxyType(
    {reason: step for step, reasons in _BY_STEP.items() for reason in reasons.split()}
)
"""The step of each reason; 13 is the replay window. A ``wit_…`` reason is step 1."""

_TIMES = {"expired": "wpt_expired", "not_yet_valid": "wpt_not_yet_valid"}
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_MAX_CONTEXTS = 16
_FIELD_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofRules:
    """What a verifier expects of a WPT.

    ``audiences`` are its own names from trusted configuration, compared octet by octet. With ``target_is_audience`` the
    request's target URI is one of them, which is safe because it follows from configuration too. ``method_bound``
    demands ``htm`` and ``htu``. ``contexts`` are the lower-case names of further fields that carry context tokens; one
    that is sent must be covered by ``oth``. ``longest`` (seconds, at most 600) bounds the life that a proof has left.

    Raises:
        ValueError: no audience at all, or a limit out of bounds.
    """

    audiences: frozenset[str] = frozenset()
    target_is_audience: bool = False
    method_bound: bool = False
    contexts: frozenset[str] = frozenset()
    longest: int = MAX_REMAINING

    def __post_init__(self) -> None:
        if not (self.audiences or self.target_is_audience) or "" in self.audiences:
            raise ValueError("a verifier without a name of its own")
        if not 0 < self.longest <= MAX_REMAINING:
            raise ValueError("longest")
        if any(name != name.lower() or name in _RESERVED for name in self.contexts):
            raise ValueError("contexts")


_RESERVED = frozenset({"authorization", "workload-identity-token", "txn-token"})  # each has a rule of its own


class WorkloadProof(msgspec.Struct, frozen=True, gc=False):
    """A verified WPT. ``claim`` must be spent before it counts; ``issued_at`` is None where the sender left it out.

    ``txn_token`` and ``contexts`` are the texts that the proof covers, and nothing else of the kind may be used.
    """

    audience: str
    expires: float
    issued_at: float | None
    claim: ProofClaim
    txn_token: str | None
    contexts: Mapping[str, str]

    def __repr__(self) -> str:
        return f"WorkloadProof({self.claim.holder})"


def token_hash(text: str) -> str:
    """Return base64url of SHA-256 over the ASCII octets of a token: the form of ``wth``, ``tth`` and ``oth``."""
    return base64url.encode(hashlib.sha256(text.encode("latin-1")).digest()).decode("ascii")


# The same WIT comes with each request of a workload.
_hash_of_wit = lru_cache(maxsize=1024)(token_hash)


def build_claims(
    wit: str,
    audience: str,
    *,
    token_id: str,
    now: float,
    lifetime: int = DEFAULT_LIFETIME,
    txn_token: str | None = None,
    contexts: Mapping[str, str] | None = None,
    method: str | None = None,
    target_uri: str | None = None,
    issuer: str | None = None,
) -> dict[str, Any]:
    """Return the claims of a WPT for the WIT with exactly this text.

    ``audience`` is the target URI, whose query and fragment are left off, or a name that the verifier is known to have.
    ``token_id`` must be fresh, with at least 128 random bits (``IdSource.token()``). ``contexts`` are further fields
    by lower-case name. ``method`` and ``target_uri`` make the proof method-bound. ``iat`` is always written: a replay
    window that was just started can only then believe the proof.

    Raises:
        AuthenticationError: ``proof_template``: an empty input, a lifetime outside 1 to 599 seconds, one of ``method``
            and ``target_uri`` without the other, or a context that cannot be covered.
    """
    if not (wit and audience and token_id) or not 0 < lifetime < MAX_REMAINING:
        raise AuthenticationError("proof_template", "WIT, audience, jti or lifetime")
    if (method is None) != (target_uri is None) or method == "":
        raise AuthenticationError("proof_template", "method and target URI go together")
    issued_at = int(now)
    claims: dict[str, Any] = {
        "aud": without_query(audience),
        "exp": issued_at + lifetime,
        "iat": issued_at,
        "jti": token_id,
        "wth": token_hash(wit),
    }
    if txn_token is not None:
        claims["tth"] = token_hash(txn_token)
    if contexts:
        claims["oth"] = {name: token_hash(value.strip(" \t")) for name, value in contexts.items()}
        if len(contexts) > _MAX_CONTEXTS or not all(map(_may_be_covered, contexts)):
            raise AuthenticationError("proof_template", "contexts")
    if method is not None and target_uri is not None:
        if normal(target_uri) is None:
            raise AuthenticationError("proof_template", "target URI")
        claims.update(htm=method, htu=without_query(target_uri))
    if issuer is not None:
        claims["iss"] = issuer
    return claims


async def issue(claims: Mapping[str, Any], key: Signer) -> str:
    """Sign what ``build_claims`` returned with the WIT's own key, wherever that is.

    Raises: JoseError, as `aims.jose.sign`.
    """
    return await sign_token(HEADER, claims, key, with_kid=False)


def issue_now(claims: Mapping[str, Any], key: ImmediateSigner) -> str:
    """Do what ``issue`` does with a key in this process."""
    return sign_token_now(HEADER, claims, key, with_kid=False)


def verify_proof(
    request: HttpRequest,
    wit: WorkloadIdentityToken,
    rules: ProofRules,
    *,
    now: float,
    profile: Profile = WPT,
) -> WorkloadProof:
    """Verify the proof in ``request`` for the WIT that came with it, at ``now`` (Unix seconds).

    ``profile`` is ``WPT`` or one with another leeway of at most 30 seconds.

    Raises:
        AuthenticationError: the first of steps 2 to 12 that failed.
    """
    if profile.leeway > MAX_LEEWAY:
        raise ValueError("proofs allow 30 seconds of leeway at most")
    parsed = _parsed(_credentials(request), wit, profile)
    late = _verified(parsed, wit, now)
    claims = parsed.unverified  # believed from here on: the signature is good
    _check_audience(claims.get("aud"), request, rules)
    expires = _expiry(claims, now, rules, late)
    # 8. wth
    if "wth" not in claims:
        raise AuthenticationError("wth_missing")
    if claims["wth"] != _hash_of_wit(wit.text):
        raise AuthenticationError("wth_mismatch")
    # 9. jti
    token_id = claims.get("jti")
    if token_id is None:
        raise AuthenticationError("wpt_jti_missing")
    txn_token = _check_txn_token(claims.get("tth"), request)
    contexts = _check_contexts(claims.get("oth"), request, rules.contexts)
    subject = str(wit.subject)
    if rules.method_bound:
        _check_method(claims, request, subject)
    claim = ProofClaim.until("wpt", subject, token_id, expires)
    return WorkloadProof(claims["aud"], expires, claims.get("iat"), claim, txn_token, contexts)


def _credentials(request: HttpRequest) -> str:
    # 2. one Authorization field of scheme WPT
    scheme, _, rest = request.one("authorization", "authorization_count").partition(" ")
    if scheme.lower() != "wpt":
        raise AuthenticationError("authorization_scheme")
    return rest.lstrip(" ")


def _parsed(text: str, wit: WorkloadIdentityToken, profile: Profile) -> Parsed:
    try:
        return parse(text, profile)
    except JoseError as error:
        # The door judges typ and alg before it reads the claims; the draft wants a well-formed token first, and the
        # signature before typ.
        if error.reason not in {"typ", "alg"}:
            raise AuthenticationError("wpt_malformed", error.code) from error
        _refuse_kind(text, wit, profile, error)


def _refuse_kind(text: str, wit: WorkloadIdentityToken, profile: Profile, cause: JoseError) -> NoReturn:
    try:
        header, _ = decode(text, profile.max_octets)
    except JoseError as error:
        raise AuthenticationError("wpt_malformed", error.code) from error
    if header.get("alg") != wit.proof_algorithm:
        raise AuthenticationError("wpt_alg_mismatch") from cause
    signed, _, tail = text.rpartition(".")
    signature = base64url.decode(tail.encode("ascii"))
    if not verify_raw(wit.proof_algorithm, wit.confirmation.key, signature, signed.encode("ascii")):
        raise AuthenticationError("wpt_signature") from cause
    raise AuthenticationError("wpt_typ") from cause


def _verified(parsed: Parsed, wit: WorkloadIdentityToken, now: float) -> JoseError | None:
    """Return None, or what is wrong with the times of a token that is signed well: step 7, which comes later."""
    try:
        # 3. alg: the key is bound to the one algorithm; 4. signature
        verify(parsed, wit.proof_keys, now=now)
    except JoseError as error:
        if error.reason in _TIMES:
            return error
        reason = {"alg": "wpt_alg_mismatch", "signature": "wpt_signature"}.get(error.reason, "wpt_malformed")
        raise AuthenticationError(reason, str(error)) from error
    return None


def _check_audience(aud: object, request: HttpRequest, rules: ProofRules) -> None:
    # 6. aud; query and fragment do not count
    if not isinstance(aud, str):
        raise AuthenticationError("wpt_aud", "missing or no string")
    if aud in rules.audiences:
        return
    bare = without_query(aud)
    if bare not in rules.audiences and not (rules.target_is_audience and same(bare, request.target_uri)):
        raise AuthenticationError("wpt_aud")


def _expiry(claims: Mapping[str, Any], now: float, rules: ProofRules, late: JoseError | None) -> float:
    # 7. exp; nbf and iat where present
    expires = claims.get("exp")
    if expires is None:
        raise AuthenticationError("wpt_exp_missing")
    if expires - now >= rules.longest:
        raise AuthenticationError("wpt_exp_too_far")
    if late is not None:
        raise AuthenticationError(_TIMES[late.reason]) from late
    return float(expires)


def _check_txn_token(tth: object, request: HttpRequest) -> str | None:
    # 10. tth exactly when there is a Txn-Token
    txn_token = request.at_most_one("txn-token", "txn_token_header_count")
    if txn_token is None:
        if tth is not None:
            raise AuthenticationError("tth_mismatch", "there is no Txn-Token")
        return None
    if tth is None:
        raise AuthenticationError("tth_missing")
    if tth != token_hash(txn_token):
        raise AuthenticationError("tth_mismatch")
    return txn_token


def _check_contexts(oth: Any, request: HttpRequest, known: AbstractSet[str]) -> Mapping[str, str]:
    # 11. oth and context tokens
    if oth is None and not known:
        return _NOTHING
    covered: dict[str, str] = {}
    for name, wanted in ({} if oth is None else oth).items():
        if name != name.lower():
            raise AuthenticationError("oth_key_case")
        if name not in known:
            raise AuthenticationError("oth_unknown")
        value = request.one(name, "oth_header_count")
        if wanted != token_hash(value.strip(" \t")):
            raise AuthenticationError("oth_mismatch", name)
        covered[name] = value
    for name in known - covered.keys():
        if request.all(name):
            raise AuthenticationError("oth_mismatch", f"{name} is not covered")
    return MappingProxyType(covered)


def _check_method(claims: Mapping[str, Any], request: HttpRequest, subject: str) -> None:
    # 12. htm, htu, iss
    if claims.get("htm") != request.method:
        raise AuthenticationError("wpt_htm")
    htu = claims.get("htu")
    if not isinstance(htu, str) or not same(htu, request.target_uri):
        raise AuthenticationError("wpt_htu")
    if "iss" in claims and claims["iss"] != subject:
        raise AuthenticationError("wpt_iss")


def _may_be_covered(name: str) -> bool:
    return name == name.lower() and name not in _RESERVED and _FIELD_NAME.fullmatch(name) is not None
