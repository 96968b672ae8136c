"""Consent: a request waits, its person decides, and a grant and its code are made in the Write of the decision.

For each person, agent and scope one request waits at a time, so an agent cannot wear somebody down by asking again; a
newer one takes the older one's place. A request that was decided or replaced is gone; of two decisions one counts.

Steps of ``decide``: 1. the request is this person's, waits, and has not expired; 2. the agent is still active, and what
a yes gives under the policy of now is exactly what the page showed (its digest comes back with the form); 3. one Write:
nobody was stopped, the request is used up, and with a yes there is one grant, whose root it is, and one code of sixty
seconds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from aims.audit.record import recorder
from aims.authorization import scope as scopes
from aims.authorization import store as grants
from aims.authorization.authorization_details import Details
from aims.authorization.errors import AuthorizationError
from aims.authorization.form import Form
from aims.authorization.model import Memory, dead
from aims.authorization.people import redirect, request, store
from aims.authorization.people.errors import PeopleError
from aims.authorization.people.login import Session
from aims.authorization.people.request import Addressee, AuthorizationRequest
from aims.authorization.people.store import CodeRow, Pending, hashed
from aims.authorization.store import Grant
from aims.jose import base64url
from aims.policy.errors import PolicyError
from aims.policy.rows import Resource
from aims.policy.tables import Tables
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry.model import State, Workload
from aims.storage.database import Database
from aims.storage.intent import Plan
from aims.storage.write import Change, Name, Outcome, Stop, Verdict, Write

CODE_OCTETS: Final = 32
MOST_WAITING: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A request as its page tells it. ``until`` (Unix seconds) is the latest end of what a yes would give."""

    pending: Pending
    agent: Workload
    resource: Resource
    scopes: tuple[str, ...]
    details: Details
    until: int
    digest: str
    """SHA-256, base64url, of what a yes covers; the form carries it back."""


@dataclass(frozen=True, slots=True)
class Redirection:
    """Where the browser goes next."""

    url: str


