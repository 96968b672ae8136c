"""The Txn-Token (draft-ietf-oauth-transaction-tokens): one purpose, its facts, and everything whose stop ends it.

Steps of ``TransactionTokenVerifier.read``, which are 3 to 7 of section 12 of the draft:

    1. a well-formed token of kind txntoken+jwt      txn_malformed, txn_typ
    2. no claim of an earlier draft                  txn_old
    3. a key of the service, the signature           txn_signature
    4. aud is the trust domain, iss the service      txn_audience, txn_issuer
    5. exp, iat, and the life between them           txn_expired, txn_lifetime
    6. claims and their types                        txn_claims
    7. parties, chain of actors, and the fence       txn_claims

A Txn-Token is no credential: it is only read for a caller whose own proof covers it, see ``verification``.

Private claims, documented as such: ``grant_id``, ``instance``, ``epoch`` (the fence), ``req_wl_chain`` (who asked
before ``req_wl``, oldest first) and ``txn_iat`` (when the transaction began), the last two only in replacements.

A stop of any workload in it ends a token and all its replacements. ``instance`` is that of the agent that acts: what
the instance of a requester asked for outlives its quarantine by the rest of the transaction, ``MAX_LIFETIME`` at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aims.authentication.liveness import StopName, names_of
from aims.authorization import delegation, scope
from aims.authorization.errors import AuthorizationError
from aims.authorization.transactions.errors import TransactionError
from aims.credentials.errors import CredentialError
from aims.credentials.model import Fence
from aims.identifiers import IdentifierError, SpiffeId, TrustDomain
from aims.jose import ClaimKind, JoseError, KeySet, Parsed, Profile, parse, verify
from aims.jose.algorithms import ALL_ALGORITHMS

DRAFT: Final = "draft-ietf-oauth-transaction-tokens-11"
TYP: Final = "txntoken+jwt"
HEADER: Final[Mapping[str, str]] = {"typ": TYP}
TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:txn_token"  # noqa: S105  a name (section 11.1)
MAX_LIFETIME: Final = 300  # seconds of one token, and of a transaction with all its replacements
MAX_REPLACEMENTS: Final = 8
MAX_OCTETS: Final = 8192

# ``purp`` and ``azd`` until 05, ``actor`` and ``principal`` in the agents' series before ``act``.
_EARLIER: Final = frozenset({"purp", "azd", "actor", "principal"})
_MAX_ID: Final = 128
_MAX_SUBJECT: Final = 2048

PROFILE: Final = Profile(
    name="txn-token",
    algorithms=ALL_ALGORITHMS - {"EdDSA"},  # deprecated by RFC 9864
    typ=(TYP,),
    required={
        "iat": ClaimKind.NUMERIC_DATE,
        "exp": ClaimKind.NUMERIC_DATE,
        "aud": ClaimKind.AUDIENCE,
        "txn": ClaimKind.STRING,
        "sub": ClaimKind.STRING,
        "scope": ClaimKind.STRING,
        "req_wl": ClaimKind.STRING,
        "grant_id": ClaimKind.STRING,
        "instance": ClaimKind.STRING,
        "epoch": ClaimKind.INTEGER,
    },
    optional={
        "iss": ClaimKind.STRING,
        "tctx": ClaimKind.OBJECT,
        "rctx": ClaimKind.OBJECT,
        "act": ClaimKind.OBJECT,
        "req_wl_chain": ClaimKind.STRING_LIST,
        "txn_iat": ClaimKind.NUMERIC_DATE,
    },
    audience="string",
    max_lifetime=MAX_LIFETIME,
    max_octets=MAX_OCTETS,
)

_VERIFYING: Final = {
    "audience": "txn_audience",
    "expired": "txn_expired",
    "not_yet_valid": "txn_expired",
    "lifetime": "txn_lifetime",
    "claim_missing": "txn_claims",
    "claim_type": "txn_claims",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionToken:
    """One transaction as one workload may carry it on. Times are Unix seconds.

    ``subject`` is whose right it is (a SPIFFE ID or a person), ``actors`` who acts, outermost first. ``requester``
    asked the service and ``requesters`` asked before it, oldest first. ``details`` are the facts that must not
    change, ``context`` those of the request's environment. ``began`` is when the first token of the transaction was
    issued. ``fence`` holds the instance that acts and the number of the feed that the service had read.
    """

    issuer: str
    domain: TrustDomain
    txn: str
    subject: str
    purposes: frozenset[str]
    requester: str
    issued_at: float
    expires: float
    grant_id: str
    fence: Fence
    began: float
    actors: tuple[str, ...] = ()
    requesters: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[StopName, ...] = field(init=False, repr=False, compare=False)
    """Everything whose stop ends the token."""

    def __post_init__(self) -> None:
        names = names_of(
            self.subject,
            *self.actors,
            self.requester,
            *self.requesters,
            instance=self.fence.instance,
            grant_id=self.grant_id,
        )
        object.__setattr__(self, "names", names)

    @property
    def epoch(self) -> int:
        """The number below which a stop of one of ``names`` ends the token."""
        return self.fence.epoch

    def claims(self) -> dict[str, Any]:
        """Return the claims, to be signed under ``HEADER`` with a key of purpose ``txn-token``.

        Raises:
            AuthorizationError: ``template``: no purpose, fractions of seconds, a life outside 1 to ``MAX_LIFETIME``
                seconds or beyond the transaction's, or more replacements than there may be.
        """
        if not self.purposes or not 0 < self.expires - self.issued_at <= MAX_LIFETIME:
            raise AuthorizationError("template", "purpose or lifetime")
        if any(type(moment) is not int for moment in (self.issued_at, self.expires, self.began)):
            raise AuthorizationError("template", "times are whole seconds")
        if self.expires > self.began + MAX_LIFETIME or len(self.requesters) > MAX_REPLACEMENTS:
            raise AuthorizationError("template", "beyond the transaction")
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "iat": self.issued_at,
            "exp": self.expires,
            "aud": self.domain.name,
            "txn": self.txn,
            "sub": self.subject,
            "scope": scope.write(self.purposes),
            "req_wl": self.requester,
            "grant_id": self.grant_id,
            **self.fence.claims(),
        }
        if self.actors:
            claims["act"] = delegation.write_actors(self.actors)
        if self.details:
            claims["tctx"] = dict(self.details)
        if self.context:
            claims["rctx"] = dict(self.context)
        if self.requesters:
            claims |= {"req_wl_chain": list(self.requesters), "txn_iat": self.began}
        return claims


class TransactionTokenVerifier:
    """Reads Txn-Tokens of one trust domain. ``keys`` are those of its one service; no I/O, no clock of its own."""

    __slots__ = ("_domain", "_profile", "issuer", "keys")

    def __init__(self, issuer: str, domain: TrustDomain, keys: KeySet, *, profile: Profile = PROFILE) -> None:
        self.issuer = issuer
        self._domain = domain
        self._profile = profile
        self.keys = keys
        """Replace it when the service publishes others."""

    def read(self, text: str | bytes, *, now: float) -> TransactionToken:
        """Verify a token, whoever sent it.

        Raises:
            TransactionError: the first step that failed.
        """
        # 1. a well-formed token of kind txntoken+jwt
        try:
            parsed = parse(text, self._profile)
        except JoseError as error:
            raise TransactionError("txn_typ" if error.reason == "typ" else "txn_malformed", str(error)) from error
        # 2. no claim of an earlier draft: such a token is refused, never translated
        if not _EARLIER.isdisjoint(parsed.unverified):
            raise TransactionError("txn_old", ", ".join(sorted(_EARLIER & parsed.unverified.keys())))
        # 3, 4, 5, 6. key, signature; aud; times; claims and their types
        claims = self._verified(parsed, now)
        # 4. iss
        if claims.get("iss", self.issuer) != self.issuer:
            raise TransactionError("txn_issuer")
        # 7. parties, chain of actors, and the fence
        try:
            return self._token(claims)
        except TransactionError:
            raise
        except (AuthorizationError, CredentialError, IdentifierError) as error:
            raise TransactionError("txn_claims", str(error)) from error

    def _verified(self, parsed: Parsed, now: float) -> Mapping[str, Any]:
        try:
            return verify(parsed, self.keys, now=now, audience=self._domain.name).claims
        except JoseError as error:
            raise TransactionError(_VERIFYING.get(error.reason, "txn_signature"), str(error)) from error

    def _token(self, claims: Mapping[str, Any]) -> TransactionToken:
        subject, requesters = claims["sub"], tuple(claims.get("req_wl_chain", ()))
        _check_subject(subject)
        for workload in (claims["req_wl"], *requesters):
            SpiffeId.parse_workload(workload)
        began = claims.get("txn_iat", claims["iat"])
        if (requesters != ()) != ("txn_iat" in claims) or began > claims["iat"]:
            raise TransactionError("txn_claims", "req_wl_chain and txn_iat")
        if len(requesters) > MAX_REPLACEMENTS or claims["exp"] > began + MAX_LIFETIME:
            raise TransactionError("txn_lifetime", "of the transaction")
        if len(claims["txn"]) > _MAX_ID or len(claims["grant_id"]) > _MAX_ID:
            raise TransactionError("txn_claims", "txn or grant_id")
        actors = delegation.read_actors(claims.get("act"))
        if subject in actors:
            raise AuthorizationError("actor_twice")
        return TransactionToken(
            issuer=self.issuer,
            domain=self._domain,
            txn=claims["txn"],
            subject=subject,
            purposes=scope.parse(claims["scope"]),
            requester=claims["req_wl"],
            issued_at=claims["iat"],
            expires=claims["exp"],
            grant_id=claims["grant_id"],
            fence=Fence.of_claims(claims),
            began=began,
            actors=actors,
            requesters=requesters,
            details=claims.get("tctx", {}),
            context=claims.get("rctx", {}),
        )


def _check_subject(subject: str) -> None:
    # a person never looks like a workload, so neither can be taken for the other
    if len(subject) > _MAX_SUBJECT or not subject.startswith("person:"):
        SpiffeId.parse_workload(subject)
