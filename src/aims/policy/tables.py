"""How much: the lookups in the typed tables of a bundle. The lowest row wins, and every answer names its rows."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from aims.identifiers import SpiffeId, TrustDomain
from aims.policy.errors import PolicyError
from aims.policy.rows import (
    ACTIONS_OF_SIGNALS,
    CREDENTIAL_LIMITS,
    Ceiling,
    Credential,
    Detail,
    Identifier,
    Lifetime,
    Posture,
    Purpose,
    Resource,
    Row,
    Rows,
    SignalAction,
    SignalEffect,
    Transmitter,
    matches,
)


def parse(text: str) -> Rows:
    """Parse ``tables.toml`` and check the rows against each other.

    Raises:
        PolicyError: ``tables_syntax``, ``tables_row``, ``tables_twice`` or ``tables_unknown``.
    """
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise PolicyError("tables_syntax", str(error)) from error
    try:
        rows = msgspec.convert(data, Rows, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise PolicyError("tables_row", str(error)) from error
    _check(rows)
    return rows


def _once(table: str, rows: Iterable[tuple[str, str]]) -> None:
    """Refuse the second row that claims the same thing; the pairs are (what is claimed, name of the row)."""
    seen: dict[str, str] = {}
    for claimed, name in rows:
        if claimed in seen:
            raise PolicyError("tables_twice", f"{table}: rows {seen[claimed]} and {name} both claim {claimed!r}")
        seen[claimed] = name


def _check(rows: Rows) -> None:
    for table in rows.__struct_fields__:
        entries: tuple[Row, ...] = getattr(rows, table)
        _once(table, ((entry.name, entry.name) for entry in entries))
    _once("identifiers", ((row.pattern, row.name) for row in rows.identifiers))
    _once("ceilings", ((f"{row.agent or row.posture} at {row.resource}", row.name) for row in rows.ceilings))
    _once("lifetimes", ((f"{row.credential} {row.posture or 'everywhere'}", row.name) for row in rows.lifetimes))
    _once("resources", ((row.url, row.name) for row in rows.resources))
    _once("resources", ((audience, row.name) for row in rows.resources for audience in row.audiences))
    _once("clients", ((f"{row.method} of {row.agent}", row.name) for row in rows.clients))
    _once("purposes", ((row.purpose, row.name) for row in rows.purposes))
    _once("transmitters", ((row.issuer, row.name) for row in rows.transmitters))
    _once("remedies", ((row.event, row.name) for row in rows.remedies))
    _once("operators", ((row.who, row.name) for row in rows.operators))

    postures = {row.name for row in rows.postures}
    resources = {row.name: set(row.scopes) for row in rows.resources}
    narrowed: list[Ceiling | Lifetime] = [*rows.ceilings, *rows.lifetimes]
    for narrow in narrowed:
        if narrow.posture is not None and narrow.posture not in postures:
            raise PolicyError("tables_unknown", f"row {narrow.name} names the posture {narrow.posture}")
    placed: list[Ceiling | Purpose] = [*rows.ceilings, *rows.purposes]
    for place in placed:
        if place.resource not in resources:
            raise PolicyError("tables_unknown", f"row {place.name} names the resource {place.resource}")
        if unknown := sorted(set(place.scopes) - resources[place.resource]):
            raise PolicyError("tables_unknown", f"row {place.name}: {place.resource} has no scopes {unknown}")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What an agent may hold at one resource, at most. Empty means nothing.

    ``rows`` are the rows that were applied; ``cut`` says for each scope of the resource that is not in ``scopes``
    which row took it away, or ``ceilings`` when no row gives it.
    """

    resource: str
    scopes: frozenset[str]
    rows: tuple[str, ...]
    cut: Mapping[str, str]

    def require(self, wanted: Collection[str]) -> None:
        """Refuse (``policy.ceiling``, the row in the detail) unless ``wanted`` is something and all of it allowed."""
        if not wanted:
            raise PolicyError("ceiling", f"no scope at {self.resource} was asked for, and empty means nothing")
        for scope in sorted(wanted):
            if scope not in self.scopes:
                row = self.cut.get(scope, f"resources.{self.resource}")
                raise PolicyError("ceiling", f"scope {scope!r} at {self.resource} ends at {row}")


@dataclass(frozen=True, slots=True)
class Lifespan:
    """Seconds that a credential may live, at most, and the row that says so."""

    seconds: int
    row: str