class ConsentService:
    """Takes requests in, shows them, decides and withdraws. ``issuer`` is the authorization server's identifier."""

    def __init__(self, memory: Memory, database: Database, issuer: str) -> None:
        self._memory = memory
        self._database = database
        self._issuer = issuer

    # --- the request

    async def addressee(self, form: Form) -> Addressee:
        """Find out who would get an answer: steps 2 and 3 of `aims.authorization.people.request`.

        Raises:
            PeopleError: ``request_client``, ``request_redirect``, ``request_parameters``: there is nobody to answer to.
        """
        agent = request.client_of(form, self._memory.registry)
        registered = await self._database.read(lambda connection: store.redirects(connection, agent.name))
        return request.addressee(form, self._memory.registry, registered)

    def examine(self, form: Form, to: Addressee) -> AuthorizationRequest:
        """Steps 4 to 7 of `aims.authorization.people.request`; what they refuse is for the agent to know."""
        return request.examine(form, to, self._memory.policy.tables)

    def error(self, to: Addressee, error: PeopleError) -> Redirection:
        """Return where a refusal goes that is for the agent to know."""
        parameters = (
            ("error", error.standard or "invalid_request"),
            ("error_description", error.sentence),
            ("state", to.state),
            ("iss", self._issuer),
        )
        return Redirection(redirect.response(to.redirect_uri, parameters))

    async def wait(self, asked: AuthorizationRequest, session: Session) -> Plan[Pending] | Pending:
        """Let a request wait for its person; one that waits already is returned as it is.

        Another one for the same slot takes the place of the one that waits, whose id is used up with that.

        Raises:
            PeopleError: ``pending_many``; on commit ``pending_other``. PolicyError ``lifetime``.
        """
        memory = self._memory
        now = int(memory.clock.now())
        waiting = await self._database.read(lambda connection: store.waiting(connection, session.person.sub, now))
        seen = self._moment(session)
        row = self._pending(asked, session, now)
        older = next((other for other in waiting if other.slot == row.slot), None)
        if older is not None and older.digest == row.digest:
            return older
        if older is None and len(waiting) >= MOST_WAITING:
            raise PeopleError("pending_many")
        record = recorder(
            refuse="person.refuse",
            **self._fields("approval.request", row, session),
            decision={"effect": "permit", "reason": "waits for the person"},
        )
        write = Write(
            record=record,
            names=(session.name, Name("agent", row.agent)),
            seen=seen,
            consume=None if older is None else older.consume,
            effects=store.pending_inserted(row, now) if older is None else store.pending_replaced(older, row),
        )
        return Plan(write, lambda outcome: _settled(outcome, row, "pending_other"))

    def _pending(self, asked: AuthorizationRequest, session: Session, now: int) -> Pending:
        memory, agent = self._memory, str(asked.agent.spiffe_id)
        scope = scopes.write(asked.scopes)
        slot = f"{session.person.sub}\0{agent}\0{asked.audience}\0{scope}"
        return Pending(
            id=memory.ids.new(),
            slot=hashlib.sha256(slot.encode("utf-8")).hexdigest(),
            person=session.person.sub,
            agent=agent,
            digest=asked.digest,
            audience=asked.audience,
            scope=scope,
            details=msgspec.json.encode(asked.details).decode(),
            redirect_uri=asked.addressee.redirect_uri,
            state=asked.addressee.state,
            challenge=asked.challenge,
            dpop_jkt=asked.dpop_jkt,
            expires=now + memory.policy.tables.lifetime("approval-request").seconds,
        )

    def show(self, pending: Pending) -> Shown:
        """Return what the page tells about a request.

        Raises:
            PeopleError: ``pending_gone``: the agent or the policy has changed meanwhile.
        """
        memory = self._memory
        tables = memory.policy.tables
        agent, resource, given = self._still(pending, tables)
        return Shown(
            pending=pending,
            agent=agent,
            resource=resource,
            scopes=tuple(sorted(given)),
            details=tuple(msgspec.json.decode(pending.details)),
            until=int(memory.clock.now()) + _grant_life(tables),
            digest=_digest(pending, agent, resource, given, tables),
        )

    async def waiting(self, session: Session) -> tuple[Pending, ...]:
        """Return what waits for a person."""
        now = int(self._memory.clock.now())
        return await self._database.read(lambda connection: store.waiting(connection, session.person.sub, now))

    # --- the decision

    async def decide(self, session: Session, id_: str, *, approve: bool, shown: str | None = None) -> Plan[Redirection]:
        """Decide on a request that waits, by its id. ``shown`` is `Shown.digest` of the page; a no needs none.

        Raises:
            PeopleError: ``pending_gone``, also when a yes would give anything else than was shown; on commit too, and
                ``person_stopped``.
        """
        memory = self._memory
        pending = await self._database.read(lambda connection: store.find_pending(connection, session.person.sub, id_))
        now, seen = int(memory.clock.now()), self._moment(session)
        # 1. the request is this person's, waits, and has not expired
        if pending is None or pending.expires <= now:
            raise PeopleError("pending_gone")
        to = pending.redirect_uri
        if not approve:
            record = recorder(
                refuse="person.refuse",
                **self._fields("approval.deny", pending, session),
                decision={"effect": "deny", "reason": "the person refused"},
            )
            refused = PeopleError("denied")
            parameters = (("error", refused.standard), ("state", pending.state), ("iss", self._issuer))
            answer = Redirection(redirect.response(to, parameters))
            write = Write(
                record=record, names=(session.name,), seen=seen, consume=pending.consume, effects=(store.decided(id_),)
            )
            return Plan(write, lambda outcome: _settled(outcome, answer, "pending_gone"))
        # 2. the agent is still active; the yes is to what was shown, no more and no less
        tables = memory.policy.tables
        agent, resource, given = self._still(pending, tables)
        if shown != _digest(pending, agent, resource, given, tables):
            raise PeopleError("pending_gone", "the page showed something else")
        secret = memory.ids.token(CODE_OCTETS)
        grant = _grant(pending, given, memory.ids.new(), now, seen, tables)
        code = _code(pending, grant, secret, seen, now + tables.lifetime("authorization-code").seconds)
        record = recorder(
            refuse="person.refuse",
            **self._fields("grant.issue", pending, session),
            decision={"effect": "permit", "reason": "the person approved"},
            delegation={"id": grant.id, "root": grant.root},
            details={"scope": grant.scope, "expires": grant.expires},
        )
        parameters = (("code", secret), ("state", pending.state), ("iss", self._issuer))
        answer = Redirection(redirect.response(to, parameters))
        # 3. one Write
        write = Write(
            record=record,
            names=(session.name, Name("agent", pending.agent)),
            seen=seen,
            consume=pending.consume,
            effects=(
                grants.inserted(grant),
                *store.code_inserted(code),
                store.decided(id_),
                *store.swept(session.person.sub, now),
            ),
        )
        return Plan(write, lambda outcome: _settled(outcome, answer, "pending_gone"))

    def _still(self, pending: Pending, tables: Tables) -> tuple[Workload, Resource, frozenset[str]]:
        try:
            agent = self._memory.registry.workload_by_id(pending.agent)
            resource = tables.resource_for(pending.audience)
            given = scopes.parse(pending.scope) & request.widest(tables, agent, resource.name)
        except (ProvisioningError, PolicyError, AuthorizationError) as error:
            raise PeopleError("pending_gone", str(error)) from error
        if agent.state is not State.ACTIVE or not given:
            raise PeopleError("pending_gone", f"{agent.name} is {agent.state}, {len(given)} scopes")
        return agent, resource, given

    # --- withdrawal

    async def given(self, session: Session) -> tuple[store.Given, ...]:
        """Return the grants that a person gave and that stand."""
        now = int(self._memory.clock.now())
        return await self._database.read(lambda connection: store.given(connection, session.person.sub, now))

    async def withdraw(self, session: Session, grant_id: str) -> Plan[None]:
        """End a grant of this person and everything below it: every token that carries it, whoever holds it.

        Raises:
            PeopleError: ``grant_gone``.
        """
        memory = self._memory

        def ask(connection: Connection) -> Grant | None:
            return grants.find(connection, grant_id)

        grant = await self._database.read(ask)
        seen = self._moment(session)
        if grant is None or grant.giver != session.person.sub or grant.revoked:
            raise PeopleError("grant_gone")
        request_id = memory.ids.new()
        record = recorder(
            refuse="person.refuse",
            type="grant.revoke",
            outcome="success",
            time=memory.clock.now(),
            id=request_id,
            request_id=request_id,
            principal=session.known_as.principal,
            resource=grant.resource,
            client_id=grant.agent,
            action="grant.withdraw",
            delegation={"id": grant.id, "root": grant.root},
            decision={"effect": "permit", "reason": "the person gave it"},
            cause={"event": "withdrawal", "reason": "the person withdrew it"},
        )
        write = Write(
            record=record,
            names=(session.name,),
            seen=seen,
            effects=(grants.revoked(grant.root, int(memory.clock.now())),),
            changes=(ended(grant.id),),
        )
        return Plan(write, lambda outcome: _settled(outcome, None, "grant_gone"))

    def _moment(self, session: Session) -> int:
        """Return the number of the feed to fence by, once the session holds at it; what was waited for is past."""
        if dead((session.name,), session.epoch, self._memory.stops) is not None:
            raise PeopleError("person_stopped")
        return self._memory.seq

    def _fields(self, kind: str, pending: Pending, session: Session) -> dict[str, Any]:
        request_id = self._memory.ids.new()
        return {
            "type": kind,
            "outcome": "success",
            "time": self._memory.clock.now(),
            "id": request_id,
            "request_id": request_id,
            "agent": {"id": pending.agent},
            "client_id": pending.agent,
            "principal": session.known_as.principal,
            "resource": pending.audience,
            "action": "authorize",
            "approval": {"ref": pending.id, "by": "person"},
        }


