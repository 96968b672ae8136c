"""The rows of ``tables.toml``: frozen, typed, and refused when a column is unknown, missing or out of its limits."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from aims.identifiers import SpiffeId, TrustDomain

CREDENTIAL_LIMITS: dict[str, int] = {
    "x509-svid": 24 * 3600,
    "wit": 24 * 3600,
    "jwt-svid": 600,
    "access-token": 3600,
    "txn-token": 300,
    "authorization-code": 60,
    "pushed-request": 90,
    "approval-request": 600,
    "wpt": 600,
    "http-signature": 600,
    "dpop-proof": 300,
    "join-token": 3600,
    "login-link": 600,
}
"""Seconds that no policy can exceed, by kind of credential."""

MAX_STALE_LIMIT = 10
"""Seconds that an enforcement point may go on without news of stops, at most."""

ACTIONS_OF_SIGNALS = ("record", "revoke", "quarantine", "suspend", "retire")
"""What a signal may cause, weakest first: note it, end tokens and grants, stop one instance, stop the agent until it
is resumed, end the agent for good."""

Credential: TypeAlias = Literal[
    "x509-svid", "wit", "jwt-svid", "access-token", "txn-token", "authorization-code", "pushed-request",
    "approval-request", "wpt", "http-signature", "dpop-proof", "join-token", "login-link",
]  # fmt: skip
Profile: TypeAlias = Literal["wimse", "wimse-method-bound", "oauth-signed", "oauth-bound", "bearer"]
SignalAction: TypeAlias = Literal["record", "revoke", "quarantine", "suspend", "retire"]
SignalEffect: TypeAlias = Literal["record", "revoke", "suspend", "retire", "resume"]

_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+"
_DOMAIN = r"spiffe://[a-z0-9._-]{1,255}"
# One spelling per URL: no default port, no percent-encoding, no empty or dot segment but a last slash.
_HTTPS = (
    r"https://(?:[a-z0-9-]+(?:\.[a-z0-9-]+)*|\[[0-9a-f:.]+\])"
    r"(?::(?!443(?:/|\Z))[1-9][0-9]{0,4})?"
    r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~!$&'()*+,;=:@-]+)*/?"
)

RowName: TypeAlias = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9-]{0,63}\Z")]
Word: TypeAlias = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9_-]{0,63}\Z")]
Scope: TypeAlias = Annotated[str, Meta(pattern=r"\A[\x21\x23-\x5b\x5d-\x7e]{1,128}\Z")]  # scope-token, RFC 6749 3.3
Path: TypeAlias = Annotated[str, Meta(pattern=rf"\A(?:{_DOMAIN})?(?:/{_SEGMENT})+\Z", max_length=1700)]
Pattern: TypeAlias = Annotated[
    str, Meta(pattern=rf"\A(?:{_DOMAIN})?(?:/(?:\*(?=/|\Z)|{_SEGMENT}))+\Z", max_length=2048)
]
Url: TypeAlias = Annotated[str, Meta(pattern=rf"\A{_HTTPS}\Z", max_length=2048)]
Uri: TypeAlias = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9+.-]*:[\x21-\x7e]+\Z", max_length=2048)]
Audience: TypeAlias = Annotated[str, Meta(pattern=r"\A[\x21-\x7e]{1,2048}\Z")]


class Row(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One row; ``name`` is unique in its table, so that a decision can name it."""

    name: RowName


def _distinct(column: str, values: tuple[str, ...]) -> None:
    if len(set(values)) != len(values):
        raise ValueError(f"{column} names something twice")


class Identifier(Row, frozen=True):
    """A namespace in which names may be registered; ``*`` in ``pattern`` stands for exactly one path segment."""

    kind: Literal["agent", "service", "node"]
    pattern: Pattern


class Posture(Row, frozen=True):
    """A posture that is known here (its ``name``), and what it rules out. An unlisted posture is refused."""

    high: bool
    """May an agent in this posture hold scopes that a resource marks ``high``?"""
    delegation: bool
    """May it delegate to other agents?"""


class Ceiling(Row, frozen=True):
    """The scopes that an agent (a pattern) or a posture may hold at one resource, at most."""

    resource: RowName
    scopes: Annotated[tuple[Scope, ...], Meta(max_length=256)]
    agent: Pattern | None = None
    posture: RowName | None = None

    def __post_init__(self) -> None:
        if (self.agent is None) == (self.posture is None):
            raise ValueError("a ceiling names either agent or posture")
        _distinct("scopes", self.scopes)


class Lifetime(Row, frozen=True):
    """Seconds that a kind of credential lives, at most; with ``posture`` the row narrows that posture only."""

    credential: Credential
    seconds: Annotated[int, Meta(ge=1)]
    posture: RowName | None = None

    def __post_init__(self) -> None:
        limit = CREDENTIAL_LIMITS[self.credential]
        if self.seconds > limit:
            raise ValueError(f"seconds of {self.credential} is over the limit of {limit}")


class Resource(Row, frozen=True):
    """A protected resource: its ``name`` is its id. Exactly one call profile; no audience is shared with another."""

    url: Url
    peer: Path
    """The SPIFFE ID that must stand behind ``url``; a bare path is an identifier of the own trust domain."""
    profile: Profile
    audiences: Annotated[tuple[Audience, ...], Meta(min_length=1, max_length=16)]
    scopes: Annotated[tuple[Scope, ...], Meta(max_length=256)]
    high: Annotated[tuple[Scope, ...], Meta(max_length=256)] = ()
    max_stale: Annotated[int, Meta(ge=3, le=MAX_STALE_LIMIT)] = MAX_STALE_LIMIT
    on_unknown: Literal["refuse", "introspect"] = "refuse"

    def __post_init__(self) -> None:
        _distinct("audiences", self.audiences)
        _distinct("scopes", self.scopes)
        _distinct("high", self.high)
        if not set(self.high) <= set(self.scopes):
            raise ValueError("high marks a scope that the resource does not have")
        if self.on_unknown == "introspect" and self.profile.startswith("wimse"):
            raise ValueError("on_unknown: there is no access token to introspect under a wimse profile")