class Tables:
    """The lookups, for one trust domain. Immutable, safe for threads, no I/O.

    Agents are named by their SPIFFE ID, so that a foreign domain's ``/agents/a`` never meets a row of ours. Raises
    ``IdentifierError`` if ``trust_domain`` is none.
    """

    __slots__ = (
        "_audiences",
        "_ceilings",
        "_own",
        "_purposes",
        "_remedies",
        "_resources",
        "_transmitters",
        "postures",
        "rows",
    )

    def __init__(self, rows: Rows, trust_domain: str) -> None:
        self.rows = rows
        self._own = TrustDomain(trust_domain)
        self.postures: Mapping[str, Posture] = MappingProxyType({row.name: row for row in rows.postures})
        self._resources = {row.name: row for row in rows.resources}
        self._audiences = {audience: row for row in rows.resources for audience in row.audiences}
        self._purposes = {row.purpose: row for row in rows.purposes}
        self._transmitters = {row.issuer: row for row in rows.transmitters}
        self._remedies = {row.event: row.effect for row in rows.remedies}
        self._ceilings = {
            resource: tuple(row for row in rows.ceilings if row.resource == resource) for resource in self._resources
        }

    def identifier(self, kind: str, spiffe_id: SpiffeId) -> Identifier:
        """Return the row under which ``spiffe_id`` may be registered as ``kind``, else refuse ``policy.identifier``."""
        for row in self.rows.identifiers:
            if row.kind == kind and matches(row.pattern, spiffe_id, self._own):
                return row
        raise PolicyError("identifier", f"{kind} {spiffe_id}")

    def posture(self, posture: str) -> Posture:
        """Return the row of a posture; an unknown one is refused (``policy.posture``)."""
        row = self.postures.get(posture)
        if row is None:
            raise PolicyError("posture", repr(posture[:200]))
        return row

    def require_delegation(self, posture: str) -> None:
        """Refuse (``policy.delegation``) unless agents in this posture may delegate."""
        if not self.posture(posture).delegation:
            raise PolicyError("delegation", f"postures.{posture}")

    def resource(self, name: str) -> Resource:
        """Return a resource by its id, else refuse ``policy.resource``."""
        row = self._resources.get(name)
        if row is None:
            raise PolicyError("resource", repr(name[:200]))
        return row

    def resource_for(self, audience: str) -> Resource:
        """Return the one resource that accepts this audience (octet by octet), else refuse ``policy.resource``."""
        row = self._audiences.get(audience)
        if row is None:
            raise PolicyError("resource", f"audience {audience[:200]!r}")
        return row

    def may_authenticate(self, agent: SpiffeId, method: str) -> bool:
        """Whether a row of ``clients`` lets ``agent`` authenticate by a method that is off for others."""
        return any(row.method == method and matches(row.agent, agent, self._own) for row in self.rows.clients)

    def peer(self, resource: Resource) -> SpiffeId:
        """Return the SPIFFE ID that must stand behind the resource's URL."""
        text = f"{self._own.uri}{resource.peer}" if resource.peer.startswith("/") else resource.peer
        return SpiffeId.parse_workload(text)

    def ceiling(self, agent: SpiffeId, posture: str, resource: str) -> Allowance:
        """Return what ``agent`` in ``posture`` may hold at ``resource``: what all matching rows share.

        At least one row must name the agent; rows of postures only narrow. Raises ``policy.posture`` and
        ``policy.resource`` for what no row defines; an agent without a row gets an empty ceiling.
        """
        target = self.resource(resource)
        state = self.posture(posture)
        own = [row for row in self._ceilings[resource] if row.agent and matches(row.agent, agent, self._own)]
        if not own:
            return Allowance(resource, frozenset(), (), MappingProxyType(dict.fromkeys(target.scopes, "ceilings")))
        limits = [
            (f"ceilings.{row.name}", frozenset(row.scopes))
            for row in (*own, *(row for row in self._ceilings[resource] if row.posture == posture))
        ]
        if not state.high:
            limits.append((f"postures.{posture}", frozenset(target.scopes) - frozenset(target.high)))
        cut: dict[str, str] = {}
        for scope in target.scopes:
            for row, allowed in limits:
                if scope not in allowed:
                    cut[scope] = row
                    break
        return Allowance(
            resource,
            frozenset(target.scopes) - frozenset(cut),
            tuple(row for row, _ in limits),
            MappingProxyType(cut),
        )

    def lifetime(self, credential: Credential, posture: str | None = None) -> Lifespan:
        """Return the shortest life that a matching row gives, never above the limit of the kind.

        One row without posture must exist (``policy.lifetime``), rows of ``posture`` only narrow it. ``posture`` is
        None where no posture is known by nature (a login link); an unknown one is refused (``policy.posture``).
        """
        if posture is not None:
            self.posture(posture)
        rows = [row for row in self.rows.lifetimes if row.credential == credential and row.posture in (None, posture)]
        if all(row.posture is not None for row in rows):
            raise PolicyError("lifetime", repr(credential))
        lowest = min(rows, key=lambda row: (row.seconds, row.name))
        return Lifespan(min(lowest.seconds, CREDENTIAL_LIMITS[credential]), f"lifetimes.{lowest.name}")

    def purpose(self, purpose: str, resource: str, scopes: Collection[str]) -> Purpose:
        """Return the row of a Txn-Token purpose if ``scopes``, held for ``resource``, hold all that it asks for.

        Raises ``policy.purpose`` for an unknown purpose, another resource's token, or missing scopes.
        """
        row = self._purposes.get(purpose)
        if row is None:
            raise PolicyError("purpose", repr(purpose[:200]))
        if row.resource != resource:
            raise PolicyError("purpose", f"purposes.{row.name} asks for a token of {row.resource}")
        if missing := sorted(set(row.scopes) - set(scopes)):
            raise PolicyError("purpose", f"purposes.{row.name} asks for the scopes {missing}")
        return row

    def may_replace(self, purpose: Purpose, workload: SpiffeId) -> bool:
        """Tell whether a workload may replace a Txn-Token of this purpose by one of its own."""
        return any(matches(pattern, workload, self._own) for pattern in purpose.replacers)

    def transmitter(self, issuer: str, event: str, subject: SpiffeId | None, action: SignalAction) -> Transmitter:
        """Return the transmitter's row if it may cause ``action`` on ``subject`` by ``event``.

        ``subject`` is a SPIFFE ID, or None for a person who is mapped to this issuer. Raises
        ``policy.transmitter``.
        """
        row = self._transmitters.get(issuer)
        if row is None:
            raise PolicyError("transmitter", f"no row for the issuer {issuer[:200]!r}")
        if event not in row.events:
            raise PolicyError("transmitter", f"transmitters.{row.name} does not list the event {event[:200]!r}")
        speaks = row.people if subject is None else any(matches(one, subject, self._own) for one in row.subjects)
        if not speaks:
            raise PolicyError("transmitter", f"transmitters.{row.name} does not speak of {subject or 'people'}")
        if ACTIONS_OF_SIGNALS.index(action) > ACTIONS_OF_SIGNALS.index(row.strongest):
            raise PolicyError("transmitter", f"transmitters.{row.name} ends at {row.strongest}")
        return row

    def per_minute(self, issuer: str) -> int:
        """Return how many events a minute a transmitter may send; 0 without a row."""
        row = self._transmitters.get(issuer)
        return 0 if row is None else row.per_minute

    def remedy(self, event: str) -> SignalEffect:
        """Return what an event causes; without a row it is only noted."""
        return self._remedies.get(event, "record")

    def roles(self, uid: int, user: str, server_uid: int) -> tuple[frozenset[str], tuple[str, ...]]:
        """Return the roles of a peer of the administrator's socket and the rows that give them; none is no role.

        ``user`` is the name that the system gives to ``uid``, or "" if it has none.
        """
        names = {f"uid:{uid}"} | ({f"user:{user}"} if user else set()) | ({"server"} if uid == server_uid else set())
        found = [row for row in self.rows.operators if row.who in names]
        return (
            frozenset(role for row in found for role in row.roles),
            tuple(f"operators.{row.name}" for row in found),
        )


def check_details(purpose: Purpose, details: Mapping[str, object]) -> None:
    """Refuse (``policy.details``) request details that the purpose does not describe member for member.

    Unknown members, missing required ones, other types, values out of range, and strings that are empty or hold
    anything that does not print are refused: people are shown these values, and must not be misled by how they look.
    """
    known = {detail.member: detail for detail in purpose.details}
    for member in details:
        if member not in known:
            raise PolicyError("details", f"purposes.{purpose.name} has no member {member[:100]!r}")
    for member, detail in known.items():
        if member not in details:
            if detail.required:
                raise PolicyError("details", f"purposes.{purpose.name} asks for the member {member}")
        elif not _fits(detail, details[member]):
            raise PolicyError("details", f"purposes.{purpose.name} does not allow this value of {member}")


def _fits(detail: Detail, value: object) -> bool:
    if detail.type == "boolean":
        return isinstance(value, bool)
    if detail.type == "integer":
        if not isinstance(value, int) or isinstance(value, bool) or detail.minimum is None or detail.maximum is None:
            return False
        return detail.minimum <= value <= detail.maximum
    if not isinstance(value, str) or not value.isprintable():
        return False
    return value in detail.values if detail.values else 0 < len(value) <= (detail.max_length or 0)
