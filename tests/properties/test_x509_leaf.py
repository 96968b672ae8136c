"""The octets of a leaf beside those that the library's builder writes, and the little DER that they are made of."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from tests.properties.x509_material import BOTH, HOUR, usage

from aims.keys import Algorithm, Purpose, generate
from aims.x509 import Epoch, LeafIssuer, X509Error, build_ca, der
from aims.x509.epoch import MAX_EPOCH
from aims.x509.leaf import MOST_NAMES_OCTETS
from aims.x509.public_key import LeafKey

# the authority began two years before UTCTime ends, and lives two years beyond it
BEGAN: Final = datetime(2048, 1, 1, tzinfo=UTC).timestamp()
LIFE: Final = 4 * 365 * 24 * HOUR
ALGORITHMS: Final[dict[Algorithm, hashes.SHA256 | hashes.SHA384]] = {
    Algorithm.ES256: hashes.SHA256(),
    Algorithm.ES384: hashes.SHA384(),
}
KEYS: Final[dict[str, LeafKey]] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()).public_key(),
    "P-384": ec.generate_private_key(ec.SECP384R1()).public_key(),
    "RSA": rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key(),
}
NAME: Final = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=300)
LABEL: Final = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=60)


@cache
def _authority(algorithm: Algorithm) -> tuple[x509.Certificate, LeafIssuer, ec.EllipticCurvePrivateKey]:
    key = generate(Purpose.X509_CA, algorithm)
    root = build_ca(key, uri="spiffe://a.test", serial=7, now=BEGAN, lifetime=LIFE)
    private = key.certificate_key()
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return root, LeafIssuer(root, key), private


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


@given(
    algorithm=st.sampled_from(sorted(ALGORITHMS)),
    kind=st.sampled_from(sorted(KEYS)),
    path=NAME,
    names=st.lists(LABEL, max_size=4),
    serial=st.integers(1, (1 << 159) - 1),
    age=st.integers(0, int(LIFE) - 1),
    lifetime=st.integers(1, 24 * 3600),
    epoch=st.none() | st.builds(Epoch, st.integers(0, MAX_EPOCH), NAME.filter(lambda text: len(text) <= 256)),
)
def test_a_leaf_is_what_the_library_would_build(
    *,
    algorithm: Algorithm,
    kind: str,
    path: str,
    names: list[str],
    serial: int,
    age: int,
    lifetime: int,
    epoch: Epoch | None,
) -> None:
    root, issuer, private = _authority(algorithm)
    now, key = BEGAN + age, KEYS[kind]
    leaf = issuer.issue(
        public_key=key,
        uri=f"spiffe://a.test/{path}",
        serial=serial,
        now=now,
        lifetime=lifetime,
        epoch=epoch,
        dns_names=names,
    )
    alternative: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"spiffe://a.test/{path}")]
    alternative.extend(map(x509.DNSName, names))
    identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (usage("digital_signature", "key_encipherment", "key_agreement"), True),
        (BOTH, False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False),
        (x509.SubjectAlternativeName(alternative), True),
        (x509.SubjectKeyIdentifier.from_public_key(key), False),
    ]
    if epoch is not None:
        extensions.append((epoch.extension(), False))
    builder = (
        x509.CertificateBuilder()
        .issuer_name(root.subject)
        .subject_name(x509.Name([]))
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(max(_utc(now - 10), root.not_valid_before_utc))
        .not_valid_after(min(_utc(now + lifetime), root.not_valid_after_utc))
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    expected = builder.sign(private, ALGORITHMS[algorithm])
    assert leaf.tbs_certificate_bytes == expected.tbs_certificate_bytes
    assert leaf.signature_algorithm_oid == expected.signature_algorithm_oid
    leaf.verify_directly_issued_by(root)


def test_more_names_than_a_certificate_takes_are_refused() -> None:
    _, issuer, _ = _authority(Algorithm.ES256)
    names = ["a" * 250] * (MOST_NAMES_OCTETS // 250)
    with pytest.raises(X509Error, check=lambda error: error.reason == "name"):
        issuer.issue(
            public_key=KEYS["P-256"], uri="spiffe://a.test/x", serial=1, now=BEGAN, lifetime=60, dns_names=names
        )


@pytest.mark.parametrize(
    ("dotted", "octets"),
    [
        ("2.5.29.17", "0603551d11"),
        ("2.999.3", "0603883703"),  # X.690 8.19.5
        ("1.2.840.10045.4.3.2", "06082a8648ce3d040302"),
        ("2.25.92730736596612367517875457926072993455", "061469818bc3a593a0bbfa9dd191cda4ee8a9dd68d2f"),
    ],
)
def test_object_identifiers_are_written_as_x690_says(dotted: str, octets: str) -> None:
    assert der.object_identifier(dotted).hex() == octets
