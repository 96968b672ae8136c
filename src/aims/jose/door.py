"""The one door through which a token's octets come in.

Steps, in the order in which they fail:

    1. size, octets and three non-empty parts       malformed, too_large
    2. canonical base64url of each part             malformed
    3. header: strict JSON, then typ, alg, crit,    malformed, duplicate_member, typ, alg, crit,
       other members, kid                           header_forbidden, header_unknown, kid
    4. claims: strict JSON                          malformed, duplicate_member
    5. key by kid, or the one that fits             kid_unknown, kid
    6. algorithm bound to that key                  alg
    7. signature                                    signature
    8. claims: types, presence, forbidden ones      claim_type, claim_missing
    9. exp, nbf, iat, lifetime                      expired, not_yet_valid, lifetime
    10. audience                                    audience
    11. subject                                     subject

``parse`` does 1 to 4 and ``verify`` the rest; between the two stands only the choice of the keys, which may read the
unverified claims for that one purpose. Replay, proof of possession, stops and authorization are the caller's. ECDSA
signatures are malleable: never key a replay store by a token's text or signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import msgspec

from aims.errors import AimsError
from aims.jose import base64url
from aims.jose.algorithms import verify_raw
from aims.jose.errors import JoseError
from aims.jose.keys import KeySet, VerificationKey, is_kid
from aims.jose.profile import Profile
from aims.jose.strict_json import read_object

MAX_TRIED_KEYS = 8
_COMMON_HEADERS = frozenset({"alg", "typ", "kid"})
_DANGEROUS_HEADERS = frozenset({"jwk", "jku", "x5u", "x5c", "b64"})
_CACHED_HEADER_OCTETS = 1024


class Parsed(msgspec.Struct, frozen=True, gc=False):
    """A well-formed token of a profile. Nothing in it is true yet.

    ``unverified`` holds the claims; their one lawful use before ``verify`` is to find the trust domain or issuer whose
    keys are to be asked.
    """

    profile: Profile
    header: Mapping[str, Any]
    unverified: Mapping[str, Any]
    signing_input: bytes
    signature: bytes

    def __repr__(self) -> str:
        return f"Parsed({self.profile.name})"


class Token(msgspec.Struct, frozen=True, gc=False):
    """A verified token. ``subject`` is what the profile made of ``sub`` (``None`` without such a rule), ``key`` the
    key that verified."""

    profile: Profile
    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    subject: Any
    key: VerificationKey

    def __repr__(self) -> str:
        return f"Token({self.profile.name}, subject={self.subject!s})"


def open_token(
    token: str | bytes,
    profile: Profile,
    keys: KeySet,
    *,
    now: float,
    audience: str | AbstractSet[str] | None = None,
) -> Token:
    """Parse and verify in one call, where the keys do not depend on the token."""
    return verify(parse(token, profile), keys, now=now, audience=audience)


def decode(token: str | bytes, max_octets: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims of a well-formed token, without any rule of a profile: steps 1, 2 and the JSON of 3, 4.

    For diagnosis and for telling which kind of refusal came first. Trust nothing in it.
    """
    head, body, signature = _split(token, max_octets)[:3]
    header = read_object(base64url.decode(head))
    claims = read_object(base64url.decode(body))
    base64url.decode(signature)
    return header, claims


def parse(token: str | bytes, profile: Profile) -> Parsed:
    """Read a compact JWS as a token of ``profile``, without believing it.

    Raises:
        JoseError: the first of steps 1 to 4 that failed.
    """
    head, body, tail, signing_input = _split(token, profile.max_octets)
    header = _known_header(head, profile) if len(head) <= _CACHED_HEADER_OCTETS else _header(head, profile)
    return Parsed(profile, header, read_object(base64url.decode(body)), signing_input, base64url.decode(tail))


def verify(parsed: Parsed, keys: KeySet, *, now: float, audience: str | AbstractSet[str] | None = None) -> Token:
    """Verify a parsed token at ``now`` (Unix seconds) with the keys of the one issuer or trust domain that it names.

    ``audience`` is the verifier's own name, or the set of its names. Where the profile judges audiences, leaving it
    out refuses every token.

    Raises:
        JoseError: the first of steps 5 to 11 that failed.
    """
    profile, claims = parsed.profile, parsed.unverified
    key = _verifying_key(parsed, keys)
    _check_claims(profile, claims)
    _check_times(profile, claims, now)
    if profile.audience != "none":
        _check_audience(profile, claims["aud"], audience)
    subject = None
    if profile.subject is not None:
        try:
            subject = profile.subject(claims["sub"])
        except AimsError as error:
            raise JoseError("subject", error.code) from error
    return Token(profile, parsed.header, claims, subject, key)


