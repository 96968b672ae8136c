"""What this server shows on its own listeners: an X509-SVID to nodes and agents, a ``localhost`` certificate to people.

Both have keys that were made here and touch no disk; every worker process has its own. They are issued like any other
credential: with a record, and only after it was committed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509

from aims.audit.record import recorder
from aims.clock import Clock, IdSource
from aims.credentials.model import Fence
from aims.identifiers import SpiffeId
from aims.keys import Purpose, generate
from aims.provisioning.authority.service import new_serial
from aims.provisioning.authority.signing import Authority
from aims.provisioning.registry.model import SERVER
from aims.provisioning.registry.service import settled
from aims.storage.intent import Plan
from aims.storage.write import Write
from aims.tls import TlsIdentity
from aims.x509.issue import build_localhost
from aims.x509.public_key import leaf_key

SVID_LIFE: Final = 3600
LOCALHOST_LIFE: Final = 30 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Certificate and key for a listener, and when (Unix seconds, half of its life) to ask for the next."""

    identity: TlsIdentity
    renew_at: float
    expires_at: float


def own_svid(authority: Authority, *, epoch: int, clock: Clock, ids: IdSource) -> Plan[Shown]:
    """Issue this process its X509-SVID ``spiffe://TD/services/aims`` under a fresh key, for an hour.

    ``epoch`` is the number of the feed that was read. Renew it at ``renew_at``, and whenever the authority changes.
    """
    spiffe_id = SpiffeId.service(authority.trust_domain, SERVER)
    key = generate(Purpose.NODE)
    now = int(clock.now())
    instance = f"{SERVER}:{ids.new()}"
    svid = authority.sign_x509(
        spiffe_id,
        public_key=leaf_key(key.public_key()),
        serial=new_serial(ids),
        now=now,
        lifetime=max(1, min(SVID_LIFE, authority.ends(Purpose.X509_CA) - now)),
        fence=Fence(instance, epoch),
    )
    shown = Shown(
        identity=TlsIdentity(svid.chain, key.certificate_key()),
        renew_at=(now + svid.not_after) / 2,
        expires_at=svid.not_after,
    )
    agent = {"id": str(spiffe_id), "instance": instance, "key_thumbprint": svid.thumbprint}
    return _plan(shown, svid.leaf, "x509-svid", str(spiffe_id), agent, clock, ids)


def localhost(authority: Authority, *, clock: Clock, ids: IdSource) -> Plan[Shown]:
    """Issue a certificate for ``localhost`` and loopback by the local TLS authority, for thirty days.

    That authority vouches for nothing else and stands in no SPIFFE bundle.
    """
    key = generate(Purpose.TLS_PUBLIC)
    now = int(clock.now())
    life = max(1, min(LOCALHOST_LIFE, authority.ends(Purpose.TLS_PUBLIC) - now))
    leaf = build_localhost(
        authority.tls_ca,
        authority.tls_key,
        public_key=leaf_key(key.public_key()),
        serial=new_serial(ids),
        now=now,
        lifetime=life,
    )
    shown = Shown(
        identity=TlsIdentity((leaf,), key.certificate_key()),
        renew_at=now + life / 2,
        expires_at=leaf.not_valid_after_utc.timestamp(),
    )
    agent = {"id": str(SpiffeId.service(authority.trust_domain, SERVER))}
    return _plan(shown, leaf, "tls-public", "https://localhost", agent, clock, ids)


def _plan(  # noqa: PLR0917  inner function of two callers
    shown: Shown,
    leaf: x509.Certificate,
    kind: str,
    resource: str,
    agent: dict[str, Any],
    clock: Clock,
    ids: IdSource,
) -> Plan[Shown]:
    record = recorder(
        refuse="credential.refuse",
        type="credential.issue",
        outcome="success",
        time=clock.now(),
        id=ids.new(),
        request_id=ids.new(),
        agent=agent,
        resource=resource,
        action="issue",
        decision={"effect": "permit", "reason": "the server's own listener"},
        posture={"level": "server"},
        token={"kind": kind, "jti": f"{leaf.serial_number:x}", "exp": int(shown.expires_at)},
    )
    return Plan(Write(record=record), lambda outcome: settled(outcome, shown, "changed"))
