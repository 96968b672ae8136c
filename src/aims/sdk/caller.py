"""`Caller`: who made a request and for whom, as the middleware believed it.

@app.route("/refund")
async def refund(request):
    caller = aims.sdk.caller.current()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final

import msgspec

from aims.authentication.liveness import StopName
from aims.sdk.errors import SdkError

SCOPE_KEY: Final = "aims.caller"

Details = tuple[Mapping[str, Any], ...]
"""Authorization details (RFC 9396) that nobody can change: objects are read-only mappings, lists are tuples."""


class Caller(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who made a request.

    ``agent`` is the SPIFFE ID (or WIMSE identifier) of the workload that proved the request; ``subject`` is who it acts
    for, itself where it acts for nobody else; ``actors`` are those between, the outermost (who is ``agent``) first, and
    empty where nobody acts for another. ``resource`` is the id of the policy's row, ``audience`` the name that the
    caller used for it. ``expires`` (Unix seconds) is when its credential ends. ``authorization_details`` are what its
    access token allows exactly (RFC 9396), each with its ``type``; empty where the token says no more than ``scopes``,
    and for callers without a token.
    """

    agent: str
    subject: str
    actors: tuple[str, ...] = ()
    scopes: frozenset[str] = frozenset()
    profile: str
    resource: str
    audience: str
    instance: str | None = None
    grant_id: str | None = None
    thumbprint: str
    expires: float
    epoch: int | None = None
    names: tuple[StopName, ...] = ()
    txn_token: str | None = None
    """The text of a Txn-Token that the proof covers, still to be verified; see `aims.sdk.transactions`."""
    authorization_details: Details = ()

    def __repr__(self) -> str:
        return f"Caller({self.agent}, subject={self.subject}, profile={self.profile})"

    def require_scope(self, *needed: str) -> None:
        """Refuse a caller whose token lacks one of these scopes. Raises: SdkError ``scope_insufficient``."""
        if not needed or not self.scopes.issuperset(needed):
            raise SdkError("scope_insufficient", " ".join(sorted(set(needed) - self.scopes)))

    def require_details(self, kind: str, /, **members: object) -> None:
        """Refuse what none of the authorization details allows: of type ``kind``, with exactly these members, value
        for value and JSON type for type (``1``, ``1.0``, ``True`` and ``"1"`` are four). A caller without details is
        refused too. Raises: SdkError ``details_insufficient``, naming the type and no value.
        """
        wanted = _encode({**members, "type": kind})
        if all(_encode(one) != wanted for one in self.authorization_details):
            raise SdkError("details_insufficient", kind)

    @property
    def session(self) -> tuple[str, str, str | None]:
        """To whom a session belongs: agent, subject and grant. Another one must not take it over."""
        return self.agent, self.subject, self.grant_id


def read_only(details: Iterable[Mapping[str, Any]]) -> Details:
    """Return authorization details in the form that a `Caller` holds."""
    return tuple(_frozen(one) for one in details)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({name: _frozen(member) for name, member in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


_encode = msgspec.json.Encoder(order="deterministic", enc_hook=dict).encode
"""What cannot be JSON is no authorization detail: a TypeError."""

CURRENT: Final[ContextVar[Caller]] = ContextVar("aims_caller")
"""Set and reset by the middleware; read it by `current`."""


def current() -> Caller:
    """Return the caller of the request that this code runs for.

    Raises: SdkError ``no_caller`` outside of a request that the middleware let in.
    """
    try:
        return CURRENT.get()
    except LookupError:
        raise SdkError("no_caller") from None