def ended(grant_id: str) -> Change:
    """The line of the feed that ends a grant: everything that carries it, wherever it is."""
    return Change("stop", grant_id, b"null", Stop(Name("grant", grant_id), blocked=True))


def _digest(pending: Pending, agent: Workload, resource: Resource, given: frozenset[str], tables: Tables) -> str:
    """Return what tells apart two pages of which a person might approve only one."""
    parts = (
        pending.id,
        agent.name,
        str(agent.spiffe_id),
        agent.owner,
        resource.name,
        resource.url,
        [(scope, scope in resource.high) for scope in sorted(given)],
        pending.details,
        _grant_life(tables),
        pending.redirect_uri,
    )
    return base64url.encode(hashlib.sha256(msgspec.json.encode(parts)).digest()).decode("ascii")


def _grant_life(tables: Tables) -> int:
    # there are no refresh tokens: what a consent gives is one token, which is collected within the code's life
    return tables.lifetime("authorization-code").seconds + tables.lifetime("access-token").seconds


def _grant(  # noqa: PLR0917  a row, read side by side
    pending: Pending, given: frozenset[str], id_: str, now: int, epoch: int, tables: Tables
) -> Grant:
    return Grant(
        id=id_,
        parent="",
        root=id_,
        agent=pending.agent,
        giver=pending.person,
        instance="",
        subject=pending.person,
        resource=pending.audience,
        scope=scopes.write(given),
        details=pending.details if pending.details != "[]" else "",
        created=now,
        expires=now + _grant_life(tables),
        epoch=epoch,
    )


def _code(pending: Pending, grant: Grant, secret: str, epoch: int, expires: int) -> CodeRow:
    return CodeRow(
        hash=hashed(secret),
        grant_id=grant.id,
        person=pending.person,
        agent=pending.agent,
        audience=pending.audience,
        scope=grant.scope,
        details=pending.details,
        redirect_uri=pending.redirect_uri,
        challenge=pending.challenge,
        dpop_jkt=pending.dpop_jkt,
        epoch=epoch,
        expires=expires,
        grant_expires=grant.expires,
    )


def _settled(outcome: Outcome, value: Any, conflict: str) -> Any:
    if outcome.verdict is Verdict.COMMITTED:
        return value
    if outcome.verdict is Verdict.STOPPED:
        raise PeopleError("person_stopped" if outcome.culprit.startswith("person:") else conflict, outcome.culprit)
    raise PeopleError(conflict, outcome.verdict)