def _split(token: str | bytes, max_octets: int) -> tuple[bytes, bytes, bytes, bytes]:
    # 1. size, octets and three non-empty parts
    if len(token) > max_octets:
        raise JoseError("too_large")
    if isinstance(token, str):
        try:
            token = token.encode("ascii")
        except UnicodeEncodeError:
            raise JoseError("malformed", "not ASCII") from None
    signing_input, _, tail = token.rpartition(b".")
    head, _, body = signing_input.partition(b".")
    if not head or not body or not tail or b"." in body:
        raise JoseError("malformed", "not three parts")
    return head, body, tail, signing_input


def _header(head: bytes, profile: Profile) -> Mapping[str, Any]:
    # 2, 3. header
    header = read_object(base64url.decode(head))
    typ = header.get("typ")
    if "typ" not in header:
        if profile.typ_required:
            raise JoseError("typ", "missing")
    elif not isinstance(typ, str) or profile.comparable_typ(typ) not in profile.typ:
        raise JoseError("typ")
    alg = header.get("alg")
    if not isinstance(alg, str) or alg not in profile.algorithms:
        raise JoseError("alg")
    if "crit" in header:
        raise JoseError("crit")
    others = header.keys() - _COMMON_HEADERS - profile.headers
    if others & _DANGEROUS_HEADERS:
        raise JoseError("header_forbidden", ", ".join(sorted(others & _DANGEROUS_HEADERS)))
    if others and not profile.ignore_unknown_headers:
        raise JoseError("header_unknown")
    _check_kid(header, profile)
    # the same value goes to every caller that shows these octets, so nobody may change it
    frozen: Mapping[str, Any] = _frozen(header)
    return frozen


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType({name: _frozen(member) for name, member in value.items()})
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return value


def _check_kid(header: Mapping[str, Any], profile: Profile) -> None:
    if "kid" in header:
        if not is_kid(header["kid"]):
            raise JoseError("kid", "not a string of 1 to 256 octets")
    elif profile.kid == "required":
        raise JoseError("kid", "missing")


# An issuer writes one header per key, and a client one per proof key, so nearly every header has been judged before.
# Only good ones are remembered.
_known_header = lru_cache(maxsize=1024)(_header)


def _verifying_key(parsed: Parsed, keys: KeySet) -> VerificationKey:
    profile, header = parsed.profile, parsed.header
    alg: str = header["alg"]
    # 5. key by kid, or the one that fits
    if "kid" in header and profile.kid != "ignored":
        named = keys.get(header["kid"])
        if named is None:
            raise JoseError("kid_unknown")
        # 6. algorithm bound to that key
        if alg not in named.algorithms:
            raise JoseError("alg", "bound to another algorithm than the key")
        candidates: tuple[VerificationKey, ...] = (named,)
    else:
        candidates = keys.for_algorithm(alg)
        if not candidates:
            raise JoseError("alg" if len(keys) else "kid_unknown", "no key for this algorithm")
        if len(candidates) > (MAX_TRIED_KEYS if profile.try_each else 1):
            raise JoseError("kid", "missing, and several keys fit")
    # 7. signature
    for key in candidates:
        if verify_raw(alg, key.key, parsed.signature, parsed.signing_input):
            return key
    raise JoseError("signature")


def _check_claims(profile: Profile, claims: Mapping[str, Any]) -> None:
    # 8. claims: types, presence, forbidden ones
    checks = profile.checks
    for name, value in claims.items():
        check = checks.get(name)
        if check is not None:
            if not check(value):
                raise JoseError("claim_type", name)
        elif name in profile.forbidden:
            raise JoseError("claim_type", f"{name} is forbidden")
        elif not profile.unknown_claims:
            raise JoseError("claim_type", "unknown claim")
    if not profile.required_names <= claims.keys():
        raise JoseError("claim_missing", ", ".join(sorted(profile.required_names - claims.keys())))


def _check_times(profile: Profile, claims: Mapping[str, Any], now: float) -> None:
    # 9. exp, nbf, iat, lifetime; a token is good while now < exp, and from nbf and iat on
    exp, nbf, leeway = claims.get("exp"), claims.get("nbf"), profile.leeway
    iat = claims.get("iat") if profile.judge_iat else None
    if exp is not None and now >= exp + leeway:
        raise JoseError("expired")
    if (nbf is not None and nbf > now + leeway) or (iat is not None and iat > now + leeway):
        raise JoseError("not_yet_valid")
    longest = profile.max_lifetime
    if longest is None or exp is None:
        return
    if exp > now + longest + leeway or (iat is not None and exp - iat > longest):
        raise JoseError("lifetime")


def _check_audience(profile: Profile, aud: str | list[str], accepted: str | AbstractSet[str] | None) -> None:
    # 10. audience, octet by octet
    names = {accepted} if isinstance(accepted, str) else accepted
    if not names:
        raise JoseError("audience", "the verifier has no name of its own")
    if isinstance(aud, str):
        if aud in names:
            return
    elif profile.audience == "any":
        if not names.isdisjoint(aud):
            return
    elif profile.audience == "single" and len(aud) == 1 and aud[0] in names:
        return
    raise JoseError("audience")
