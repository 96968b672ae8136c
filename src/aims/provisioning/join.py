"""How a node gets its identity: once by a join token, and then by its own certificate.

The administrator makes a token for one node id. The server keeps only a hash that covers node and secret, so another
node's name opens nothing. Using it is one guarded write: of any number of requests with one token, one succeeds, and
the others learn no more than that theirs did not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import sqlalchemy as sa

from aims.attestation import Selector
from aims.audit.record import body, recorder
from aims.clock import Clock, IdSource
from aims.credentials.model import Fence
from aims.credentials.x509_svid import X509Svid
from aims.errors import AimsError
from aims.identifiers import SpiffeId
from aims.jose import base64url
from aims.policy.tables import Tables
from aims.provisioning.authority.service import new_serial
from aims.provisioning.authority.signing import Authority
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.join_token import SECRET_OCTETS, JoinToken, secret_hash
from aims.provisioning.registry import store
from aims.provisioning.registry.memory import Registry
from aims.provisioning.registry.model import SERVER, Node, NodeState, parse_name
from aims.provisioning.registry.service import Cause, settled
from aims.storage.intent import Plan
from aims.storage.schema import once
from aims.storage.write import Change, Consume, Effect, Name, Outcome, Verdict, Write
from aims.x509 import X509Error, parse_csr

ONCE: Final = "join"
MAX_TOKEN_LIFE: Final = 3600

_INSERT_TOKEN: Final = sa.insert(once)


@dataclass(frozen=True, slots=True)
class Joined:
    """A node's new X509-SVID."""

    spiffe_id: SpiffeId
    svid: X509Svid
    expires_at: int


