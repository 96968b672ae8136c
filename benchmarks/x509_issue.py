"""X509-SVIDs issued per second against bare ECDSA P-256 signatures of the same run, one core, best of five rounds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from aims.keys import Purpose, generate
from aims.x509 import Epoch, LeafIssuer, build_ca, serial_from
from aims.x509.public_key import LeafKey

ROUND = 2000
ROUNDS = 5


def _rate(work: Callable[[], object]) -> float:
    best = 0.0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(ROUND):
            work()
        best = max(best, ROUND / (time.perf_counter() - start))
    return best


def main() -> None:
    now = time.time()
    key = generate(Purpose.X509_CA)
    authority = build_ca(key, uri="spiffe://bench.test", serial=serial_from(os.urandom(20)), now=now, lifetime=86400)
    issuer = LeafIssuer(authority, key)
    public: LeafKey = ec.generate_private_key(ec.SECP256R1()).public_key()
    epoch = Epoch(1_000_000, "node-1:0123456789abcdefghijklmnop")

    def issue() -> bytes:
        serial = serial_from(os.urandom(20))
        leaf = issuer.issue(
            public_key=public, uri="spiffe://bench.test/agents/a", serial=serial, now=now, lifetime=3600, epoch=epoch
        )
        return leaf.public_bytes(Encoding.DER)

    private, scheme, data = ec.generate_private_key(ec.SECP256R1()), ec.ECDSA(hashes.SHA256()), os.urandom(600)
    raw = _rate(lambda: private.sign(data, scheme))
    issued = _rate(issue)
    print(f"raw P-256 signatures/s {raw:.0f}   X509-SVIDs/s {issued:.0f}   share {issued / raw:.2f}")


if __name__ == "__main__":
    main()
