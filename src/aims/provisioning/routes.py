"""The node protocol, body in and body out; see ``docs/node-protocol.md``.

A handler decodes, asks a service for a plan, commits it, and encodes the answer. Which listener serves it, the version
header and the framing are the server's. ``peer`` is the X509-SVID that the mTLS handshake verified, None on the public
listener.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn, TypeAlias, TypeVar

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from aims.audit.record import body as record_body
from aims.clock import Clock, IdSource
from aims.credentials.x509_svid import X509Svid
from aims.errors import AimsError
from aims.identifiers import TrustDomain
from aims.jose import JoseError, base64url
from aims.jose.strict_json import read_object
from aims.policy.rows import Credential
from aims.provisioning.authority.signing import Authority
from aims.provisioning.bundles import domain_bundle
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.evidence import Evidence
from aims.provisioning.issuance import IssuanceService
from aims.provisioning.join import Joined, JoinService
from aims.provisioning.launches import launched
from aims.provisioning.registry.memory import Registry
from aims.provisioning.stages import Application
from aims.storage.database import Database
from aims.storage.intent import Plan
from aims.storage.write import Outcome, Write

VERSION: Final = "1"
MAX_BODY: Final = 256 * 1024
JOINS_PER_SECOND: Final = 10
"""Unauthenticated requests that are looked at, and recorded each; those above are counted in one record."""

Answer: TypeAlias = tuple[int, bytes]
Handler: TypeAlias = Callable[[bytes, X509Svid | None], Awaitable[Answer]]
Decided: TypeAlias = tuple[Plan[Any], Callable[[Any], dict[str, Any]]]
"""A plan, and how its answer looks on the wire."""
Inner: TypeAlias = Callable[[bytes, X509Svid | None], Awaitable[Decided]]

_STATUS: Final[Mapping[str, int]] = {
    "provisioning.request_malformed": 400,
    "provisioning.name_malformed": 400,
    "provisioning.csr_malformed": 400,
    "provisioning.proof_key": 400,
    "provisioning.evidence_malformed": 400,
    "provisioning.instance_malformed": 400,
    "provisioning.audiences": 400,
    "provisioning.join_refused": 401,
    "provisioning.peer_not_a_node": 401,
    "provisioning.changed": 409,
    "provisioning.version": 426,
    "provisioning.behind": 503,
    "provisioning.busy": 503,
    "provisioning.authority_empty": 503,
    "provisioning.store_refused": 503,
}
_UNAVAILABLE: Final = frozenset({"storage", "keys", "x509", "audit"})


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A body: unknown members are refused, nothing is converted."""


class JoinBody(_Strict, frozen=True):
    secret: str
    node: str
    csr: str


class RenewBody(_Strict, frozen=True):
    csr: str


class EvidenceBody(_Strict, frozen=True):
    kind: str
    collected_at: int
    selectors: list[str]
    posture: str
    measurement: dict[str, Any] = {}


class IssueBody(_Strict, frozen=True):
    entry: str
    instance: str
    csr: str
    proof_key: dict[str, Any]
    evidence: EvidenceBody


class JwtBody(_Strict, frozen=True):
    entry: str
    instance: str
    audiences: list[str]
    evidence: EvidenceBody
    jkt: str | None = None


class LaunchedBody(_Strict, frozen=True):
    entry: str
    instance: str
    event: Literal["start", "end", "refuse"]
    detail: dict[str, str | int | bool] = {}


@dataclass(frozen=True, slots=True)
class Route:
    """Where a handler belongs: ``public`` or ``mtls``, and what its answer is when it is 200."""

    method: str
    path: str
    listener: Literal["public", "mtls"]
    handle: Handler
    content_type: str = "application/json"


