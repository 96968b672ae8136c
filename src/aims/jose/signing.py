"""Making a token in two steps, so that the signature between them may be awaited from an HSM or a KMS."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

import msgspec

from aims.jose import base64url
from aims.jose.algorithms import ALGORITHMS
from aims.jose.errors import JoseError

_encode = msgspec.json.Encoder().encode


class Signer(Protocol):
    """A private key of one purpose, wherever it lives."""

    @property
    def algorithm(self) -> str:
        """The one JOSE algorithm that this key signs with."""
        ...

    @property
    def kid(self) -> str:
        """The identifier under which verifiers know the key."""
        ...

    async def sign(self, data: bytes) -> bytes:
        """Return the signature in JOSE form (ECDSA: ``r || s``)."""
        ...


class ImmediateSigner(Signer, Protocol):
    """A key in process, which signs without waiting."""

    def sign_now(self, data: bytes) -> bytes:
        """Return the signature in JOSE form."""
        ...


def signing_input(header: Mapping[str, Any], claims: Mapping[str, Any]) -> bytes:
    """Return the octets to sign. Both mappings must hold JSON values only, in the order to be written."""
    return base64url.encode(_encode(header)) + b"." + base64url.encode(_encode(claims))


def assemble(signed: bytes, signature: bytes) -> str:
    """Return the compact token of a signing input and its signature in JOSE form."""
    return (signed + b"." + base64url.encode(signature)).decode("ascii")


async def sign(header: Mapping[str, Any], claims: Mapping[str, Any], key: Signer, *, with_kid: bool = True) -> str:
    """Return a compact token. ``alg`` comes from the key, and ``kid`` too unless ``with_kid`` is false.

    Raises:
        JoseError: ``alg``, the header names another algorithm; ``signature``, the key gave no signature in JOSE form.
    """
    signed = _prepare(header, claims, key, with_kid=with_kid)
    # asked by name: a check against the protocol would cost a tenth of the signature
    immediate = getattr(key, "sign_now", None)
    signature = await key.sign(signed) if immediate is None else immediate(signed)
    return _finish(signed, key.algorithm, signature)


def sign_now(
    header: Mapping[str, Any], claims: Mapping[str, Any], key: ImmediateSigner, *, with_kid: bool = True
) -> str:
    """Do what ``sign`` does, with a key in process."""
    signed = _prepare(header, claims, key, with_kid=with_kid)
    return _finish(signed, key.algorithm, key.sign_now(signed))


@lru_cache(maxsize=256)
def _plain_head(typ: str, algorithm: str, kid: str | None) -> bytes:
    header = {"typ": typ, "alg": algorithm} if kid is None else {"typ": typ, "alg": algorithm, "kid": kid}
    return base64url.encode(_encode(header))


def _prepare(header: Mapping[str, Any], claims: Mapping[str, Any], key: Signer, *, with_kid: bool) -> bytes:
    algorithm = key.algorithm
    if algorithm not in ALGORITHMS or header.get("alg", algorithm) != algorithm:
        raise JoseError("alg", "header and signing key differ")
    if header.keys() == {"typ"}:
        head = _plain_head(header["typ"], algorithm, key.kid if with_kid else None)
        return head + b"." + base64url.encode(_encode(claims))
    return signing_input({**header, "alg": algorithm, **({"kid": key.kid} if with_kid else {})}, claims)


def _finish(signed: bytes, algorithm: str, signature: bytes) -> str:
    # A DER signature of a careless key store would be refused by every verifier; say so at the source.
    row = ALGORITHMS[algorithm]
    octets = 64 if row.kty == "OKP" else 2 * row.octets
    if not signature or (octets and len(signature) != octets):
        raise JoseError("signature", "the key gave no signature in JOSE form")
    return assemble(signed, signature)
