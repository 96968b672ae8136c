"""The access token (RFC 9068): a signed statement of one right at one audience, and everything whose stop ends it.

Steps of ``AccessTokenVerifier.read``, in the order of the specification:

    1. a well-formed token of kind at+jwt             token_malformed, token_typ
    2. iss, octet by octet                            token_issuer
    3. a key of that issuer, the signature            token_signature
    4. claims, their types, exp, iat                  token_claims, token_expired
    5. the parties: sub, client_id, act, may_act      token_claims, chain_malformed, chain_too_long, actor_twice
    6. scope and authorization_details                token_claims
    7. the fence                                      token_claims
    8. cnf                                            token_claims

and of ``accept``, at a resource, after them:

    9. aud contains me                                token_audience, token_passthrough
    10. scheme, and possession of the key in cnf      token_scheme, token_unbound, token_binding

The caller then judges liveness by ``names`` and ``epoch`` (`aims.authentication.liveness`) and the scope, and asks its
policy with subject and client together.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from aims.authentication.liveness import StopName, names_of
from aims.authorization import authorization_details, delegation, scope
from aims.authorization.authorization_details import Details
from aims.authorization.errors import AuthorizationError
from aims.credentials.errors import CredentialError
from aims.credentials.model import Fence
from aims.identifiers import IdentifierError, SpiffeId
from aims.jose import ClaimKind, JoseError, KeySet, Profile, parse, verify
from aims.jose.algorithms import ALL_ALGORITHMS
from aims.jose.jwk import is_thumbprint

DOCUMENT: Final = "RFC 9068"
TYP: Final = "at+jwt"
HEADER: Final[Mapping[str, str]] = {"typ": TYP}
MAX_LIFETIME: Final = 3600  # seconds
TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  a name (RFC 8693 3)

PROFILE: Final = Profile(
    name="access-token",
    algorithms=ALL_ALGORITHMS - {"EdDSA"},  # deprecated by RFC 9864
    typ=(TYP,),
    required={
        "iss": ClaimKind.STRING,
        "sub": ClaimKind.STRING,
        "aud": ClaimKind.AUDIENCE,
        "client_id": ClaimKind.STRING,
        "exp": ClaimKind.NUMERIC_DATE,
        "iat": ClaimKind.NUMERIC_DATE,
        "jti": ClaimKind.STRING,
        "scope": ClaimKind.STRING,
        "grant_id": ClaimKind.STRING,
        "instance": ClaimKind.STRING,
        "epoch": ClaimKind.INTEGER,
    },
    optional={
        "agent": ClaimKind.BOOLEAN,
        "cnf": ClaimKind.OBJECT,
        "act": ClaimKind.OBJECT,
        "may_act": ClaimKind.OBJECT,
        "resource": ClaimKind.STRING,
        "authorization_details": ClaimKind.OBJECT_LIST,
        "txn": ClaimKind.STRING,
    },
    max_lifetime=MAX_LIFETIME,
)

Method: TypeAlias = Literal["x5t#S256", "jkt"]

_READING: Final = {"typ": "token_typ"}
_VERIFYING: Final = {
    "expired": "token_expired",
    "not_yet_valid": "token_expired",
    "claim_missing": "token_claims",
    "claim_type": "token_claims",
    "lifetime": "token_claims",
}
_MAX_ID: Final = 128


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The key that a token is bound to: a certificate (RFC 8705 3.1) or a DPoP key (RFC 9449 6.1), by thumbprint."""

    method: Method
    thumbprint: str

    def claim(self) -> dict[str, str]:
        """Return the ``cnf`` claim."""
        return {self.method: self.thumbprint}


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """A right. Times are Unix seconds.

    ``subject`` is whose right it is (a SPIFFE ID or a person), ``client_id`` who got the token, ``actors`` who acts,
    outermost first. ``audience`` is a resource, or an agent to whom the right was handed on: then ``may_act`` names
    that agent and ``resource`` is the audience at which the scopes count. ``fence`` is the client's instance and the
    number of the feed that the server had read.
    """

    issuer: str
    subject: str
    client_id: str
    audience: str
    scopes: frozenset[str]
    issued_at: float
    expires: float
    token_id: str
    grant_id: str
    fence: Fence
    confirmation: Confirmation | None
    actors: tuple[str, ...] = ()
    may_act: str | None = None
    resource: str | None = None
    details: Details = ()
    agent: bool = True
    txn: str | None = None
    names: tuple[StopName, ...] = field(init=False, repr=False, compare=False)
    """Everything whose stop ends the token."""

    def __post_init__(self) -> None:
        names = names_of(
            self.subject,
            *self.actors,
            instance=self.fence.instance,
            client_id=self.client_id,
            grant_id=self.grant_id,
        )
        object.__setattr__(self, "names", names)

    @property
    def epoch(self) -> int:
        """The number below which a stop of one of ``names`` ends the token."""
        return self.fence.epoch

    @property
    def target(self) -> str:
        """The audience at which the scopes count."""
        return self.audience if self.resource is None else self.resource

    def claims(self) -> dict[str, Any]:
        """Return the claims, to be signed under ``HEADER`` with a key of purpose ``access-token``.

        Raises:
            AuthorizationError: ``template``: no scope, a lifetime outside 1 to 3600 seconds, or fractions of seconds.
        """
        life = self.expires - self.issued_at
        if not self.scopes or not 0 < life <= MAX_LIFETIME:
            raise AuthorizationError("template", "scope or lifetime")
        if type(self.expires) is not int or type(self.issued_at) is not int:
            raise AuthorizationError("template", "times are whole seconds")
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": self.subject,
            "aud": self.audience,
            "client_id": self.client_id,
            "exp": self.expires,
            "iat": self.issued_at,
            "jti": self.token_id,
            "scope": scope.write(self.scopes),
            "grant_id": self.grant_id,
            "instance": self.fence.instance,
            "epoch": self.fence.epoch,
            "agent": self.agent,
        }
        if self.confirmation is not None:
            claims["cnf"] = self.confirmation.claim()
        if self.actors:
            claims["act"] = delegation.write_actors(self.actors)
        if self.may_act is not None:
            claims["may_act"] = {"sub": self.may_act}
        if self.resource is not None:
            claims["resource"] = self.resource
        if self.details:
            claims["authorization_details"] = list(self.details)
        if self.txn is not None:
            claims["txn"] = self.txn
        return claims


