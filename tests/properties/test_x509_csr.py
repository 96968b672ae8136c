"""Certificate signing requests: what of them counts, and which are refused."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from tests.properties.x509_material import HOUR, NOW, Domain, name, serial, uris

from aims.x509 import X509Error, parse_csr

DOMAIN = Domain()
DER = DOMAIN.leaf().public_bytes(Encoding.DER)
P256 = ec.generate_private_key(ec.SECP256R1())


def _refused(reason: str) -> pytest.RaisesExc[X509Error]:
    return pytest.raises(X509Error, check=lambda error: error.reason == reason)


def _csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name("admin"))
        .add_extension(uris("spiffe://a.test/admin"), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return request.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()).public_bytes(
        Encoding.DER
    )


def test_a_request_gives_its_key_and_nothing_else() -> None:
    for key in (P256, ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        public = parse_csr(_csr(key))
        assert public == key.public_key()
        leaf = DOMAIN.issuer.issue(public_key=public, uri="spiffe://a.test/x", serial=serial(), now=NOW, lifetime=HOUR)
        assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value == uris("spiffe://a.test/x")
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert not list(leaf.subject)


def test_keys_of_other_kinds_are_refused() -> None:
    for key in (
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(3, 2048),
        rsa.generate_private_key(65537, 1024),  # noqa: S505  must be refused
    ):
        with _refused("key_type"):
            parse_csr(_csr(key))


def test_requests_that_prove_nothing_are_refused() -> None:
    good = _csr(P256)
    forged = bytearray(good)
    forged[-1] ^= 1
    with _refused("csr_signature"):
        parse_csr(bytes(forged))
    for bad in (b"", good[:-1], good + b"\x00", DER):
        with _refused("malformed"):
            parse_csr(bad)
    with _refused("too_large"):
        parse_csr(bytes(16385))
