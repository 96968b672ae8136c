"""The Txn-Token service (section 11 of the draft): the order of checks, the signature, one Write with its record.

    1. who asks: an X509-SVID of ours, a registered workload, not stopped   client_…
    2. the request is well-formed, its subject token of a kind that counts  invalid_request, unauthorized_client
    3. the audience is this trust domain                                    txn_target
    4. the subject token: signature, issuer, times; an access token must    txn_subject, subject_presenter,
       be for the asking service, or the asking client's own and proved     subject_proof
    5. nothing in it was stopped                                            subject_stopped
    6. the purpose fits what the subject token holds; a replacement is for  txn_scope, txn_wider,
       a workload that the purpose names                                    txn_kind
    7. the details fit the purpose; a replacement only narrows              txn_details, txn_changed
    8. policy                                                               txn_policy
    9. life within the purpose's, and within the transaction's              txn_over, txn_replacements, txn_loop
    10. signature, one Write fenced on every name, the answer

The presenter of a bound access token has either received it as its audience, from a caller that proved the key there,
or it is the client that the token was issued to and proves the key here. Nobody else has a right to carry it on. The
Txn-Token itself is bound hop by hop, by the proof that covers it, so no binding is lost; it names nobody who may carry
it on, so the table of purposes does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from aims.audit.record import body as record_body
from aims.audit.record import inert, recorder
from aims.authentication import dpop
from aims.authentication.errors import AuthenticationError
from aims.authentication.request import HttpRequest
from aims.authorization import form as forms
from aims.authorization.access_token import AccessTokenVerifier
from aims.authorization.client_authentication import require_live
from aims.authorization.errors import AuthorizationError
from aims.authorization.model import Client, Memory, Submission, stored
from aims.authorization.principals import Principals
from aims.authorization.transactions import request as requests
from aims.authorization.transactions.derivation import Derivation
from aims.authorization.transactions.errors import TransactionError
from aims.authorization.transactions.keys import TransactionKeys
from aims.authorization.transactions.transaction_token import (
    HEADER,
    MAX_OCTETS,
    TOKEN_TYPE,
    TransactionToken,
)
from aims.errors import AimsError
from aims.jose import sign
from aims.policy.question import Decision, Entity, Question
from aims.policy.rows import Purpose
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.instances import Standing
from aims.provisioning.registry.model import State
from aims.storage.intent import Plan
from aims.storage.write import Claim, Outcome, Verdict, Write


@dataclass(frozen=True, slots=True)
class Issued:
    """A Txn-Token and the seconds that it has left."""

    text: str = field(repr=False)
    expires_in: int

    def response(self) -> dict[str, Any]:
        """The body of the answer (11.4)."""
        return {
            "access_token": self.text,
            "issued_token_type": TOKEN_TYPE,
            "token_type": "N_A",
            "expires_in": self.expires_in,
        }


@dataclass(slots=True)
class _Progress:
    """What is known about a request while its steps go on, so that a refusal can be recorded with it."""

    client: Client | None = None
    standing: Standing | None = None
    claimed: dict[str, str | None] = field(default_factory=dict)
    purpose: str | None = None
    decision: Decision | None = None
    claims: tuple[Claim, ...] = ()


class TransactionService:
    """Issues Txn-Tokens for one trust domain.

    ``standing`` says what keeps an instance apart. With ``refuse_loops`` a workload that asked before in a transaction
    is refused (call-backs are legitimate, so it is off).
    """

    def __init__(
        self,
        memory: Memory,
        keys: TransactionKeys,
        *,
        access_tokens: Callable[[], Awaitable[AccessTokenVerifier]],
        standing: Callable[[str], Awaitable[Standing | None]],
        principals: Principals,
        refuse_loops: bool = False,
    ) -> None:
        self._memory = memory
        self._keys = keys
        self._access_tokens = access_tokens
        self._standing = standing
        self._principals = principals
        self._refuse_loops = refuse_loops

    async def transact(self, sent: Submission, unknown: Callable[[AimsError], bool]) -> Plan[Issued]:
        """Decide about one request. The plan of a refusal leaves its record, and its answer raises the error.

        ``unknown`` is asked about a refusal of somebody who is not authenticated, and says whether it gets a record of
        its own; if not, the error is raised at once.

        Raises:
            AimsError: nothing can be decided at present (StorageError, KeyStoreError, PolicyError ``inactive``), or
                the refusal is one of too many.
        """
        progress = _Progress()
        try:
            return await self._plan(sent, progress)
        except (AuthorizationError, AuthenticationError) as error:
            if progress.client is None and not unknown(error):
                raise
            return self._refused(error, progress)

    async def _plan(self, sent: Submission, progress: _Progress) -> Plan[Issued]:
        now = int(self._memory.clock.now())
        # 1. who asks
        if sent.query:
            raise AuthorizationError("query")
        form = forms.read(sent.body, sent.content_type)
        progress.claimed["client_id"] = form.get("client_id")
        client = requester(form, sent, self._memory, now)
        progress.client = client
        standing = progress.standing = await self._standing(client.fence.instance)
        if standing is None or standing.agent != client.id:
            raise AuthorizationError("client_posture", client.fence.instance)
        # 2. the request is well-formed
        wanted = requests.parse(form)
        progress.purpose = wanted.purpose
        # 3. the audience is this trust domain
        if wanted.audience != self._memory.trust_domain.name:
            raise TransactionError("txn_target", ascii(wanted.audience[:200]))
        key = self._proved_key(sent, progress, now)
        held, verifier = await self._keys.current(), await self._access_tokens()
        # From here to the Write nothing waits but the signature: stops, tables and ``seq`` are of one moment.
        memory = self._memory
        seq, tables = memory.seq, memory.policy.tables
        derivation = Derivation(client, key, wanted, tables, memory, now, seq)
        require_live(client, memory)  # again: it was waited since
        # 4, 5, 6, 7. subject, liveness, purpose, details
        if wanted.subject_token_type == TOKEN_TYPE:
            row, token = derivation.replaced(held, refuse_loops=self._refuse_loops)
        else:
            row, token = derivation.begun(held, verifier, memory.ids.token(16))
        # 8. policy
        progress.decision = self._decide(client, standing, token, row)
        # 10. signature, one Write
        text = await sign(HEADER, token.claims(), held.signer)
        if len(text) > MAX_OCTETS:
            raise TransactionError("txn_details", "the token would be too large")
        record = recorder(refuse="token.refuse", **await self._fields(progress, token, standing))
        write = Write(
            record=record,
            names=tuple(dict.fromkeys((*stored(token.names), *client.names))),
            seen=seq,
            claims=progress.claims,
        )
        issued = Issued(text, int(token.expires) - now)
        return Plan(write, lambda outcome: _settled(outcome, issued))

    def _proved_key(self, sent: Submission, progress: _Progress, now: float) -> str | None:
        """The thumbprint of a DPoP key that this request proves, None without a proof."""
        if not sent.dpop:
            return None
        if len(sent.dpop) > 1:
            raise AuthorizationError("proof_several")
        proof = dpop.verify_proof(HttpRequest.of("POST", sent.target_uri, [("dpop", sent.dpop[0])]), now=now)
        spent = proof.claim
        progress.claims = (Claim(spent.space, spent.holder, spent.id, spent.expires),)
        return proof.jkt

    def _decide(self, client: Client, standing: Standing, token: TransactionToken, row: Purpose) -> Decision:
        decision = self._memory.policy.engine.decide(
            Question(
                principal=Entity("Agent", client.id, {"owner": client.workload.owner}),
                action="transact",
                resource=Entity("Resource", row.purpose, {"kind": "purpose"}),
                context={
                    "subject": token.subject,
                    "posture": standing.posture,
                    "scopes": frozenset(row.scopes),
                },
            )
        )
        if not decision.allow:
            raise TransactionError("txn_policy", decision.explanation)
        return decision

    async def _fields(self, progress: _Progress, token: TransactionToken, standing: Standing) -> dict[str, Any]:
        request_id = self._memory.ids.new()
        client, decision = progress.client, progress.decision
        assert client is not None and decision is not None  # noqa: S101, PT018  every step before has held
        return {
            "type": "token.transact",
            "outcome": "success",
            "time": self._memory.clock.now(),
            "id": request_id,
            "request_id": request_id,
            "agent": _agent(client),
            "principal": await self._principals.of(token.subject),
            "chain": token.actors or None,
            "resource": next(iter(token.purposes)),
            "action": "transact",
            "txn": token.txn,
            "delegation": {"id": token.grant_id},
            "decision": {"effect": "permit", "policy_digest": decision.policy, "rules": list(decision.rules)},
            "posture": {"level": standing.posture},
            "token": {
                "kind": "txn-token",
                "iss": token.issuer,
                "aud": [token.domain.name],
                "scope_asked": progress.purpose,
                "scope_given": " ".join(token.purposes),
                "exp": int(token.expires),
                "epoch": token.epoch,
            },
            "details": {"replacement": len(token.requesters)},
        }

    def _refused(self, error: AimsError, progress: _Progress) -> Plan[NoReturn]:
        request_id = self._memory.ids.new()
        denied: dict[str, Any] = {"effect": "deny", "reason": error.code}
        if progress.decision is not None:
            denied["policy_digest"] = progress.decision.policy
        client = progress.client
        claimed = None if client is not None else {name: text for name, text in progress.claimed.items() if text}
        octets = record_body(
            type="token.refuse",
            outcome="refused",
            time=self._memory.clock.now(),
            id=request_id,
            request_id=request_id,
            agent=None if client is None else _agent(client),
            claimed=claimed or None,
            resource=None if progress.purpose is None else inert(progress.purpose),
            action="transact",
            decision=denied,
            posture=None if progress.standing is None else {"level": progress.standing.posture},
            details={"detail": inert(error.detail)} if error.detail else None,
        )

        def answer(_: Outcome) -> NoReturn:
            raise error

        return Plan(Write(record=lambda _: octets, claims=progress.claims), answer)


def requester(form: forms.Form, sent: Submission, memory: Memory, now: float) -> Client:
    """Step 1: return the workload that asks. Agents and services alike may, and only by the certificate of an mTLS
    connection; ``client_id``, if sent, is its SPIFFE ID.

    Raises:
        AuthorizationError: ``client_several``, ``client_none``, ``client_method``, ``certificate_expired``,
            ``client_id``, ``client_unknown``, ``client_stopped``.
    """
    other = (
        sent.authorization
        or sent.attestation
        or any(form.get(name) for name in ("client_assertion", "client_assertion_type", "client_secret"))
    )
    svid = sent.peer
    if svid is None:
        raise AuthorizationError("client_method" if other else "client_none")
    if other:
        raise AuthorizationError("client_several")
    if now >= svid.not_after:
        raise AuthorizationError("certificate_expired")
    spiffe_id = str(svid.spiffe_id)
    if form.get("client_id") not in {None, spiffe_id}:
        raise AuthorizationError("client_id", f"the certificate is of {spiffe_id}")
    try:
        workload = memory.registry.workload_by_id(spiffe_id)
    except ProvisioningError as error:
        raise AuthorizationError("client_unknown", spiffe_id) from error
    if workload.state is not State.ACTIVE or svid.fence is None:
        raise AuthorizationError("client_unknown", f"{spiffe_id} is {workload.state}")
    client = Client(
        workload=workload,
        id=spiffe_id,
        method="spiffe_x509",
        fence=svid.fence,
        expires=svid.not_after,
        certificate=svid.thumbprint,
    )
    require_live(client, memory)
    return client


def _agent(client: Client) -> dict[str, Any]:
    return {"id": client.id, "instance": client.fence.instance, "key_thumbprint": client.certificate}


def _settled(outcome: Outcome, issued: Issued) -> Issued:
    if outcome.verdict is Verdict.COMMITTED:
        return issued
    if outcome.verdict is Verdict.REPLAYED:
        raise AuthenticationError("dpop_replay")
    raise AuthorizationError("subject_stopped", f"{outcome.verdict}: {outcome.culprit}")