@dataclass(frozen=True, slots=True, kw_only=True)
class Presentation:
    """How a token came: the scheme of the Authorization field, and what the request proved beside it.

    ``certificate`` is the thumbprint of the client certificate of the connection, ``jkt`` that of the key of a
    verified DPoP proof whose ``ath`` is this token; None without one.
    """

    scheme: Literal["Bearer", "DPoP"]
    certificate: str | None = None
    jkt: str | None = None


class AccessTokenVerifier:
    """Reads access tokens of one issuer. ``keys`` are its published keys; no I/O, no clock of its own."""

    __slots__ = ("_issuer", "_profile", "keys")

    def __init__(self, issuer: str, keys: KeySet, *, profile: Profile = PROFILE) -> None:
        self._issuer = issuer
        self._profile = profile
        self.keys = keys
        """Replace it when the issuer publishes others."""

    def read(self, text: str | bytes, *, now: float) -> AccessToken:
        """Verify a token, whoever it is for: steps 1 to 8.

        Raises:
            AuthorizationError: the first step that failed.
        """
        # 1. a well-formed token of kind at+jwt
        try:
            parsed = parse(text, self._profile)
        except JoseError as error:
            raise AuthorizationError(_READING.get(error.reason, "token_malformed"), str(error)) from error
        # 2. iss, octet by octet
        if parsed.unverified.get("iss") != self._issuer:
            raise AuthorizationError("token_issuer")
        # 3, 4. a key of that issuer, the signature, claims, their types, exp, iat
        try:
            claims = verify(parsed, self.keys, now=now).claims
        except JoseError as error:
            raise AuthorizationError(_VERIFYING.get(error.reason, "token_signature"), str(error)) from error
        return _token(claims)

    def accept(
        self,
        text: str | bytes,
        presented: Presentation,
        *,
        audience: str | AbstractSet[str],
        now: float,
        unbound: bool = False,
    ) -> AccessToken:
        """Verify a token at the resource named ``audience`` (or by any of these names): steps 1 to 10.

        ``unbound`` is for resources whose policy says ``bearer``: only there a token without ``cnf`` counts.

        Raises:
            AuthorizationError: the first step that failed.
        """
        token = self.read(text, now=now)
        # 9. aud contains me
        names = {audience} if isinstance(audience, str) else audience
        if token.audience not in names:
            foreign = token.confirmation is not None and not _proved(token.confirmation, presented)
            raise AuthorizationError("token_passthrough" if foreign else "token_audience")
        # 10. scheme, and possession of the key in cnf
        check_presentation(token, presented, unbound=unbound)
        return token


