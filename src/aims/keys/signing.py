"""Keys as the rest of AIMS sees them: a purpose, a name, an algorithm, and a way to sign."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, Protocol, cast

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aims.keys.errors import KeyStoreError
from aims.keys.purpose import ALGORITHMS, CERTIFICATE_PURPOSES, Algorithm, Purpose

PublicKeyObject = EllipticCurvePublicKey | Ed25519PublicKey
PrivateKeyObject = EllipticCurvePrivateKey | Ed25519PrivateKey


class SigningKey(Protocol):
    """A private key at work; where it lives is its store's business.

    ``kid`` is the RFC 7638 thumbprint (SHA-256, base64url), so it is unique over every kind of key.
    """

    @property
    def purpose(self) -> Purpose: ...
    @property
    def kid(self) -> str: ...
    @property
    def algorithm(self) -> Algorithm: ...

    def public_key(self) -> PublicKeyObject:
        """Return the public half."""
        ...

    async def sign(self, data: bytes) -> bytes:
        """Sign as JOSE does (RFC 7518 3.4: r || s).

        Raises: KeyStoreError ``purpose`` for a key whose purpose is certificates.
        """
        ...

    def certificate_key(self) -> PrivateKeyObject:
        """Return the private-key object (or a stand-in of its ABC) for X.509 builders and TLS.

        Raises: KeyStoreError ``purpose`` for a key whose purpose is not certificates.
        """
        ...


class ImmediateKey(SigningKey, Protocol):
    """A key in this process, which signs without waiting. Keys elsewhere do not have the method."""

    def sign_now(self, data: bytes) -> bytes:
        """Sign as `sign` does, at once. Raises: KeyStoreError ``purpose``."""
        ...


def immediate(key: SigningKey) -> ImmediateKey:
    """Return ``key`` as one that signs without waiting.

    Raises: KeyStoreError ``not_local``.
    """
    if not callable(getattr(key, "sign_now", None)):
        raise KeyStoreError("not_local", key.kid)
    return cast("ImmediateKey", key)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalKey:
    """An `ImmediateKey`: its private part is in this process. It has no readable form and cannot be pickled."""

    purpose: Purpose
    kid: str
    algorithm: Algorithm
    _private: PrivateKeyObject = field(repr=False, compare=False)

    def public_key(self) -> PublicKeyObject:
        return self._private.public_key()

    async def sign(self, data: bytes) -> bytes:
        return self.sign_now(data)

    def sign_now(self, data: bytes) -> bytes:
        if self.purpose in CERTIFICATE_PURPOSES:
            raise KeyStoreError("purpose", f"a key for {self.purpose} signs no tokens")
        return _SIGN[self.algorithm](self._private, data)

    def certificate_key(self) -> PrivateKeyObject:
        if self.purpose not in CERTIFICATE_PURPOSES:
            raise KeyStoreError("purpose", f"a key for {self.purpose} signs no certificates")
        return self._private

    def __reduce__(self) -> NoReturn:
        raise TypeError("private keys are not pickled")


def generate(purpose: Purpose, algorithm: Algorithm | None = None) -> LocalKey:
    """Make a fresh key in this process; without ``algorithm`` the purpose's default.

    Raises: KeyStoreError ``algorithm``.
    """
    chosen = ALGORITHMS[purpose][0] if algorithm is None else algorithm
    if chosen not in ALGORITHMS[purpose]:
        raise KeyStoreError("algorithm", f"{chosen} for {purpose}")
    return local_key(purpose, _GENERATE[chosen]())


def local_key(purpose: Purpose, private: object) -> LocalKey:
    """Wrap a private-key object.

    Raises: KeyStoreError ``algorithm`` where the purpose does not allow this kind of key.
    """
    if not isinstance(private, EllipticCurvePrivateKey | Ed25519PrivateKey):
        raise KeyStoreError("algorithm", f"{type(private).__name__} for {purpose}")
    public = private.public_key()
    algorithm = _algorithm(public)
    if algorithm not in ALGORITHMS[purpose]:
        raise KeyStoreError("algorithm", f"{algorithm} for {purpose}")
    return LocalKey(purpose=purpose, kid=thumbprint(public), algorithm=algorithm, _private=private)


def thumbprint(key: PublicKeyObject) -> str:
    """Return the RFC 7638 SHA-256 thumbprint (EC: 3.2; OKP: RFC 8037 2) as unpadded base64url."""
    if isinstance(key, Ed25519PublicKey):
        members = {"crv": "Ed25519", "kty": "OKP", "x": _b64(key.public_bytes(Encoding.Raw, PublicFormat.Raw))}
    else:
        numbers, size = key.public_numbers(), (key.curve.key_size + 7) // 8
        members = {
            "crv": _CURVES[key.curve.name],
            "kty": "EC",
            "x": _b64(numbers.x.to_bytes(size, "big")),
            "y": _b64(numbers.y.to_bytes(size, "big")),
        }
    return _b64(hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).digest())


def _algorithm(key: PublicKeyObject) -> Algorithm | None:
    if isinstance(key, Ed25519PublicKey):
        return Algorithm.ED25519
    return {"secp256r1": Algorithm.ES256, "secp384r1": Algorithm.ES384}.get(key.curve.name)


def _ecdsa(size: int, digest: hashes.HashAlgorithm) -> Callable[[PrivateKeyObject, bytes], bytes]:
    scheme = ECDSA(digest)

    def sign(private: PrivateKeyObject, data: bytes) -> bytes:
        assert isinstance(private, EllipticCurvePrivateKey)  # noqa: S101  local_key tied the algorithm to the kind
        r, s = decode_dss_signature(private.sign(data, scheme))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    return sign


def _eddsa(private: PrivateKeyObject, data: bytes) -> bytes:
    assert isinstance(private, Ed25519PrivateKey)  # noqa: S101  local_key tied the algorithm to the kind
    return private.sign(data)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384"}
_SIGN: dict[Algorithm, Callable[[PrivateKeyObject, bytes], bytes]] = {
    Algorithm.ES256: _ecdsa(32, hashes.SHA256()),
    Algorithm.ES384: _ecdsa(48, hashes.SHA384()),
    Algorithm.ED25519: _eddsa,
}
_GENERATE: dict[Algorithm, Callable[[], PrivateKeyObject]] = {
    Algorithm.ES256: lambda: generate_private_key(SECP256R1()),
    Algorithm.ES384: lambda: generate_private_key(SECP384R1()),
    Algorithm.ED25519: Ed25519PrivateKey.generate,
}
