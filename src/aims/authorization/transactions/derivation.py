"""What a subject token gives: steps 4 to 7 and 9 of ``service``, without I/O and in one moment of memory.

Out of an access token comes the first token of a transaction, out of a Txn-Token its replacement: the same transaction,
subject, actors and grant, for another requester, with the same facts or fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aims.authentication.liveness import Named
from aims.authorization.access_token import AccessToken, AccessTokenVerifier
from aims.authorization.authorization_details import require_within
from aims.authorization.errors import AuthorizationError
from aims.authorization.model import Client, Memory, dead, stored
from aims.authorization.transactions.errors import TransactionError
from aims.authorization.transactions.keys import Held
from aims.authorization.transactions.request import TransactionRequest
from aims.authorization.transactions.transaction_token import (
    MAX_LIFETIME,
    MAX_REPLACEMENTS,
    TransactionToken,
)
from aims.credentials.model import Fence
from aims.policy.errors import PolicyError
from aims.policy.rows import Purpose
from aims.policy.tables import Tables, check_details


@dataclass(frozen=True, slots=True)
class Derivation:
    """Everything that a token is computed from, as it was at one moment.

    ``key`` is the thumbprint of a DPoP key that the request proved, ``seq`` the number of the feed.
    """

    client: Client
    key: str | None
    wanted: TransactionRequest
    tables: Tables
    memory: Memory
    now: int
    seq: int

    def begun(self, held: Held, verifier: AccessTokenVerifier, txn: str) -> tuple[Purpose, TransactionToken]:
        """The first token of a transaction, out of an access token."""
        # 4. the subject token
        subject = self._access_token(verifier)
        resource = self._presented(subject)
        # 5. nothing in it was stopped
        self._require_alive(subject.names, subject.epoch)
        # 6. the purpose fits
        try:
            row = self.tables.purpose(self.wanted.purpose, resource, subject.scopes)
        except PolicyError as error:
            raise TransactionError("txn_scope", str(error)) from error
        # 7. the details fit
        details = self.wanted.details or {}
        _check_details(row, details)
        if subject.details:
            _check_within({"type": row.purpose, **details}, subject)
        # 9. life
        return row, TransactionToken(
            issuer=held.verifier.issuer,
            domain=self.memory.trust_domain,
            txn=txn,
            subject=subject.subject,
            purposes=frozenset({row.purpose}),
            requester=self.client.id,
            issued_at=self.now,
            expires=self._expiry(held, row, self.now),
            grant_id=subject.grant_id,
            fence=Fence(subject.fence.instance, self.seq),
            began=self.now,
            # an agent that uses its own right is the subject; any other client acts, even where no ``act`` says so
            actors=subject.actors or (() if subject.client_id == subject.subject else (subject.client_id,)),
            details=details,
            context=self.wanted.context,
        )

    def replaced(self, held: Held, *, refuse_loops: bool) -> tuple[Purpose, TransactionToken]:
        """Another token of a transaction: the same right, for another requester, never wider."""
        # 4. the subject token
        try:
            before = held.verifier.read(self.wanted.subject_token, now=self.now)
        except AuthorizationError as error:
            raise TransactionError("txn_subject", str(error)) from error
        if self.now >= before.expires:
            raise TransactionError("txn_subject", "expired")
        # 5. nothing in it was stopped
        self._require_alive(before.names, before.epoch)
        # 6. the purpose fits
        row = self._kept_purpose(before)
        # 7. the details stay: to leave one out is to lift a limit
        details = before.details if self.wanted.details is None else self.wanted.details
        for member, value in details.items():
            if member not in before.details or not _equal(value, before.details[member]):
                raise TransactionError("txn_changed", member[:100])
        if len(details) < len(before.details):
            raise TransactionError("txn_changed", min(set(before.details) - set(details))[:100])
        _check_details(row, details)
        # 9. life, and how often
        if refuse_loops and self.client.id in (*before.requesters, before.requester):
            raise TransactionError("txn_loop", self.client.id)
        if len(before.requesters) >= MAX_REPLACEMENTS:
            raise TransactionError("txn_replacements")
        return row, TransactionToken(
            issuer=held.verifier.issuer,
            domain=before.domain,
            txn=before.txn,
            subject=before.subject,
            purposes=frozenset({row.purpose}),
            requester=self.client.id,
            issued_at=self.now,
            expires=self._expiry(held, row, int(before.began)),
            grant_id=before.grant_id,
            fence=Fence(before.fence.instance, self.seq),
            began=int(before.began),
            actors=before.actors,
            requesters=(*before.requesters, before.requester),
            details=details,
            context={**before.context, **self.wanted.context},
        )

    def _kept_purpose(self, before: TransactionToken) -> Purpose:
        if self.wanted.purpose not in before.purposes:
            raise TransactionError("txn_wider", ascii(self.wanted.purpose[:200]))
        row = next((row for row in self.tables.rows.purposes if row.purpose == self.wanted.purpose), None)
        if row is None:
            raise TransactionError("txn_scope", "the policy has no such purpose any more")
        # whoever only holds the text of a token, from a log or on the way, has no right to carry it on
        if not self.tables.may_replace(row, self.client.spiffe_id):
            raise TransactionError("txn_kind", f"purposes.{row.name} does not let {self.client.id} replace")
        return row

    def _access_token(self, verifier: AccessTokenVerifier) -> AccessToken:
        try:
            token = verifier.read(self.wanted.subject_token, now=self.now)
        except AuthorizationError as error:
            raise TransactionError("txn_subject", str(error)) from error
        if self.now >= token.expires:  # no leeway here: on what has ended nothing is issued
            raise TransactionError("txn_subject", "expired")
        return token

    def _presented(self, token: AccessToken) -> str:
        """Return the resource that an access token is for, if the requester may carry it on."""
        if token.may_act is not None or token.resource is not None:
            raise AuthorizationError("subject_presenter", "handed on to an agent, which has to exchange it first")
        try:
            resource = self.tables.resource_for(token.audience)
        except PolicyError as error:
            raise TransactionError("txn_subject", str(error)) from error
        if self.client.id == str(self.tables.peer(resource)):
            return resource.name
        if self.client.id != token.client_id:
            raise AuthorizationError("subject_presenter", self.client.id)
        bound = token.confirmation
        shown = None if bound is None else self.key if bound.method == "jkt" else self.client.certificate
        if bound is not None and shown != bound.thumbprint:
            raise AuthorizationError("subject_proof", bound.method)
        return resource.name

    def _require_alive(self, names: tuple[Named, ...], epoch: int) -> None:
        stopped = dead(stored(names), epoch, self.memory.stops)
        if stopped is not None:
            raise AuthorizationError("subject_stopped", f"{stopped.kind}:{stopped.id}")

    def _expiry(self, held: Held, row: Purpose, began: int) -> int:
        expires = min(self.now + row.lifetime, began + MAX_LIFETIME, held.ends)
        if expires <= self.now:
            raise TransactionError("txn_over")
        return expires


def _check_details(row: Purpose, details: Mapping[str, Any]) -> None:
    try:
        check_details(row, details)
    except PolicyError as error:
        raise TransactionError("txn_details", str(error)) from error


def _check_within(wanted: Mapping[str, Any], subject: AccessToken) -> None:
    # a token that says exactly what may be done gives nothing beside it
    try:
        require_within((wanted,), subject.details)
    except AuthorizationError as error:
        raise TransactionError("txn_details", str(error)) from error


def _equal(one: Any, other: Any) -> bool:
    # members of a purpose are strings, integers and truth values; True is no 1 here
    return type(one) is type(other) and one == other