class NodeRoutes:
    """The handlers of the node protocol, for one worker process.

    ``mtls_url`` is where nodes go after joining; ``public_ca`` returns the PEM of the CA behind the public listener.
    ``current`` says whether this process has lately read the change feed to its head: removed entries and withdrawn
    permissions are fenced by nothing else, so without it nothing is issued.
    """

    def __init__(
        self,
        *,
        database: Database,
        registry: Registry,
        authority: Callable[[], Authority],
        joins: JoinService,
        issuance: IssuanceService,
        mtls_url: str,
        public_ca: Callable[[], bytes],
        clock: Clock,
        ids: IdSource,
        current: Callable[[], bool] = lambda: True,
    ) -> None:
        self._database = database
        self._current = current
        self._registry = registry
        self._authority = authority
        self._joins = joins
        self._issuance = issuance
        self._mtls_url = mtls_url
        self._public_ca = public_ca
        self._clock = clock
        self._ids = ids
        self._gate = _Gate(clock)

    def routes(self) -> tuple[Route, ...]:
        """Return every route; ``GET /node/v1/watch`` is composed where streams are."""
        return (
            Route("GET", "/node/v1/ca", "public", self.ca, "application/x-pem-file"),
            Route("POST", "/node/v1/join", "public", self._public(self._answering("node.join", self._join))),
            Route("POST", "/node/v1/renew", "mtls", self._answering("node.renew", self._renew)),
            Route("POST", "/node/v1/issue", "mtls", self._answering("issue", self._issue)),
            Route("POST", "/node/v1/jwt-svid", "mtls", self._answering("issue", self._jwt_svid)),
            Route("POST", "/node/v1/launched", "mtls", self._answering("node.launched", self._launched)),
        )

    async def ca(self, _: bytes, __: X509Svid | None) -> Answer:
        """Show the CA to a node that believes nothing yet; it compares the digest with its token's."""
        return 200, self._public_ca()

    def _answering(self, action: str, inner: Inner) -> Handler:
        """Make a handler: decide, commit, answer. A refusal leaves its record before it is answered."""

        async def handle(body: bytes, peer: X509Svid | None) -> Answer:
            try:
                try:
                    plan, shape = await inner(body, peer)
                except AimsError as error:
                    plan, shape = self._refused(action, error, peer), _nothing
                answer = plan.answer(await self._database.commit(plan.write))
                return 200, msgspec.json.encode(shape(answer))
            except AimsError as error:
                return refusal(error)

        return handle

    def _public(self, handler: Handler) -> Handler:
        """Let only so many strangers a second in; those above are counted in one record instead of one each."""

        async def handle(body: bytes, peer: X509Svid | None) -> Answer:
            passes, counted, since = self._gate.enter()
            try:
                if counted:
                    await self._database.commit(self._flood(counted, since))
            except AimsError as error:
                return refusal(error)
            return await handler(body, peer) if passes else refusal(ProvisioningError("busy"))

        return handle

    async def _join(self, body: bytes, _: X509Svid | None) -> Decided:
        wanted = _decode(body, JoinBody)
        plan = self._joins.join(
            secret=_octets(wanted.secret), node_id=wanted.node, csr=_octets(wanted.csr), request_id=self._ids.new()
        )
        return plan, lambda joined: self._welcome(joined) | {"trust_domain": self._registry.trust_domain.name}

    async def _renew(self, body: bytes, peer: X509Svid | None) -> Decided:
        node_id = self._node(peer)
        self._require_current()
        wanted = _decode(body, RenewBody)
        plan = self._joins.renew(node_id=node_id, csr=_octets(wanted.csr), request_id=self._ids.new())
        return plan, self._welcome

    async def _issue(self, body: bytes, peer: X509Svid | None) -> Decided:
        node_id = self._node(peer)
        self._require_current()
        wanted = _decode(body, IssueBody)
        application = _application(node_id, wanted, ("x509-svid", "wit"))
        plan = await self._issuance.issue(
            application, csr=_octets(wanted.csr), proof_key=wanted.proof_key, request_id=self._ids.new()
        )
        return plan, lambda issued: {
            "spiffe_id": str(issued.spiffe_id),
            "svid": _chain(issued.svid),
            "wit": issued.wit,
            "epoch": issued.epoch,
            "expires_at": issued.expires_at,
        }

    async def _jwt_svid(self, body: bytes, peer: X509Svid | None) -> Decided:
        node_id = self._node(peer)
        self._require_current()
        wanted = _decode(body, JwtBody)
        application = _application(node_id, wanted, ("jwt-svid",))
        plan = await self._issuance.jwt_svid(
            application, audiences=tuple(wanted.audiences), jkt=wanted.jkt, request_id=self._ids.new()
        )
        return plan, lambda issued: {
            "spiffe_id": str(issued.spiffe_id),
            "svid": issued.svid,
            "expires_at": issued.expires_at,
        }

    async def _launched(self, body: bytes, peer: X509Svid | None) -> Decided:
        node_id = self._node(peer)
        wanted = _decode(body, LaunchedBody)
        plan = launched(
            self._registry,
            self._clock,
            self._ids,
            node_id=node_id,
            entry_id=wanted.entry,
            instance=wanted.instance,
            event=wanted.event,
            detail=wanted.detail,
            request_id=self._ids.new(),
        )
        return plan, _nothing

    def _refused(self, action: str, error: AimsError, peer: X509Svid | None) -> Plan[NoReturn]:
        # Only what the handshake verified is said about the caller; its body was not understood.
        octets = record_body(
            type="node.refuse",
            outcome="refused",
            time=self._clock.now(),
            id=self._ids.new(),
            request_id=self._ids.new(),
            agent=None if peer is None else {"id": str(peer.spiffe_id)},
            action=action,
            decision={"effect": "deny", "reason": error.code},
        )

        def answer(_: Outcome) -> NoReturn:
            raise error

        return Plan(Write(record=lambda _: octets), answer)

    def _flood(self, count: int, since: float) -> Write:
        octets = record_body(
            type="request.refuse",
            outcome="refused",
            time=self._clock.now(),
            id=self._ids.new(),
            request_id=self._ids.new(),
            action="node.join",
            decision={"effect": "deny", "reason": "provisioning.busy"},
            flood={"count": count, "since": int(since), "listener": "public"},
        )
        return Write(record=lambda _: octets)

    def _welcome(self, joined: Joined) -> dict[str, Any]:
        return {
            "spiffe_id": str(joined.spiffe_id),
            "svid": _chain(joined.svid),
            "bundle": msgspec.Raw(domain_bundle(self._authority()).build()),
            "mtls_url": self._mtls_url,
            "expires_at": joined.expires_at,
        }

    def _require_current(self) -> None:
        if not self._current():
            raise ProvisioningError("behind")

    def _node(self, peer: X509Svid | None) -> str:
        return node_of(peer, self._registry.trust_domain)


