"""What this process can show: the X509-SVID for TLS and the proof key with its WIT, made ready for use.

Keys are held as key objects, which have no readable form. Everything is replaced as a whole at each renewal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_der_private_key

from aims.credentials.bundle import Bundle, BundleSet
from aims.credentials.errors import CredentialError
from aims.identifiers import SpiffeId, TrustDomain
from aims.jose import JoseError, KeySet, base64url
from aims.jose.algorithms import PublicKey, sign_raw
from aims.jose.door import decode
from aims.jose.jwk import parse_public, public_jwk, thumbprint
from aims.jose.jwks import parse_jwks
from aims.jose.strict_json import read_object
from aims.sdk.errors import SdkError
from aims.sdk.workload_state import WitMaterial, X509Material, X509State
from aims.tls import TlsError, TlsIdentity
from aims.x509 import X509Error, parse_chain
from aims.x509.chain import MAX_ROOTS

_MAX_WIT_OCTETS: Final = 16 * 1024
_CURVES: Final = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsMaterial:
    """The X509-SVID in use and the bundles that peers are judged by. ``expires`` is in Unix seconds."""

    spiffe_id: SpiffeId
    identity: TlsIdentity = field(repr=False)
    bundles: BundleSet
    expires: float

    @classmethod
    def of(cls, state: X509State) -> TlsMaterial:
        """Take the default identity. Raises: SdkError ``response_invalid``."""
        material = state.svids[0]
        try:
            chain = parse_chain(material.chain)
            identity = TlsIdentity(chain, _private(material))
            own = material.spiffe_id.trust_domain
            found = {own: material.bundle, **{td: der for td, der in state.federated.items() if td != own}}
            bundles = BundleSet(_bundle(domain, der) for domain, der in found.items())
        except (X509Error, TlsError, CredentialError) as error:
            raise SdkError("response_invalid", error.code) from error
        expires = chain[0].not_valid_after_utc.timestamp()
        return cls(spiffe_id=material.spiffe_id, identity=identity, bundles=bundles, expires=expires)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofKey:
    """A WIT and the key that its proofs are made with: an `aims.jose.ImmediateSigner`."""

    spiffe_id: SpiffeId
    wit: str = field(repr=False)
    algorithm: str
    kid: str
    expires: float
    public: PublicKey = field(repr=False)
    _private: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def of(cls, material: WitMaterial) -> ProofKey:
        """Read a WIT with its private key, which must be the one that the WIT confirms.

        Raises: SdkError ``response_invalid``.
        """
        try:
            claims = decode(material.token, _MAX_WIT_OCTETS)[1]
            jwk = read_object(material.key.encode())
            private = _private_key(jwk)
            confirmed = claims["cnf"]["jwk"]
            algorithm, expires = confirmed["alg"], float(claims["exp"])
            own = thumbprint(private.public_key())
            if thumbprint(parse_public(confirmed)) != own:
                raise SdkError("response_invalid", "the WIT confirms another key")
            public_jwk(private.public_key(), alg=algorithm)
        except (JoseError, KeyError, TypeError, ValueError, UnicodeEncodeError) as error:
            # never the cause's text: it may quote what it refuses, which may be a key
            raise SdkError("response_invalid", f"a WIT or its key: {type(error).__name__}") from None
        return cls(
            spiffe_id=material.spiffe_id,
            wit=material.token,
            algorithm=algorithm,
            kid=own,
            expires=expires,
            public=private.public_key(),
            _private=private,
        )

    async def sign(self, data: bytes) -> bytes:
        return self.sign_now(data)

    def sign_now(self, data: bytes) -> bytes:
        return sign_raw(self.algorithm, self._private, data)

    def __reduce__(self) -> Any:
        raise TypeError("private keys are not pickled")


def wit_keys(jwks: str) -> KeySet:
    """Read the WIT keys of one trust domain. Raises: SdkError ``response_invalid``."""
    try:
        return parse_jwks(jwks).keys(None, "wit-svid")
    except JoseError as error:
        raise SdkError("response_invalid", error.code) from error


def _private(material: X509Material) -> Any:
    try:
        return load_der_private_key(material.key, None)
    except (ValueError, TypeError):
        raise SdkError("response_invalid", "the key of an X509-SVID") from None


def _bundle(domain: TrustDomain, der: bytes) -> Bundle:
    return Bundle(trust_domain=domain, x509_authorities=parse_chain(der, most=MAX_ROOTS))


def _private_key(jwk: dict[str, Any]) -> ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey:
    secret = base64url.decode(jwk["d"].encode("ascii"))
    private: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
    if jwk.get("kty") == "OKP":
        private = ed25519.Ed25519PrivateKey.from_private_bytes(secret)
    else:
        private = ec.derive_private_key(int.from_bytes(secret, "big"), _CURVES[jwk["crv"]])
    shown = {name: value for name, value in jwk.items() if name != "d"}
    if thumbprint(parse_public(shown)) != thumbprint(private.public_key()):
        raise ValueError("halves")
    return private