class Client(Row, frozen=True):
    """Agents (a pattern) that may authenticate at the authorization server in a way that is off for others."""

    agent: Pattern
    method: Literal["spiffe_jwt"]


class Detail(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One member of a purpose's request details. Members that no row lists are refused."""

    member: Word
    type: Literal["string", "integer", "boolean"]
    required: bool = True
    values: Annotated[tuple[str, ...], Meta(max_length=256)] = ()
    """For strings: the only values allowed; empty means any string up to ``max_length``."""
    max_length: Annotated[int, Meta(ge=1, le=1024)] | None = None
    minimum: int | None = None
    maximum: int | None = None

    def __post_init__(self) -> None:
        integer = self.type == "integer"
        if integer != (self.minimum is not None) or integer != (self.maximum is not None):
            raise ValueError("minimum and maximum belong to an integer, both")
        if (
            self.minimum is not None
            and self.maximum is not None
            and not -(2**53) < self.minimum <= self.maximum < 2**53
        ):
            raise ValueError("minimum and maximum are in order and below 2^53")
        if (self.type == "string") != (bool(self.values) != (self.max_length is not None)):
            raise ValueError("a string has either values or max_length, nothing else has")
        _distinct("values", self.values)


class Purpose(Row, frozen=True):
    """A purpose of Txn-Tokens (the token's ``scope``), open to who holds *every one* of ``scopes`` for ``resource``."""

    purpose: Scope
    resource: RowName
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1, max_length=64)]
    lifetime: Annotated[int, Meta(ge=1, le=CREDENTIAL_LIMITS["txn-token"])]
    single_use: bool
    details: Annotated[tuple[Detail, ...], Meta(max_length=64)] = ()
    replacers: Annotated[tuple[Pattern, ...], Meta(max_length=64)] = ()
    """Patterns of the workloads that may ask with a Txn-Token of this purpose for one of their own; empty is nobody."""

    def __post_init__(self) -> None:
        _distinct("scopes", self.scopes)
        _distinct("replacers", self.replacers)
        _distinct("details", tuple(detail.member for detail in self.details))


class Transmitter(Row, frozen=True):
    """Whom another party's security events may hit, and how hard."""

    issuer: Url
    people: bool
    """May it speak of the people that are mapped to this issuer?"""
    subjects: Annotated[tuple[Pattern, ...], Meta(max_length=64)]
    """Patterns of the SPIFFE IDs that it may speak of."""
    events: Annotated[tuple[Uri, ...], Meta(min_length=1, max_length=64)]
    strongest: SignalAction
    per_minute: Annotated[int, Meta(ge=1, le=6000)]

    def __post_init__(self) -> None:
        if not self.people and not self.subjects:
            raise ValueError("a transmitter that may speak of nobody has no use")
        _distinct("subjects", self.subjects)
        _distinct("events", self.events)


class Remedy(Row, frozen=True):
    """What another party's event causes where its transmitter may cause it. An event without a row is only noted."""

    event: Uri
    effect: SignalEffect


class Operator(Row, frozen=True):
    """Who administers, in which roles: ``server`` (the user of the server process), ``uid:1001`` or ``user:alice``."""

    who: Annotated[
        str, Meta(pattern=r"\A(?:server|uid:(?:0|[1-9][0-9]{0,9})|user:[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63})\Z")
    ]
    roles: Annotated[tuple[Word, ...], Meta(min_length=1, max_length=16)]

    def __post_init__(self) -> None:
        _distinct("roles", self.roles)


_ROWS = Meta(max_length=4096)


class Rows(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All tables of a bundle. A table that is left out is empty, and empty allows nothing."""

    identifiers: Annotated[tuple[Identifier, ...], _ROWS] = ()
    postures: Annotated[tuple[Posture, ...], _ROWS] = ()
    ceilings: Annotated[tuple[Ceiling, ...], _ROWS] = ()
    lifetimes: Annotated[tuple[Lifetime, ...], _ROWS] = ()
    resources: Annotated[tuple[Resource, ...], _ROWS] = ()
    clients: Annotated[tuple[Client, ...], _ROWS] = ()
    purposes: Annotated[tuple[Purpose, ...], _ROWS] = ()
    transmitters: Annotated[tuple[Transmitter, ...], _ROWS] = ()
    remedies: Annotated[tuple[Remedy, ...], _ROWS] = ()
    operators: Annotated[tuple[Operator, ...], _ROWS] = ()


def matches(pattern: str, spiffe_id: SpiffeId, own: TrustDomain) -> bool:
    """Whether the SPIFFE ID fits the pattern, octet by octet; a pattern without a domain means ``own``.

    ``*`` stands for exactly one segment: ``/agents/*`` does not match a sub-identity ``/agents/a/sub/b``.
    """
    domain, _, path = pattern.removeprefix("spiffe://").partition("/")
    if spiffe_id.trust_domain.name != (domain or own.name):
        return False
    wanted, segments = path.split("/"), spiffe_id.segments
    return len(wanted) == len(segments) and all(
        one in ("*", other) for one, other in zip(wanted, segments, strict=True)
    )
