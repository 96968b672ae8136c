"""What the token door costs beside the bare signature: microseconds per operation, best of several rounds."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from aims.identifiers import SpiffeId
from aims.jose import ClaimKind, KeySet, Profile, VerificationKey, open_token, sign_now
from aims.jose.algorithms import sign_raw

NOW = 1_764_000_000
AUDIENCE = "https://localhost:8440"
PROFILE = Profile(
    name="benchmark",
    algorithms=frozenset({"ES256"}),
    typ=("JWT",),
    required={"sub": ClaimKind.STRING, "aud": ClaimKind.AUDIENCE, "exp": ClaimKind.NUMERIC_DATE},
    optional={"instance": ClaimKind.STRING, "epoch": ClaimKind.INTEGER, "cnf": ClaimKind.OBJECT},
    audience="single",
    subject=SpiffeId.parse_workload,
)
CLAIMS = {
    "sub": "spiffe://acme.example/agents/researcher",
    "aud": [AUDIENCE],
    "exp": NOW + 300,
    "iat": NOW,
    "iss": "https://localhost:8440/spiffe",
    "instance": "node-1:abcdefghijklmnopqrstuvwxyz",
    "epoch": 1234,
    "cnf": {"jkt": "sWptYalQwqq7mvswEtvcpHYbrI-lqgVH7SdfkHinUzI"},
}


class _Key:
    """A P-256 key in process."""

    algorithm, kid = "ES256", "key-1"

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())

    def sign_now(self, data: bytes) -> bytes:
        return sign_raw(self.algorithm, self.private, data)

    async def sign(self, data: bytes) -> bytes:
        return self.sign_now(data)


def measure(rounds: int = 7, number: int = 2000) -> Mapping[str, float]:
    """Return microseconds per operation, the best of ``rounds`` interleaved rounds, by the operation's name."""
    key = _Key()
    public, es256 = key.private.public_key(), ec.ECDSA(hashes.SHA256())
    keys = KeySet([VerificationKey("key-1", "ES256", public)])
    token = sign_now({"typ": "JWT"}, CLAIMS, key)
    data = token.rpartition(".")[0].encode()
    der = key.private.sign(data, es256)
    operations: dict[str, Callable[[], object]] = {
        "raw ES256 verify": lambda: public.verify(der, data, es256),
        "door, ES256 token": lambda: open_token(token, PROFILE, keys, now=NOW, audience=AUDIENCE),
        "raw ES256 sign": lambda: key.private.sign(data, es256),
        "sign_now, ES256 token": lambda: sign_now({"typ": "JWT"}, CLAIMS, key),
    }
    best = dict.fromkeys(operations, float("inf"))
    for _ in range(rounds):
        for name, operation in operations.items():
            best[name] = min(best[name], timeit.timeit(operation, number=number) / number * 1e6)
    return best


def main() -> None:
    """Print the table."""
    for name, microseconds in measure().items():
        print(f"{name:24} {microseconds:8.1f} us")


if __name__ == "__main__":
    main()
