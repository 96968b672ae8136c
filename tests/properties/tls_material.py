"""Workloads with SVIDs, and two ends of TLS joined in memory."""

from __future__ import annotations

import ssl

from cryptography.hazmat.primitives.asymmetric import ec
from tests.properties.x509_material import HOUR, NOW, Domain, serial

from aims.clock import SystemClock
from aims.credentials.bundle import Bundle, BundleSet
from aims.credentials.model import Fence
from aims.credentials.x509_svid import X509Svid, issue
from aims.identifiers import SpiffeId, TrustDomain
from aims.tls import TlsIdentity

TD, OTHER_TD = TrustDomain("a.test"), TrustDomain("b.test")
A, B = Domain("a.test"), Domain("b.test")
OWN = Bundle(trust_domain=TD, x509_authorities=(A.root,))
BUNDLES = BundleSet([OWN, Bundle(trust_domain=OTHER_TD, x509_authorities=(B.root,))])
OWN_BUNDLES = BundleSet([OWN])
FENCE = Fence("node-1:0123456789abcdefghijklmnop", 7)
CLOCK = SystemClock()
TOOL = SpiffeId.service(TD, "tool")
IMPOSTOR = SpiffeId.service(TD, "other-tool")
AGENT = SpiffeId.agent(TD, "a")
FOREIGN = SpiffeId.agent(OTHER_TD, "a")


class Workload:
    """An identity with its key."""

    def __init__(self, who: SpiffeId, domain: Domain = A, *, fence: Fence | None = FENCE) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.svid: X509Svid = issue(
            domain.issuer,
            who,
            public_key=self.key.public_key(),
            serial=serial(),
            now=NOW,
            lifetime=HOUR,
            fence=fence,
        )
        self.identity = TlsIdentity(self.svid.chain, self.key)


def joined(
    client: ssl.SSLContext, server: ssl.SSLContext, *, name: str | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject, list[ssl.SSLError]]:
    """Drive both handshakes to their end; return both ends and what they raised, client's error first."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_side=False, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    errors: list[ssl.SSLError] = []
    open_ends = list(ends)
    for _ in range(8):
        for end in tuple(open_ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                errors.append(error)
            open_ends.remove(end)
        if not open_ends or errors:
            break
    for end in open_ends:  # what the failed side left in the pipe
        try:
            end.do_handshake()
        except ssl.SSLError as error:
            if not isinstance(error, ssl.SSLWantReadError):
                errors.append(error)
    return ends[0], ends[1], errors
