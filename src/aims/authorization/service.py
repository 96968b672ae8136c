"""The token endpoint's decision, in the order of its steps; it ends in a Plan, and nothing leaves before the commit.

    1. the form                                            request_..., parameter_twice, query
    2. credentials: one way, at most one proof             client_several, proof_several
    3. the client                                          `client_authentication`, assertion_key
    4. the grant type                                      grant_type
    5. the proof: DPoP, or the certificate                 dpop_..., proof_missing
    6. to 9. grant, target, scope, authorization_details   `grants`
    10. policy, life, token, record                        policy, lifetime

The Write is fenced on every name that the new token depends on, by the number of the feed that was read. A DPoP proof
is spent by being presented, whatever becomes of the request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from aims.audit.record import inert
from aims.authentication import dpop
from aims.authentication.errors import AuthenticationError
from aims.authentication.request import HttpRequest
from aims.authorization import form as forms
from aims.authorization import records, store
from aims.authorization.access_token import HEADER, AccessToken, Confirmation
from aims.authorization.client_authentication import authenticate, claimed, require_live
from aims.authorization.errors import AuthorizationError
from aims.authorization.grants import client_credentials, token_exchange
from aims.authorization.grants.award import Award, longest_life
from aims.authorization.keys import Held, TokenKeys
from aims.authorization.model import Asking, Client, Memory, Request, Submission, stored
from aims.authorization.people import code_grant
from aims.authorization.people.errors import PeopleError
from aims.authorization.principals import Principals
from aims.credentials.model import Fence
from aims.errors import AimsError
from aims.jose import sign
from aims.policy.question import Decision
from aims.provisioning.instances import Instances
from aims.storage.database import Database
from aims.storage.intent import Plan
from aims.storage.write import Claim, Name, Outcome, Verdict, Write

GRANT_TYPES: Final = (client_credentials.GRANT_TYPE, token_exchange.GRANT_TYPE, code_grant.GRANT_TYPE)


@dataclass(frozen=True, slots=True)
class Issued:
    """The members of a successful answer, in their order."""

    members: dict[str, Any]

    def __repr__(self) -> str:
        return f"Issued({', '.join(self.members)})"


@dataclass(frozen=True, slots=True)
class Authenticated:
    """A client and what it asks; ``claims`` are to be spent with whatever comes of it."""

    request: Request
    client: Client
    claims: tuple[Claim, ...]


@dataclass(slots=True)
class _Progress:
    """How far a request has come, for the record of its refusal."""

    request: Request | None = None
    client: Client | None = None
    proof: dpop.DpopProof | None = None

    @property
    def claims(self) -> tuple[Claim, ...]:
        if self.proof is None:
            return ()
        spent = self.proof.claim
        return (Claim(spent.space, spent.holder, spent.id, spent.expires),)


class TokenService:
    """Decides what the token endpoint answers, for the authorization server ``issuer``."""

    def __init__(self, issuer: str, memory: Memory, keys: TokenKeys, instances: Instances, database: Database) -> None:
        self._issuer = issuer
        self._memory = memory
        self._keys = keys
        self._instances = instances
        self._database = database
        self._principals = Principals(database)

    async def token(self, sent: Submission, unknown: Callable[[AimsError], bool]) -> Plan[Issued]:
        """Decide about one request. The plan of a refusal leaves its record, and its answer raises the error.

        ``unknown`` is asked about a refusal of somebody who is not authenticated, and says whether it gets a record of
        its own; if not, the error is raised at once.

        Raises:
            AimsError: nothing can be decided at present (StorageError, KeyStoreError, PolicyError ``inactive``), or
                the refusal is one of too many.
        """
        progress = _Progress()
        try:
            return await self._decide(sent, progress)
        except (AuthorizationError, AuthenticationError) as error:
            if progress.client is None and not unknown(error):
                raise
            return self._refused(error, progress)

    async def authenticate(self, sent: Submission) -> Authenticated:
        """Do steps 1 to 3, and 5 for a bound assertion: for endpoints that authenticate as this one does.

        Raises:
            AuthorizationError, AuthenticationError: who asks is not known.
        """
        progress = _Progress()
        held = await self._keys.current()
        client = self._client(sent, progress, held, self._memory.clock.now())
        assert progress.request is not None  # noqa: S101  read before the client
        return Authenticated(progress.request, client, progress.claims)

    async def _decide(self, sent: Submission, progress: _Progress) -> Plan[Issued]:
        memory = self._memory
        held = await self._keys.current()
        now = memory.clock.now()
        # 1, 2, 3. the form, credentials, the client
        client = self._client(sent, progress, held, now)
        assert progress.request is not None  # noqa: S101  read before the client
        form = progress.request.form
        standing = self._instances.known(client.fence.instance) or await self._instances.find(client.fence.instance)
        if standing is None or standing.agent != client.id:
            raise AuthorizationError("client_posture", client.fence.instance)
        # 4. the grant type
        grant_type = form.require("grant_type")
        if grant_type not in GRANT_TYPES:
            raise AuthorizationError("grant_type", repr(grant_type[:200]))
        # 5. the proof: DPoP, or the certificate
        if progress.proof is None:
            progress.proof = _proof(sent, now)
        confirmation = _confirmation(client, progress.proof)
        code = None
        if grant_type == code_grant.GRANT_TYPE:
            code = await self._database.read(lambda connection: code_grant.find(connection, form))
        # From here to the signature one moment of memory is read, without waiting.
        policy, seen = memory.policy, memory.seq
        require_live(client, memory)
        asking = Asking(
            form=form,
            client=client,
            standing=standing,
            tables=policy.tables,
            registry=memory.registry,
            trust_domain=memory.trust_domain,
            stops=memory.stops,
            seen=seen,
            ids=memory.ids,
            now=now,
        )
        # 6 to 9. grant, target, scope, authorization_details
        if grant_type == client_credentials.GRANT_TYPE:
            award = client_credentials.award(asking)
        elif grant_type == code_grant.GRANT_TYPE:
            award = code_grant.award(asking, confirmation, code)
        else:
            award = token_exchange.award(asking, held.verifier, confirmation)
        # 10. policy, life, token, record
        decision = policy.engine.decide(award.question)
        if not decision.allow:
            raise AuthorizationError("policy", f"{decision.code}: {decision.explanation}")
        token = self._token(award, asking, confirmation, held)
        return await self._plan(award, asking, token=token, decision=decision, held=held, claims=progress.claims)

    def _client(self, sent: Submission, progress: _Progress, held: Held, now: float) -> Client:
        # 1. the form
        if sent.query:
            raise AuthorizationError("query")
        progress.request = request = Request(forms.read(sent.body, sent.content_type), sent)
        # 2. credentials: at most one proof; the one way is the client's first step
        if len(sent.dpop) > 1:
            raise AuthorizationError("proof_several")
        # 3. the client
        client = authenticate(request, self._memory, held.assertions, issuer=self._issuer, now=now)
        if client.jkt is not None:
            # a bound assertion without its key is somebody else's
            progress.proof = proof = _proof(sent, now)
            if proof is None:
                raise AuthorizationError("proof_missing")
            if proof.jkt != client.jkt:
                raise AuthorizationError("assertion_key")
        progress.client = client
        return client

    def _token(self, award: Award, asking: Asking, confirmation: Confirmation, held: Held) -> AccessToken:
        client, now = asking.client, int(asking.now)
        limits = [held.ends, now + longest_life(asking.tables, asking.standing.postures)]
        if client.method == "spiffe_x509":
            limits.append(int(client.expires))
        if award.parent is not None:
            limits.append(int(award.parent.expires))
        if award.spending is not None:
            limits.append(award.spending.until)
        expires = min(limits)
        if expires <= now:
            raise AuthorizationError("lifetime", f"{expires - now} s")
        return AccessToken(
            issuer=self._issuer,
            subject=award.subject,
            client_id=client.id,
            audience=award.audience,
            scopes=award.scopes,
            issued_at=now,
            expires=expires,
            token_id=self._memory.ids.new(),
            grant_id=award.grant_id,
            fence=Fence(client.fence.instance, asking.seen),
            confirmation=confirmation if award.bound else None,
            actors=award.actors,
            may_act=award.may_act,
            resource=award.resource,
            details=award.details,
            txn=None if award.parent is None else award.parent.txn,
        )

    async def _plan(
        self,
        award: Award,
        asking: Asking,
        *,
        token: AccessToken,
        decision: Decision,
        held: Held,
        claims: tuple[Claim, ...],
    ) -> Plan[Issued]:
        client, by_key = asking.client, token.confirmation is not None and token.confirmation.method == "jkt"
        text = await sign(HEADER, token.claims(), held.signer)
        members: dict[str, Any] = {
            "access_token": text,
            **award.answer,
            "token_type": "DPoP" if by_key else "Bearer",
            "expires_in": int(token.expires) - int(token.issued_at),
            "scope": " ".join(sorted(token.scopes)),
        }
        if token.details:
            members["authorization_details"] = list(token.details)
        record = records.issued(
            award,
            token,
            client=client,
            standing=asking.standing,
            decision=decision,
            principal=await self._principals.of(token.subject),
            now=asking.now,
        )
        spending = award.spending
        write = Write(
            record=record,
            names=_fenced(token, award),
            seen=token.epoch,
            claims=claims,
            consume=None if spending is None else spending.consume,
            effects=(
                *(() if award.delegated is None else (store.inserted(award.delegated),)),
                *(() if spending is None else spending.effects),
            ),
            lost=() if spending is None else spending.lost,
            lost_changes=() if spending is None else spending.lost_changes,
        )
        return Plan(write, lambda outcome: _settled(outcome, Issued(members), client))

    def _refused(self, error: AimsError, progress: _Progress) -> Plan[NoReturn]:
        request = progress.request
        form = None if request is None else request.form
        octets = records.refused(
            error,
            action="token" if form is None else inert(form.get("grant_type") or "token"),
            client=progress.client,
            claimed={} if request is None else claimed(request),
            resource=None if form is None or not form.targets else form.targets[0][1],
            scope_asked=None if form is None else form.get("scope"),
            request_id=self._memory.ids.new(),
            now=self._memory.clock.now(),
        )

        def answer(_: Outcome) -> NoReturn:
            raise error

        return Plan(Write(record=lambda _: octets, claims=progress.claims), answer)


def _proof(sent: Submission, now: float) -> dpop.DpopProof | None:
    if not sent.dpop:
        return None
    return dpop.verify_proof(HttpRequest("POST", sent.target_uri, (("dpop", sent.dpop[0]),)), now=now)


def _confirmation(client: Client, proof: dpop.DpopProof | None) -> Confirmation:
    if proof is not None:
        return Confirmation("jkt", proof.jkt)
    if client.certificate is not None:
        return Confirmation("x5t#S256", client.certificate)
    raise AuthorizationError("proof_missing")


def _fenced(token: AccessToken, award: Award) -> tuple[Name, ...]:
    own = stored(token.names)  # the client's names are among them
    if award.parent is None:
        return own
    names = dict.fromkeys(own)
    names |= dict.fromkeys(stored(award.parent.names))
    if award.may_act is not None:
        names[Name("agent", award.may_act)] = None
    return tuple(names)


def _settled(outcome: Outcome, issued: Issued, client: Client) -> Issued:
    match outcome.verdict:
        case Verdict.COMMITTED:
            return issued
        case Verdict.REPLAYED:
            raise AuthenticationError("dpop_replay")
        case Verdict.CONSUMED:
            raise PeopleError("code_used")
        case Verdict.STOPPED:
            own = {f"{name.kind}:{name.id}" for name in client.names}
            raise AuthorizationError("client_stopped" if outcome.culprit in own else "stopped", outcome.culprit)
        case _:
            raise AuthorizationError("unavailable", outcome.verdict)
