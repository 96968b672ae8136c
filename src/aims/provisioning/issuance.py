"""Issuing what nodes ask for: the stages, then the signature, then one Write.

The Write is fenced on agent, node and instance by the number of the feed that the stages read, and has one record. The
credential leaves only after it was committed. Whatever refuses leaves a record as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeVar

from aims.attestation import UNMEASURED
from aims.audit.record import body, inert, recorder
from aims.clock import Clock, IdSource
from aims.credentials import jwt_svid, wit
from aims.credentials.x509_svid import X509Svid
from aims.errors import AimsError
from aims.identifiers import SpiffeId
from aims.jose import JoseError
from aims.jose.jwk import is_thumbprint, parse_verification_key, thumbprint_of
from aims.jose.keys import VerificationKey
from aims.keys import Purpose
from aims.provisioning.authority.service import new_serial
from aims.provisioning.authority.signing import Authority
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.instances import Standing, noted
from aims.provisioning.registry.memory import Registry
from aims.provisioning.registry.service import settled
from aims.provisioning.stages import STAGES, Application, Grounds, Policy
from aims.storage.intent import Plan
from aims.storage.write import Name, Outcome, Write
from aims.x509 import X509Error, parse_csr
from aims.x509.public_key import LeafKey

MAX_AUDIENCES: Final = 8
MAX_AUDIENCE: Final = 2048
MAX_AUDIENCES_TOGETHER: Final = 4096
PROOF_ALGORITHMS: Final = frozenset({"ES256", "ES384"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Issued:
    """An X509-SVID and a WIT of one instance, with one end."""

    spiffe_id: SpiffeId
    svid: X509Svid
    wit: str = field(repr=False)
    epoch: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A JWT-SVID."""

    spiffe_id: SpiffeId
    svid: str = field(repr=False)
    expires_at: int


