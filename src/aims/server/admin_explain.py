"""The administrator's question: what is this token or identifier, does it verify, and which stops end it?

A token is verified as its own verifiers do it, with the key set of its kind; its text is neither stored nor recorded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Final

import msgspec

from aims.audit.people import PERSON, pseudonym
from aims.authentication.liveness import names_of
from aims.authorization import store as grants
from aims.authorization.keys import TokenKeys
from aims.authorization.model import dead, stored
from aims.authorization.transactions.keys import TransactionKeys
from aims.authorization.transactions.routes import ISSUER
from aims.credentials import jwt_svid, wit
from aims.credentials.model import Fence
from aims.errors import AimsError
from aims.jose.door import decode
from aims.provisioning.bundles import domain_bundle
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry.model import Workload
from aims.server.admin import AdminCall, AdminRoute, Body, reading
from aims.server.core import Core
from aims.storage.intent import Plan
from aims.storage.write import Name

MOST_OCTETS: Final = 16 * 1024
KINDS: Final = {
    "at+jwt": "access token",
    "txntoken+jwt": "Txn-Token",
    "wit+jwt": "WIT",
    "JWT": "JWT-SVID",
    "JOSE": "JWT-SVID",
}
_EXPIRED: Final = frozenset({"token_expired", "txn_expired", "wit_expired", "expired"})
# For whom a JWT-SVID is does not matter to whoever asks what it is.
_JWT_SVID: Final = replace(jwt_svid.PROFILE, audience="none")
_INSTANCE: Final = re.compile(r"[A-Za-z0-9._-]+:[a-z0-9]{26}")


class What(Body, frozen=True):
    """The text of a token, or an identifier: SPIFFE ID, person, grant, instance or node."""

    what: Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_OCTETS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What a verified token says of itself. ``expires`` is in Unix seconds."""

    subject: str
    client: str
    audience: str
    grant: str
    expires: float
    epoch: int
    names: tuple[Name, ...]