class JoinService:
    """Makes join tokens, admits nodes, and renews their certificates."""

    def __init__(
        self,
        registry: Registry,
        tables: Callable[[], Tables],
        authority: Callable[[], Authority],
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._registry = registry
        self._tables = tables
        self._authority = authority
        self._clock = clock
        self._ids = ids

    def create_token(
        self,
        *,
        node_id: str,
        url: str,
        ca: bytes,
        cause: Cause,
        lifetime: int = 0,
        selectors: frozenset[Selector] | None = frozenset(),
    ) -> Plan[JoinToken]:
        """Make a token for one node id, good for ``lifetime`` seconds (0: as long as the policy says, limit 1 h).

        ``ca`` is the SHA-256 of the CA certificate that the node is to believe at ``url``. ``selectors`` are facts
        about the node that entries may demand; they are bound to it now, in place of those that it had. None leaves a
        node that is known as it is.

        Raises: ProvisioningError ``name_malformed``, ``name_reserved``, ``node_banned``, ``join_token_lifetime``,
            ``join_token_malformed``; PolicyError ``identifier``, ``lifetime``.
        """
        registry = self._registry
        spiffe_id = SpiffeId.node(registry.trust_domain, parse_name(node_id))
        if node_id == SERVER:  # instances of the server itself begin with this name
            raise ProvisioningError("name_reserved", node_id)
        self._tables().identifier("node", spiffe_id)
        longest = self._tables().lifetime("join-token").seconds
        if not 0 <= lifetime <= MAX_TOKEN_LIFE:
            raise ProvisioningError("join_token_lifetime", str(lifetime))
        now = int(self._clock.now())
        secret = base64url.decode(self._ids.token(SECRET_OCTETS).encode("ascii"))
        token = JoinToken(trust_domain=registry.trust_domain, node=node_id, url=url, ca=ca, secret=secret)
        expires = now + min(lifetime or longest, longest)
        row = {"kind": ONCE, "id_hash": secret_hash(node_id, secret), "expires": expires, "used_by": None}
        effects, changes = self._expect(node_id, spiffe_id, selectors, now)
        record = recorder(
            refuse="admin.refuse",
            type="admin.action",
            outcome="success",
            time=self._clock.now(),
            id=self._ids.new(),
            resource=str(spiffe_id),
            action="node.token",
            decision=cause.decision,
            request_id=cause.request_id,
            operator=cause.operator,
            cause=cause.member,
            details={"expires": expires},
        )
        write = Write(record=record, effects=(*effects, Effect(_INSERT_TOKEN, row)), changes=changes)
        return Plan(write, lambda outcome: settled(outcome, token, "changed"))

    def _expect(
        self, node_id: str, spiffe_id: SpiffeId, selectors: frozenset[Selector] | None, now: int
    ) -> tuple[tuple[Effect, ...], tuple[Change, ...]]:
        if not self._registry.has_node(node_id):
            node = Node(
                id=node_id,
                spiffe_id=spiffe_id,
                state=NodeState.EXPECTED,
                selectors=selectors or frozenset(),
                created=now,
            )
            return (store.insert_node(node),), (store.changed("node", node_id, node),)
        before = self._registry.node(node_id)
        if before.state is NodeState.BANNED:
            raise ProvisioningError("node_banned", node_id)
        if selectors is None:
            # Nothing is written, so that nothing that others write meanwhile is undone; a ban is seen at the joining.
            return (), ()
        after = Node(
            id=node_id,
            spiffe_id=spiffe_id,
            state=before.state,
            selectors=selectors,
            created=before.created,
            last_seen=before.last_seen,
        )
        return (store.update_node(after),), (store.changed("node", node_id, after),)

    def join(self, *, secret: bytes, node_id: str, csr: bytes, request_id: str) -> Plan[Joined]:
        """Use a token up and issue the node's first certificate.

        1. The name is a node's. 2. The request is signed by the key that it names; nothing else of it is taken.
        3. The certificate, by policy, for exactly that name. 4. One Write: the node is not stopped, the token is
        unused, unexpired and for this node, the node is not banned. Nothing leaves before it is committed.

        Before 4 nobody is authenticated: what the caller said stands in the record's ``claimed`` and nowhere else.
        The answer raises ProvisioningError ``join_refused`` (whatever was wrong with the token), ``name_malformed`` or
        ``csr_malformed``.
        """
        claimed = {"node": node_id}
        try:
            # 1
            parse_name(node_id)
            # 2, 3
            spiffe_id = SpiffeId.node(self._registry.trust_domain, node_id)
            joined = self._issue(node_id, spiffe_id, csr)
        except AimsError as error:
            return self._refused(error, claimed, request_id)
        # 4
        now = self._clock.now()
        facts: dict[str, Any] = {
            "time": now,
            "id": self._ids.new(),
            "request_id": request_id,
            "action": "node.join",
        }

        def record(outcome: Outcome) -> bytes:
            if outcome.verdict is not Verdict.COMMITTED:
                reason = f"storage.{outcome.verdict}"
                denied = {"effect": "deny", "reason": reason}
                return body(type="node.refuse", outcome="refused", claimed=claimed, decision=denied, **facts)
            return body(
                type="node.join",
                outcome="success",
                resource=str(spiffe_id),
                node=node_id,
                decision={"effect": "permit", "reason": "join token"},
                token=_token(joined),
                **facts,
            )

        write = Write(
            record=record,
            names=(Name("node", node_id),),
            seen=self._registry.seq,
            consume=Consume(ONCE, secret_hash(node_id, secret)),
            effects=(store.join_node(node_id, int(now)),),
        )
        return Plan(write, lambda outcome: _admitted(outcome, joined))

    def renew(self, *, node_id: str, csr: bytes, request_id: str) -> Plan[Joined]:
        """Issue a node that has proved itself by its certificate the next one.

        The answer raises ProvisioningError ``node_unknown``, ``node_banned``, ``csr_malformed``, ``stopped``.
        """
        spiffe_id = SpiffeId.node(self._registry.trust_domain, parse_name(node_id))
        agent = {"id": str(spiffe_id)}
        try:
            if self._registry.node(node_id).state is NodeState.BANNED:
                raise ProvisioningError("node_banned", node_id)
            joined = self._issue(node_id, spiffe_id, csr)
        except AimsError as error:
            return self._refused(error, None, request_id, agent)
        now = self._clock.now()
        record = recorder(
            refuse="credential.refuse",
            type="credential.renew",
            outcome="success",
            time=now,
            id=self._ids.new(),
            request_id=request_id,
            agent=agent,
            node=node_id,
            resource=str(spiffe_id),
            action="node.renew",
            decision={"effect": "permit", "reason": "node certificate"},
            posture={"level": "node"},
            token=_token(joined),
        )
        write = Write(
            record=record,
            names=(Name("node", node_id),),
            seen=self._registry.seq,
            effects=(store.join_node(node_id, int(now)),),
        )
        return Plan(write, lambda outcome: settled(outcome, joined, "node_banned"))

    def _issue(self, node_id: str, spiffe_id: SpiffeId, csr: bytes) -> Joined:
        try:
            public_key = parse_csr(csr)
        except X509Error as error:
            raise ProvisioningError("csr_malformed", str(error)) from error
        now = int(self._clock.now())
        svid = self._authority().sign_x509(
            spiffe_id,
            public_key=public_key,
            serial=new_serial(self._ids),
            now=now,
            lifetime=self._tables().lifetime("x509-svid").seconds,
            fence=Fence(f"{node_id}:{self._ids.new()}", self._registry.seq),
        )
        return Joined(spiffe_id, svid, int(svid.not_after))

    def _refused(
        self,
        error: AimsError,
        claimed: Mapping[str, str] | None,
        request_id: str,
        agent: Mapping[str, str] | None = None,
    ) -> Plan[Joined]:
        octets = body(
            type="node.refuse",
            outcome="refused",
            time=self._clock.now(),
            id=self._ids.new(),
            request_id=request_id,
            agent=agent,
            claimed=claimed,
            action="node.renew" if agent else "node.join",
            decision={"effect": "deny", "reason": error.code},
        )

        def answer(_: Outcome) -> NoReturn:
            raise error

        return Plan(Write(record=lambda _: octets), answer)


def _token(joined: Joined) -> dict[str, Any]:
    fence = joined.svid.fence
    return {
        "kind": "x509-svid",
        "jti": f"{joined.svid.serial:x}",
        "exp": joined.expires_at,
        "cnf": joined.svid.thumbprint,
        "epoch": None if fence is None else fence.epoch,
    }


def _admitted(outcome: Outcome, joined: Joined) -> Joined:
    if outcome.verdict is Verdict.COMMITTED:
        return joined
    if outcome.verdict is Verdict.CONFLICT:  # only behind a token that is good: the node was banned meanwhile
        raise ProvisioningError("node_banned")
    raise ProvisioningError("join_refused", f"{outcome.verdict}")