def check_presentation(token: AccessToken, presented: Presentation, *, unbound: bool = False) -> None:
    """Hold a token against how it came: step 10 of ``accept``.

    Raises:
        AuthorizationError: ``token_unbound``, ``token_scheme``, ``token_binding``.
    """
    confirmation = token.confirmation
    if confirmation is None and not unbound:
        raise AuthorizationError("token_unbound")
    by_key = confirmation is not None and confirmation.method == "jkt"
    if presented.scheme != ("DPoP" if by_key else "Bearer"):
        raise AuthorizationError("token_scheme", presented.scheme)
    if confirmation is not None and not _proved(confirmation, presented):
        raise AuthorizationError("token_binding", confirmation.method)


def _proved(confirmation: Confirmation, presented: Presentation) -> bool:
    shown = presented.jkt if confirmation.method == "jkt" else presented.certificate
    return shown is not None and shown == confirmation.thumbprint


def _token(claims: Mapping[str, Any]) -> AccessToken:
    audience, subject = claims["aud"], claims["sub"]
    # 5. the parties
    if type(audience) is not str:
        raise AuthorizationError("token_claims", "one audience, as a string")
    _check_party(claims["client_id"], people=False)
    _check_party(subject, people=True)
    actors = delegation.read_actors(claims.get("act"))
    may_act = delegation.read_may_act(claims.get("may_act"), claims["iss"])
    if subject in actors:
        raise AuthorizationError("actor_twice")
    if len(claims["jti"]) > _MAX_ID or len(claims["grant_id"]) > _MAX_ID:
        raise AuthorizationError("token_claims", "jti or grant_id")
    try:
        # 6. scope and authorization_details
        scopes = scope.parse(claims["scope"])
        listed = claims.get("authorization_details")
        details = () if listed is None else authorization_details.of_claim(listed)
        # 7. the fence
        fence = Fence.of_claims(claims)
    except (AuthorizationError, CredentialError) as error:
        raise AuthorizationError("token_claims", str(error)) from error
    return AccessToken(
        issuer=claims["iss"],
        subject=subject,
        client_id=claims["client_id"],
        audience=audience,
        scopes=scopes,
        issued_at=claims["iat"],
        expires=claims["exp"],
        token_id=claims["jti"],
        grant_id=claims["grant_id"],
        fence=fence,
        confirmation=_confirmation(claims.get("cnf")),
        actors=actors,
        may_act=may_act,
        resource=claims.get("resource"),
        details=details,
        agent=claims.get("agent", False),
        txn=claims.get("txn"),
    )


def _check_party(name: str, *, people: bool) -> None:
    # clients are always SPIFFE IDs and people never, so no client can be taken for a person
    if people and name.startswith("person:"):
        return
    try:
        SpiffeId.parse_workload(name)
    except IdentifierError as error:
        raise AuthorizationError("token_claims", str(error)) from error


def _confirmation(claim: Mapping[str, Any] | None) -> Confirmation | None:
    # 8. cnf: a binding that is not understood must not be dropped, or a bound token would become a bearer
    if claim is None:
        return None
    match list(claim.items()):
        case [("x5t#S256" | "jkt" as method, str(thumbprint))] if is_thumbprint(thumbprint):
            return Confirmation(method, thumbprint)
        case _:
            raise AuthorizationError("token_claims", "cnf holds exactly one of x5t#S256 and jkt")
