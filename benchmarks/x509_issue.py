"""X509-SVIDs issued per second against bare P-256 signatures of the same run: processor time, best of ten turns."""

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

ROUND = 500
ROUNDS = 10


def _rate(work: Callable[[], object]) -> float:
    start = time.process_time()
    for _ in range(ROUND):
        work()
    return ROUND / (time.process_time() - start)


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
    turns = [(_rate(lambda: private.sign(data, scheme)), _rate(issue)) for _ in range(ROUNDS)]
    raw, issued = (max(rates) for rates in zip(*turns, strict=True))
    print(f"raw P-256 signatures/s {raw:.0f}   X509-SVIDs/s {issued:.0f}   share {issued / raw:.2f}")


if __name__ == "__main__":
    main()
