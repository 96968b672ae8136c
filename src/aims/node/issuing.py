"""Issuing: fresh keys and fresh evidence for each request, and an answer that is believed only if it fits them.

The keys are made here, in the node's memory, and leave it only through the Workload API to the process that they are
for. They are never stored and never sent to the server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from aims.clock import Clock
from aims.credentials import jwt_svid, wit, x509_svid
from aims.errors import AimsError
from aims.identifiers import SpiffeId
from aims.jose.jwk import private_jwk, public_jwk, thumbprint
from aims.node.errors import NodeError
from aims.node.identities import JwtIdentity, WitIdentity, X509Identity
from aims.node.messages import Entry, StopKey
from aims.node.pauses import half_life
from aims.node.processes import Process
from aims.node.server_client import Issued, ServerClient
from aims.node.server_state import ServerState

PROOF_ALGORITHM: Final = "ES256"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What one process was given for one entry: X509-SVID and WIT with their two keys. Times are Unix seconds."""

    x509: X509Identity
    wit: WitIdentity
    jkt: str
    epoch: int
    expires: float
    renew_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A JWT-SVID."""

    identity: JwtIdentity = field(repr=False)
    expires: float
    renew_at: float


class Issuer:
    """Asks the server on behalf of processes. ``client`` returns the one in use."""

    def __init__(self, client: Callable[[], ServerClient], state: ServerState, node: str, clock: Clock) -> None:
        self._client = client
        self._state = state
        self._node = node
        self._clock = clock

    def names(self, spiffe_id: SpiffeId, instance: str) -> tuple[StopKey, ...]:
        """Return all names by which a stop can reach a credential."""
        return ("agent", str(spiffe_id)), ("node", self._node), ("instance", instance)

    async def credential(self, entry: Entry, process: Process) -> Credential:
        """Have an X509-SVID and a WIT issued.

        1. Look at the process again. 2. Two fresh keys. 3. Ask. 4. Believe the answer only if it fits.

        Raises: NodeError: what `Process.evidence` and `ServerClient` raise, ``server_answer``, ``stopped``.
        """
        # 1
        evidence = await process.evidence()
        # 2
        key, proof = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        # 3
        began = self._clock.now()
        answer = await self._client().issue(
            entry=entry.id,
            instance=process.instance,
            csr=request.public_bytes(Encoding.DER),
            proof_key=public_jwk(proof.public_key(), alg=PROOF_ALGORITHM),
            evidence=evidence,
        )
        # 4
        chain = self._fitting(answer, entry, process.instance, key, proof)
        expires = float(answer.expires_at)
        return Credential(
            x509=X509Identity(
                spiffe_id=entry.spiffe_id,
                chain=chain,
                key=key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
                hint=entry.hint,
            ),
            wit=WitIdentity(
                spiffe_id=entry.spiffe_id,
                token=answer.wit,
                key=msgspec.json.encode(private_jwk(proof, alg=PROOF_ALGORITHM)).decode("ascii"),
                hint=entry.hint,
            ),
            jkt=thumbprint(proof.public_key()),
            epoch=answer.epoch,
            expires=expires,
            renew_at=half_life(began, expires),
        )

    async def token(self, entry: Entry, process: Process, audiences: tuple[str, ...], jkt: str) -> Token:
        """Have a JWT-SVID issued that is bound to the proof key ``jkt``.

        Raises: as `credential`.
        """
        evidence = await process.evidence()
        began = self._clock.now()
        answer = await self._client().jwt_svid(
            entry=entry.id, instance=process.instance, audiences=audiences, jkt=jkt, evidence=evidence
        )
        try:
            svid = jwt_svid.validate(
                answer.svid,
                self._state.bundles.jwt_keys,
                audience=audiences[0],
                now=self._clock.now(),
                own=self._state.trust_domain,
            )
        except AimsError as error:
            raise NodeError("server_answer", error.code) from error
        fence = svid.fence
        fits = svid.subject == entry.spiffe_id and set(svid.audience) == set(audiences) and svid.jkt == jkt
        if not fits or fence is None or fence.instance != process.instance:
            raise NodeError("server_answer", "a token for somebody else")
        self._check_stops(entry, process.instance, fence.epoch)
        return Token(
            identity=JwtIdentity(spiffe_id=entry.spiffe_id, token=answer.svid, hint=entry.hint),
            expires=svid.expires,
            renew_at=half_life(began, svid.expires),
        )

    def _fitting(
        self,
        answer: Issued,
        entry: Entry,
        instance: str,
        key: ec.EllipticCurvePrivateKey,
        proof: ec.EllipticCurvePrivateKey,
    ) -> bytes:
        now, own = self._clock.now(), self._state.trust_domain
        try:
            svid = x509_svid.validate(answer.chain(), self._state.bundles, now=now, expected=entry.spiffe_id, own=own)
            token = wit.validate(answer.wit, self._state.bundles.wit_anchors, now=now, own=own)
        except AimsError as error:
            raise NodeError("server_answer", error.code) from error
        fence = svid.fence
        fits = (
            svid.leaf.public_key() == key.public_key()
            and token.thumbprint == thumbprint(proof.public_key())
            and token.subject.spiffe_id() == entry.spiffe_id
            and token.fence == fence
        )
        if not fits or fence is None or fence.instance != instance or fence.epoch != answer.epoch:
            raise NodeError("server_answer", "a credential for somebody else")
        if not now < answer.expires_at <= min(svid.not_after, token.expires) + 1:
            raise NodeError("server_answer", "expires_at")
        self._check_stops(entry, instance, fence.epoch)
        return svid.der

    def _check_stops(self, entry: Entry, instance: str, epoch: int) -> None:
        if self._state.fenced(self.names(entry.spiffe_id, instance), epoch):
            # decided before a stop that this node has heard of meanwhile
            raise NodeError("stopped", "while it was issued")