class IssuanceService:
    """Issues what nodes ask for on behalf of their workloads.

    ``policy`` and ``authority`` return what is in force now; ``issuer`` is the issuer identifier of JWT-SVIDs.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        policy: Callable[[], Policy],
        authority: Callable[[], Authority],
        issuer: str,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._registry = registry
        self._policy = policy
        self._authority = authority
        self._issuer = issuer
        self._clock = clock
        self._ids = ids

    async def issue(
        self, application: Application, *, csr: bytes, proof_key: Mapping[str, Any], request_id: str
    ) -> Plan[Issued]:
        """Issue an X509-SVID for the key of ``csr`` and a WIT for ``proof_key``, with one Write and one record.

        Of the request only its proved public key is taken. The two keys must differ.

        The answer raises ProvisioningError with the reason of the stage that refused, ``csr_malformed``,
        ``proof_key``, or ``stopped``; PolicyError for a missing row.
        """
        try:
            grounds = self._examine(application)
            leaf_key, proof = _keys(csr, proof_key)
            issued = await self._sign(application, grounds, leaf_key, proof)
        except AimsError as error:
            return self._refused(error, application, request_id)
        token = {
            "kind": "x509-svid wit",
            "jti": f"{issued.svid.serial:x}",
            "exp": issued.expires_at,
            "cnf": thumbprint_of(proof_key),
            "epoch": issued.epoch,
        }
        return self._plan(application, issued, token, issued.svid.thumbprint, request_id)

    async def jwt_svid(
        self, application: Application, *, audiences: tuple[str, ...], jkt: str | None, request_id: str
    ) -> Plan[IssuedToken]:
        """Issue one JWT-SVID for ``audiences``, exactly as asked; ``jkt`` binds it to a key by thumbprint.

        The answer raises as ``issue`` does, or ``audiences``, ``proof_key``.
        """
        try:
            grounds = self._examine(application)
            _check_audiences(audiences)
            if jkt is not None and not is_thumbprint(jkt):
                raise ProvisioningError("proof_key", "jkt is no thumbprint")
            issued, token = await self._sign_jwt(application, grounds, audiences, jkt)
        except AimsError as error:
            return self._refused(error, application, request_id)
        return self._plan(application, issued, token, jkt, request_id)

    def _examine(self, application: Application) -> Grounds:
        grounds = Grounds(self._registry, self._policy(), self._authority(), int(self._clock.now()))
        for stage in STAGES:
            stage(application, grounds)
        return grounds

    async def _sign(
        self, application: Application, grounds: Grounds, leaf_key: LeafKey, proof: VerificationKey
    ) -> Issued:
        spiffe_id, now, fence = application.workload.spiffe_id, grounds.now, application.fence
        svid = grounds.authority.sign_x509(
            spiffe_id,
            public_key=leaf_key,
            serial=new_serial(self._ids),
            now=now,
            lifetime=application.lifetime,
            fence=fence,
        )
        expires = now + application.lifetime
        claims = wit.build_claims(
            spiffe_id, proof.key, str(proof.algorithm), issued_at=now, expires=expires, fence=fence
        )
        text = await grounds.authority.sign_jwt(Purpose.WIT_SVID, claims)
        return Issued(spiffe_id, svid, text, fence.epoch, min(expires, int(svid.not_after)))

    async def _sign_jwt(
        self, application: Application, grounds: Grounds, audiences: tuple[str, ...], jkt: str | None
    ) -> tuple[IssuedToken, dict[str, Any]]:
        spiffe_id, expires, token_id = (
            application.workload.spiffe_id,
            grounds.now + application.lifetime,
            self._ids.new(),
        )
        claims = jwt_svid.build_claims(
            spiffe_id,
            audiences,
            issued_at=grounds.now,
            expires=expires,
            issuer=self._issuer,
            fence=application.fence,
            jkt=jkt,
            token_id=token_id,
        )
        text = await grounds.authority.sign_jwt(Purpose.JWT_SVID, claims)
        token = {
            "kind": "jwt-svid",
            "iss": self._issuer,
            "jti": token_id,
            "aud": [inert(audience) for audience in audiences],
            "exp": expires,
            "cnf": jkt,
            "epoch": application.fence.epoch,
        }
        return IssuedToken(spiffe_id, text, expires), token

    def _plan(
        self,
        application: Application,
        issued: T,
        token: Mapping[str, Any],
        key: str | None,
        request_id: str,
    ) -> Plan[T]:
        agent = str(application.workload.spiffe_id)
        decision = application.decision
        record = recorder(
            refuse="credential.refuse",
            type="credential.issue",
            outcome="success",
            time=self._clock.now(),
            id=request_id,  # one record for one request
            request_id=request_id,
            agent={"id": agent, "instance": application.instance, "key_thumbprint": key},
            node=application.node.id,
            resource=agent,
            action="issue",
            decision={"effect": "permit", "policy_digest": decision.policy, "rules": decision.rules},
            posture=application.evidence.member(),
            token=token,
            details={"entry": application.entry.id},
        )
        names = (
            Name("agent", agent),
            Name("node", application.node.id),
            Name("instance", application.instance),
        )
        standing = Standing(agent, application.evidence.posture, application.entry.launch != UNMEASURED)
        known = noted(application.instance, standing, int(self._clock.now()))
        write = Write(record=record, names=names, seen=application.fence.epoch, effects=(known,))
        return Plan(write, lambda outcome: settled(outcome, issued, "changed"))

    def _refused(self, error: AimsError, application: Application, request_id: str) -> Plan[NoReturn]:
        # The node is authenticated; what it said about a workload is not, until every stage has held.
        octets = body(
            type="credential.refuse",
            outcome="refused",
            time=self._clock.now(),
            id=self._ids.new(),
            request_id=request_id,
            agent={"id": str(SpiffeId.node(self._registry.trust_domain, application.node_id))},
            node=application.node_id,
            claimed={"entry": application.entry_id, "instance": application.instance},
            action="issue",
            decision={"effect": "deny", "reason": error.code},
            posture={
                "level": inert(application.evidence.posture),
                "evidence_digest": application.evidence.digest,
            },
            details={"credentials": " ".join(application.credentials)},
        )

        def answer(_: Outcome) -> NoReturn:
            raise error

        return Plan(Write(record=lambda _: octets), answer)


def _keys(csr: bytes, proof_key: Mapping[str, Any]) -> tuple[LeafKey, VerificationKey]:
    try:
        leaf_key = parse_csr(csr)
    except X509Error as error:
        raise ProvisioningError("csr_malformed", str(error)) from error
    try:
        proof = parse_verification_key(proof_key)
    except JoseError as error:
        raise ProvisioningError("proof_key", str(error)) from error
    algorithm = next(iter(proof.algorithms & PROOF_ALGORITHMS), None)
    if algorithm is None or proof.key == leaf_key:
        raise ProvisioningError("proof_key", "kind of key, or the certificate's own")
    return leaf_key, VerificationKey(None, algorithm, proof.key)


def _check_audiences(audiences: tuple[str, ...]) -> None:
    if not 1 <= len(audiences) <= MAX_AUDIENCES or len(set(audiences)) != len(audiences):
        raise ProvisioningError("audiences", f"{len(audiences)}")
    if sum(map(len, audiences)) > MAX_AUDIENCES_TOGETHER:
        raise ProvisioningError("audiences", "together")
    for audience in audiences:
        if not 1 <= len(audience) <= MAX_AUDIENCE or not audience.isascii() or not audience.isprintable():
            raise ProvisioningError("audiences", repr(audience[:100]))
