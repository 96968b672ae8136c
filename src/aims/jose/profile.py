"""A profile: everything that the door has to know about one kind of token, as data.

A token's kind is a table, not code: which ``typ`` and algorithms, which header members, which claims of which type.
A new kind is a new table, and the same list of hostile tokens is run against each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aims.jose.algorithms import ALL_ALGORITHMS
from aims.jose.claims import CHECKS, ClaimKind

MAX_LEEWAY = 60  # seconds


KidRule = Literal["required", "optional", "ignored"]
AudienceRule = Literal["string", "single", "any", "none"]


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """One kind of token.

    ``typ``: the accepted values; with ``media_type`` they are compared as RFC 7515 4.1.9 says (letter case and an
    ``application/`` prefix do not matter), else octet by octet. Without ``typ_required`` it may be absent.

    ``kid``: *required* and *optional* identifiers choose the key; *ignored* leaves the choice to the caller, who hands
    in one key. Without an identifier the one key that fits the algorithm is taken; ``try_each`` takes each in turn.

    ``headers``: members allowed beside alg, typ, kid and crit; others are refused, or passed over with
    ``ignore_unknown_headers``. Members that carry or point to keys (jwk, jku, x5u, x5c) and b64 are always refused
    unless listed here. No extension is understood, so every ``crit`` is refused.

    ``required`` and ``optional``: claims and their types. Claims in neither table are let through unchecked unless
    ``unknown_claims`` is false; ``forbidden`` ones refuse the token (``claim_type``).

    ``audience``: the verifier's audience must be the ``aud`` *string*, the *single* element, or among *any* of them;
    *none* leaves ``aud`` to the caller.

    ``max_lifetime`` (seconds) bounds ``exp`` from now, and from ``iat``. ``judge_iat`` false makes ``iat`` mere
    information, as WIT-SVID demands. ``leeway`` (seconds, at most 60) is granted to every comparison of times.

    ``subject`` turns ``sub`` into a value and raises ``AimsError`` for one that is none.

    A profile is compared by identity.
    """

    name: str
    algorithms: frozenset[str]
    typ: tuple[str, ...]
    required: Mapping[str, ClaimKind]
    optional: Mapping[str, ClaimKind] = field(default_factory=dict)
    forbidden: frozenset[str] = frozenset()
    unknown_claims: bool = True
    typ_required: bool = True
    media_type: bool = True
    kid: KidRule = "required"
    try_each: bool = False
    headers: frozenset[str] = frozenset()
    ignore_unknown_headers: bool = False
    audience: AudienceRule = "none"
    judge_iat: bool = True
    max_lifetime: int | None = None
    max_octets: int = 8192
    leeway: int = 5
    subject: Callable[[str], Any] | None = None
    checks: Mapping[str, Callable[[Any], bool]] = field(init=False, repr=False)
    required_names: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.algorithms or not self.algorithms <= ALL_ALGORITHMS:
            raise ValueError(f"{self.name}: algorithms")
        if not self.typ or not 0 <= self.leeway <= MAX_LEEWAY:
            raise ValueError(f"{self.name}: typ or leeway")
        if self.audience != "none" and self.required.get("aud") is not ClaimKind.AUDIENCE:
            raise ValueError(f"{self.name}: a judged audience must be required")
        if self.subject is not None and self.required.get("sub") is not ClaimKind.STRING:
            raise ValueError(f"{self.name}: a judged subject must be required")
        if self.max_lifetime is not None and "exp" not in self.required:
            raise ValueError(f"{self.name}: a bounded lifetime needs exp")
        claims = {**self.optional, **self.required}
        if len(claims) != len(self.optional) + len(self.required) or self.forbidden & claims.keys():
            raise ValueError(f"{self.name}: a claim stands in two tables")
        # RFC 7519: whatever a table leaves out, times are times; else a later use would meet an unchecked type.
        for name in {"exp", "nbf", "iat"} - self.forbidden:
            if claims.setdefault(name, ClaimKind.NUMERIC_DATE) is not ClaimKind.NUMERIC_DATE:
                raise ValueError(f"{self.name}: {name} is a NumericDate")
        object.__setattr__(self, "checks", {name: CHECKS[kind] for name, kind in claims.items()})
        object.__setattr__(self, "required_names", frozenset(self.required))
        object.__setattr__(self, "typ", tuple(self.comparable_typ(value) for value in self.typ))

    def comparable_typ(self, value: str) -> str:
        """Return ``value`` in the form in which this profile compares ``typ``."""
        return value.lower().removeprefix("application/") if self.media_type else value