class ExplainCalls:
    """The administrator's calls over ``core``."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._access = TokenKeys(core.public_url, lambda: core.authority, core.key_store)
        self._transactions = TransactionKeys(core.public_url + ISSUER, lambda: core.authority, core.key_store)

    def routes(self) -> tuple[AdminRoute, ...]:
        """The one route."""
        return (AdminRoute("explain", "POST", "/admin/v1/explain", What, False, self._explain),)

    async def _explain(self, call: AdminCall, body: What) -> Plan[object]:
        # Names have dots too, but no name has two of them and neither colon nor registered node.
        named = ":" in body.what or self._core.registry.has_node(body.what)
        if body.what.count(".") == 2 and not named:
            value = await self._token(body.what, call.now)
            details: dict[str, Any] = {"asked": value["kind"], "verified": value["verified"]}
        else:
            value = await self._identifier(self._long_name(body.what))
            details = {"asked": value["kind"], "known": value["known"]}
        return reading(call, "explain", value, details)

    def _long_name(self, what: str) -> str:
        """Return the SPIFFE ID of an agent or service that is called by its name, and anything else as it is."""
        if ":" in what or self._core.registry.has_node(what):
            return what
        try:
            return str(self._core.registry.workload(what).spiffe_id)
        except ProvisioningError:
            return what

    # --- tokens

    async def _token(self, text: str, now: float) -> dict[str, Any]:
        kind = "token"
        try:
            header, claims = decode(text, MOST_OCTETS)
        except AimsError as error:
            return _refused(kind, error)
        kind = KINDS.get(str(header.get("typ", "JWT")), "token of an unknown kind")
        # Trouble with our own keys says nothing about the token, so it is no answer.
        read = await self._reader(kind)
        try:
            try:
                seen, expired = read(text, now), False
            except AimsError as error:
                # The times are judged last, after the signature: what has merely expired is read as it was before.
                exp = claims.get("exp")
                if error.reason not in _EXPIRED or not isinstance(exp, int | float) or exp > now:
                    raise
                seen, expired = read(text, exp - 1), True
        except AimsError as error:
            return _refused(kind, error)
        ended = dead(seen.names, seen.epoch, self._core.stops)
        return {
            "kind": kind,
            "verified": True,
            "expired": expired,
            "expires": int(seen.expires),
            "subject": seen.subject,
            "client": seen.client,
            "audience": seen.audience,
            "grant": seen.grant,
            "epoch": seen.epoch,
            "stopped": ended is not None,
            "names": [self._named(name, seen.epoch) for name in seen.names],
            "seq": self._core.seq,
        }

    async def _reader(self, kind: str) -> Callable[[str, float], _Seen]:
        core = self._core
        bundle, own = domain_bundle(core.authority), core.trust_domain
        if kind == "access token":
            access = (await self._access.current()).verifier

            def of_access(text: str, now: float) -> _Seen:
                token = access.read(text, now=now)
                return _Seen(
                    subject=token.subject,
                    client=token.client_id,
                    audience=token.audience,
                    grant=token.grant_id,
                    expires=token.expires,
                    epoch=token.epoch,
                    names=stored(token.names),
                )

            return of_access
        if kind == "Txn-Token":
            transactions = (await self._transactions.current()).verifier

            def of_transaction(text: str, now: float) -> _Seen:
                token = transactions.read(text, now=now)
                return _Seen(
                    subject=token.subject,
                    client=token.requester,
                    audience=own.name,
                    grant=token.grant_id,
                    expires=token.expires,
                    epoch=token.epoch,
                    names=stored(token.names),
                )

            return of_transaction

        def of_svid(text: str, now: float) -> _Seen:
            if kind == "WIT":
                found = wit.validate(text, {own.uri: bundle.wit_keys}, now=now, own=own, profile=wit.WIT_SVID)
                subject, fence, expires, audience = str(found.subject), found.fence, found.expires, ""
            else:
                svid = jwt_svid.validate(
                    text, {own: bundle.jwt_keys}, audience=frozenset(), now=now, own=own, profile=_JWT_SVID
                )
                subject, fence, expires = str(svid.subject), svid.fence, svid.expires
                audience = " ".join(svid.audience)
            assert fence is not None  # noqa: S101  only our own domain has keys here
            names = stored(names_of(subject, instance=fence.instance))
            return _Seen(
                subject=subject,
                client="",
                audience=audience,
                grant="",
                expires=expires,
                epoch=fence.epoch,
                names=names,
            )

        return of_svid

    # --- identifiers

    async def _identifier(self, text: str) -> dict[str, Any]:
        core, registry = self._core, self._core.registry
        if text.startswith("spiffe://"):
            node = next((each for each in registry.nodes if str(each.spiffe_id) == text), None)
            if node is not None:
                return self._of("node", text, str(node.state), (Name("node", node.id),))
            workload = next((each for each in registry.workloads if str(each.spiffe_id) == text), None)
            return self._of("agent", text, _state(workload), (Name("agent", text),))
        if PERSON.fullmatch(text):
            known = await core.database.read(lambda connection: _is_person(connection, text))
            return self._of("person", text, "known" if known else "", (Name("person", text),))
        if _INSTANCE.fullmatch(text):
            names = (Name("instance", text), Name("node", Fence(text, 0).node))
            return self._of("instance", text, "named" if registry.has_node(names[1].id) else "", names)
        if registry.has_node(text):
            return self._of("node", text, str(registry.node(text).state), (Name("node", text),))
        return await self._grant(text)

    async def _grant(self, text: str) -> dict[str, Any]:
        if text.startswith(grants.STANDING):
            workloads = self._core.registry.workloads
            workload = next((each for each in workloads if grants.standing_grant(each.name) == text), None)
            return self._of("grant", text, _state(workload), (Name("grant", text),))
        row = await self._core.database.read(partial(grants.find, grant_id=text[:128]))
        root = text if row is None else row.root
        state = "" if row is None else f"given to {row.agent} by {row.giver}"
        return self._of("grant", text, state, (Name("grant", root),))

    def _of(self, kind: str, text: str, state: str, names: Iterable[Name]) -> dict[str, Any]:
        named = [self._named(name, None) for name in names]
        known = bool(state) or any(each["stop"] for each in named)
        return {"kind": kind, "id": text, "known": known, "state": state, "names": named, "seq": self._core.seq}

    def _named(self, name: Name, epoch: int | None) -> dict[str, Any]:
        stop = self._core.stops.get(name)
        return {
            "kind": name.kind,
            "id": name.id,
            "stop": None if stop is None else {"seq": stop.seq, "blocked": stop.blocked},
            "ends": stop is not None and (stop.blocked or (epoch is not None and epoch < stop.seq)),
        }


def _refused(kind: str, error: AimsError) -> dict[str, Any]:
    return {"kind": kind, "verified": False, "code": error.code, "why": error.sentence, "hint": error.hint}


def _state(workload: Workload | None) -> str:
    return "" if workload is None else str(workload.state)


def _is_person(connection: Any, sub: str) -> bool:
    try:
        pseudonym(connection, sub)
    except AimsError:
        return False
    return True