def node_of(peer: X509Svid | None, trust_domain: TrustDomain) -> str:
    """Return the id of the node that the peer's certificate names, whatever the request says.

    Raises: ProvisioningError ``peer_not_a_node``.
    """
    if peer is None or peer.spiffe_id.trust_domain != trust_domain or peer.fence is None:
        raise ProvisioningError("peer_not_a_node", "no certificate of this trust domain")
    segments = peer.spiffe_id.segments
    if len(segments) != 2 or segments[0] != "nodes":
        raise ProvisioningError("peer_not_a_node", str(peer.spiffe_id))
    return segments[1]


def refusal(error: AimsError) -> Answer:
    """Return status and body for an error: code, sentence and hint, never its private detail."""
    status = _STATUS.get(error.code, 503 if error.layer in _UNAVAILABLE else 403)
    return status, msgspec.json.encode({"error": error.code, "message": error.sentence, "hint": error.hint})


def version_refusal(header: str | None) -> Answer | None:
    """Return the 426 for a request whose ``aims-node-version`` is not ours, None for one that is."""
    return None if header == VERSION else refusal(ProvisioningError("version"))


class _Gate:
    """Lets so many requests a second in, and counts the others for at most one record a second."""

    __slots__ = ("_clock", "_counted", "_left", "_second", "_since")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._second = -1
        self._left = 0
        self._counted = 0
        self._since = 0.0

    def enter(self) -> tuple[bool, int, float]:
        """Return whether the request may pass, and what has to be recorded of earlier ones: how many, since when."""
        second = int(self._clock.monotonic())
        counted, since = 0, self._since
        if second != self._second:
            self._second, self._left = second, JOINS_PER_SECOND
            counted, self._counted = self._counted, 0
        if self._left:
            self._left -= 1
            return True, counted, since
        if self._counted == 0:
            self._since = self._clock.now()
        self._counted += 1
        return False, counted, since


B = TypeVar("B", bound=_Strict)


def _decode(octets: bytes, kind: type[B]) -> B:
    if len(octets) > MAX_BODY:
        raise ProvisioningError("request_malformed", "too long")
    try:
        return msgspec.convert(read_object(octets), kind, strict=True)
    except (JoseError, msgspec.ValidationError) as error:
        raise ProvisioningError("request_malformed", str(error)[:200]) from error


def _octets(text: str) -> bytes:
    try:
        return base64url.decode(text.encode("ascii"))
    except (JoseError, UnicodeEncodeError) as error:
        raise ProvisioningError("request_malformed", "not base64url") from error


def _application(node_id: str, wanted: IssueBody | JwtBody, credentials: tuple[Credential, ...]) -> Application:
    wire = wanted.evidence
    evidence = Evidence.read(
        kind=wire.kind,
        collected_at=wire.collected_at,
        selectors=wire.selectors,
        posture=wire.posture,
        measurement=wire.measurement,
    )
    return Application(
        node_id=node_id,
        entry_id=wanted.entry,
        instance=wanted.instance,
        evidence=evidence,
        credentials=credentials,
    )


def _nothing(_: object) -> dict[str, Any]:
    return {}


def _chain(svid: X509Svid) -> list[str]:
    return [base64url.encode(each.public_bytes(Encoding.DER)).decode("ascii") for each in svid.chain]
