"""The PyPI client `spiffe`, unchanged, in a process of its own; says what it sees as JSON lines.

Arguments: address, audience. Reads one line after the first report, then waits for the rotation.
"""

from __future__ import annotations

import json
import sys
import threading

from spiffe import JwtSource, SpiffeId, TrustDomain, WorkloadApiClient, X509Source
from spiffe.workloadapi.errors import WorkloadApiError

address, audience = sys.argv[1:]


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


with WorkloadApiClient(address, default_timeout=10) as client:
    context = client.fetch_x509_context()
    say(
        ids=[str(svid.spiffe_id) for svid in context.x509_svids],
        serial=context.default_svid.leaf.serial_number,
        chain=len(context.default_svid.cert_chain),
        domains=sorted(bundle.trust_domain.name for bundle in client.fetch_x509_bundles().bundles),
    )
    jwt_bundle = client.fetch_jwt_bundles().get_bundle_for_trust_domain(TrustDomain("acme.example"))
    token = client.fetch_jwt_svid({audience})
    asked = client.fetch_jwt_svid({audience}, SpiffeId(str(context.default_svid.spiffe_id)))
    say(
        keys=sorted(jwt_bundle.jwt_authorities) if jwt_bundle else None,
        subject=str(token.spiffe_id),
        asked=str(asked.spiffe_id),
        validated=str(client.validate_jwt_svid(token.token, audience).spiffe_id),
    )
    try:
        client.validate_jwt_svid(token.token + "x", audience)
    except WorkloadApiError as error:
        say(refused=str(error))
    try:
        client.fetch_jwt_svid({audience}, SpiffeId("spiffe://acme.example/agents/other"))
    except WorkloadApiError as error:
        say(refused=str(error))

with (
    X509Source(socket_path=address, timeout_in_seconds=10) as source,
    JwtSource(socket_path=address, timeout_in_seconds=10) as jwt_source,
):
    rotated = threading.Event()
    source.subscribe_for_updates(rotated.set)
    say(source=source.get_x509_context().default_svid.leaf.serial_number, jwt=len(jwt_source.bundles))
    sys.stdin.readline()
    if not rotated.wait(10):
        raise SystemExit("no rotation seen")
    say(rotated=source.get_x509_context().default_svid.leaf.serial_number)
