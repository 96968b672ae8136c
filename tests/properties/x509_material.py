"""Certificates for tests: good ones from the issuer itself, bad ones from a builder that refuses nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aims.keys import LocalKey, Purpose, generate
from aims.x509 import LeafIssuer, build_ca, serial_from

NOW: Final = float(int(time.time()))
HOUR: Final = 3600.0
Extensions = Sequence[tuple[x509.ExtensionType, bool]]
Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def serial() -> int:
    return serial_from(os.urandom(20))


class Domain:
    """One trust domain with its authority."""

    def __init__(self, name: str = "a.test", *, lifetime: float = 24 * HOUR, now: float = NOW) -> None:
        self.uri = f"spiffe://{name}"
        self.key: LocalKey = generate(Purpose.X509_CA)
        self.root = build_ca(self.key, uri=self.uri, serial=serial(), now=now, lifetime=lifetime)
        self.issuer = LeafIssuer(self.root, self.key)

    def leaf(self, path: str = "/agents/a", *, key: ec.EllipticCurvePrivateKey | None = None) -> x509.Certificate:
        public = (key or ec.generate_private_key(ec.SECP256R1())).public_key()
        return self.issuer.issue(public_key=public, uri=self.uri + path, serial=serial(), now=NOW, lifetime=HOUR)


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def usage(*bits: str) -> x509.KeyUsage:
    names = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    names += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**{one: one in bits for one in names})


def uris(*texts: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(text) for text in texts])


BOTH: Final = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
LEAF: Final[Extensions] = (
    (x509.BasicConstraints(ca=False, path_length=None), True),
    (usage("digital_signature"), True),
    (BOTH, False),
)


def ca_extensions(path_length: int | None = None, *more: tuple[x509.ExtensionType, bool]) -> Extensions:
    return (
        (x509.BasicConstraints(ca=True, path_length=path_length), True),
        (usage("key_cert_sign", "crl_sign"), True),
        *more,
    )


def forge(
    *,
    subject: x509.Name,
    issuer: x509.Name,
    key: Key,
    signer: Key,
    extensions: Extensions,
    before: float = NOW - 10,
    after: float = NOW + HOUR,
) -> x509.Certificate:
    """Build whatever is asked for, with the key identifiers that path validation wants."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial())
        .not_valid_before(datetime.fromtimestamp(before, UTC))
        .not_valid_after(datetime.fromtimestamp(after, UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def forge_leaf(
    domain: Domain, *, san: x509.SubjectAlternativeName | None, extensions: Extensions = LEAF, after: float = NOW + HOUR
) -> x509.Certificate:
    """A leaf of ``domain`` with any names and extensions."""
    signer = domain.key.certificate_key()
    extra = () if san is None else ((san, True),)
    return forge(
        subject=x509.Name([]),
        issuer=domain.root.subject,
        key=ec.generate_private_key(ec.SECP256R1()),
        signer=signer,
        extensions=(*extensions, *extra),
        after=after,
    )
