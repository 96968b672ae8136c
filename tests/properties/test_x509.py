"""The certificate door: what it reads, believes and makes."""

from __future__ import annotations

import base64
import ipaddress
import itertools
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store
from hypothesis import given
from hypothesis import strategies as st
from tests.properties.x509_material import (
    BOTH,
    HOUR,
    LEAF,
    NOW,
    Domain,
    ca_extensions,
    forge,
    forge_leaf,
    name,
    serial,
    uris,
    usage,
)

from aims.keys import Purpose, generate
from aims.x509 import (
    Epoch,
    LeafIssuer,
    X509Error,
    build_ca,
    parse_certificate,
    parse_chain,
    parse_csr,
    parse_pem,
    serial_from,
    verify_chain,
)
from aims.x509.issue import build_localhost, build_tls_ca
from aims.x509.parse import MAX_CERTIFICATE_BYTES, join_der, join_pem, parse_sequence

DOMAIN = Domain()
LEAF_A = DOMAIN.leaf()
DER = LEAF_A.public_bytes(Encoding.DER)
P256 = ec.generate_private_key(ec.SECP256R1())


def _refused(reason: str) -> pytest.RaisesExc[X509Error]:
    return pytest.raises(X509Error, check=lambda error: error.reason == reason)


def _reason(data: bytes) -> str:
    with pytest.raises(X509Error) as caught:
        parse_chain(data)
    return caught.value.reason


def _believe(data: bytes) -> None:
    chain = parse_chain(data)
    verify_chain(chain[0], chain[1:], [DOMAIN.root], NOW)


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


# Parsing


def test_chains_survive_both_forms() -> None:
    chain = (LEAF_A, DOMAIN.root)
    assert parse_chain(join_der(chain)) == chain
    assert parse_pem(join_pem(chain)) == chain
    assert parse_pem(join_pem(chain).replace(b"\n", b"\r\n")) == chain


def test_bounds_of_a_chain() -> None:
    assert len(parse_chain(DER * 10)) == 10
    assert _reason(DER * 11) == "too_many"
    assert _reason(b"") == "empty"
    with _refused("empty"):
        parse_pem(b"")
    with _refused("empty"):
        parse_sequence([])
    with _refused("too_many"):
        parse_sequence([DER] * 11)
    with _refused("too_many"):
        parse_pem(join_pem([LEAF_A] * 11))
    with _refused("too_large"):
        parse_certificate(DER + bytes(MAX_CERTIFICATE_BYTES))
    assert _reason(bytes(10 * MAX_CERTIFICATE_BYTES + 1)) == "too_large"
    with _refused("too_large"):
        parse_pem(b"\n" * (20 * MAX_CERTIFICATE_BYTES + 1))
    big = forge_leaf(DOMAIN, san=uris("spiffe://a.test/" + "a" * MAX_CERTIFICATE_BYTES))
    assert _reason(join_der([big])) == "too_large"


@pytest.mark.parametrize(
    "data",
    [
        DER + b"\x00",
        b"\x00" + DER,
        DER[:-1],
        DER[:3],
        b"\x30",
        b"\x30\x80\x00\x00",
        b"\x30\x00",
        b"\x30\x81\x05\x30\x03\x02\x01\x01",
        b"\x30\x84\x00\x00\x00\x01\x00",
        b"\x30\x82\xff\xff\x00",
        b"\x1f\x01\x00",
        b"\x31" + DER[1:],
        b"not a certificate",
        DER + DER[:-1],
    ],
    ids=itertools.count(),
)
def test_octets_that_are_no_chain(data: bytes) -> None:
    assert _reason(data) == "malformed"


@given(at=st.integers(0, len(DER) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_breaks_the_signature(at: int, bit: int) -> None:
    changed = bytearray(DER)
    changed[at] ^= 1 << bit
    with pytest.raises(X509Error) as caught:
        _believe(bytes(changed))
    assert caught.value.reason in {
        "malformed",
        "untrusted",
        "expired",
        "not_yet_valid",
        "leaf_is_ca",
        "too_large",
    }


@given(st.binary(max_size=300))
def test_noise_never_escapes_the_error_tree(data: bytes) -> None:
    for read in (parse_chain, parse_pem, parse_certificate, parse_csr, Epoch.decode):
        with pytest.raises(X509Error):
            read(data)


@pytest.mark.parametrize(
    "mangle",
    [
        lambda pem: b"text\n" + pem,
        lambda pem: pem + b"text",
        lambda pem: b" " + pem,
        lambda pem: pem.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE"),
        lambda pem: pem.replace(b"-----END", b"=-----END"),
        lambda pem: pem.replace(b"-----END", b"==-----END"),
        lambda pem: pem.replace(b"-----END", b"===-----END"),
        lambda pem: pem.replace(b"-----END", b"====-----END"),
        lambda pem: pem.replace(b"\n", b""),
        lambda _: b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(DER) + b"\n-----END CERTIFICATE-----\n",
    ],
)
def test_pem_with_anything_around_or_inside_is_refused(mangle: object) -> None:
    assert callable(mangle)
    with _refused("pem"):
        parse_pem(mangle(join_pem([LEAF_A])))


def test_serial_numbers_that_are_not_positive_are_refused() -> None:
    at = DER.index(b"\x02", 4 + 4 + 5)
    length = DER[at + 1]
    negative = DER[: at + 2] + b"\x80" + DER[at + 3 :]
    assert _reason(negative) == "malformed"
    assert _reason(DER[: at + 2] + bytes(length) + DER[at + 2 + length :]) == "malformed"


def test_a_certificate_has_one_fingerprint() -> None:
    at = len(DER) - len(LEAF_A.signature) - 1
    assert DER[at : at + 2] == b"\x00\x30"
    for unused in range(1, 9):
        assert _reason(DER[:at] + bytes([unused]) + DER[at + 1 :]) == "malformed"


def test_an_authority_identifier_with_a_serial_that_is_not_positive_is_refused() -> None:
    key = x509.AuthorityKeyIdentifier(b"x", [x509.DirectoryName(name("ca"))], 5)
    good = forge_leaf(DOMAIN, san=uris("spiffe://a.test/x"))
    builder = x509.CertificateBuilder(
        issuer_name=DOMAIN.root.subject,
        subject_name=name("x"),
        public_key=P256.public_key(),
        serial_number=serial(),
        not_valid_before=datetime.fromtimestamp(NOW, UTC).replace(tzinfo=None),
        not_valid_after=datetime.fromtimestamp(NOW + HOUR, UTC).replace(tzinfo=None),
        extensions=[x509.Extension(key.oid, False, key)],
    )
    der = builder.sign(P256, hashes.SHA256()).public_bytes(Encoding.DER)
    assert parse_certificate(der) != good
    assert der.count(b"\x82\x01\x05") == 1
    assert _reason(der.replace(b"\x82\x01\x05", b"\x82\x01\x85")) == "malformed"
    assert _reason(der.replace(b"\x82\x01\x05", b"\x82\x01\x00")) == "malformed"


# Path validation


def test_a_leaf_of_the_domain_is_believed() -> None:
    assert verify_chain(LEAF_A, [], [DOMAIN.root], NOW) == (LEAF_A, DOMAIN.root)
    assert verify_chain(LEAF_A, [], [Domain().root, DOMAIN.root], NOW)[1] == DOMAIN.root


def test_another_domains_authority_is_not_asked() -> None:
    other = Domain("b.test")
    liar = forge_leaf(other, san=uris("spiffe://a.test/agents/a"))
    with _refused("untrusted"):
        verify_chain(liar, [other.root], [DOMAIN.root], NOW)
    # why: the library itself believes it when both roots are in one store
    pooled = PolicyBuilder().store(Store([DOMAIN.root, other.root])).time(_utc(NOW)).build_client_verifier()
    assert pooled.verify(liar, []).chain[1] == other.root


def test_roots_are_authorities_and_never_the_leaf_itself() -> None:
    with _refused("no_roots"):
        verify_chain(LEAF_A, [], [], NOW)
    with _refused("root_not_ca"):
        verify_chain(LEAF_A, [], [LEAF_A], NOW)
    with _refused("root_not_ca"):
        verify_chain(LEAF_A, [], [DOMAIN.root, LEAF_A], NOW)
    with _refused("leaf_is_ca"):
        verify_chain(DOMAIN.root, [], [DOMAIN.root], NOW)
    with _refused("too_many"):
        verify_chain(LEAF_A, [], [DOMAIN.root] * 65, NOW)
    with _refused("too_many"):
        verify_chain(LEAF_A, [DOMAIN.root] * 10, [DOMAIN.root], NOW)
    # why: the library itself believes a leaf that stands in the store, without any signature
    verifier = PolicyBuilder().store(Store([LEAF_A])).time(_utc(NOW)).build_client_verifier()
    assert verifier.verify(LEAF_A, []).chain == [LEAF_A]


def test_validity_is_judged_at_the_given_time() -> None:
    with _refused("not_yet_valid"):
        verify_chain(LEAF_A, [], [DOMAIN.root], NOW - 11)
    assert verify_chain(LEAF_A, [], [DOMAIN.root], NOW - 10)
    assert verify_chain(LEAF_A, [], [DOMAIN.root], NOW + HOUR)
    with _refused("expired"):
        verify_chain(LEAF_A, [], [DOMAIN.root], NOW + HOUR + 1)
    signer = DOMAIN.key.certificate_key()
    old = forge(
        subject=DOMAIN.root.subject,
        issuer=DOMAIN.root.subject,
        key=signer,
        signer=signer,
        extensions=ca_extensions(),
        before=NOW - 100,
        after=NOW - 1,
    )
    with _refused("untrusted"):
        verify_chain(LEAF_A, [], [old], NOW)


def _tower(height: int, *, path_length: int | None = None, ca: bool = True) -> list[x509.Certificate]:
    """Leaf first, root last, with ``height`` certificates between."""
    signer, above = P256, name("root")
    chain = [forge(subject=above, issuer=above, key=P256, signer=P256, extensions=ca_extensions(path_length))]
    for floor in range(height):
        key = ec.generate_private_key(ec.SECP256R1())
        extensions = ca_extensions() if ca else LEAF
        chain.append(forge(subject=name(f"f{floor}"), issuer=above, key=key, signer=signer, extensions=extensions))
        signer, above = key, name(f"f{floor}")
    leaf = (*LEAF, (uris("spiffe://a.test/x"), True))
    key = ec.generate_private_key(ec.SECP256R1())
    chain.append(forge(subject=x509.Name([]), issuer=above, key=key, signer=signer, extensions=leaf))
    return chain[::-1]


def test_intermediates_are_authorities_within_their_path_length() -> None:
    leaf, *between, root = _tower(3)
    assert len(verify_chain(leaf, between[::-1], [root], NOW)) == 5
    with _refused("untrusted"):
        verify_chain(leaf, between[1:], [root], NOW)
    for wrong in (_tower(1, ca=False), _tower(1, path_length=0), _tower(9)):
        leaf, *between, root = wrong
        with _refused("untrusted"):
            verify_chain(leaf, between, [root], NOW)


def test_what_path_validation_does_not_understand_is_refused() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.25.1"), b"\x05\x00")
    critical = forge_leaf(DOMAIN, san=uris("spiffe://a.test/x"), extensions=(*LEAF, (unknown, True)))
    with _refused("untrusted"):
        verify_chain(critical, [], [DOMAIN.root], NOW)
    plain = forge_leaf(DOMAIN, san=uris("spiffe://a.test/x"), extensions=(*LEAF, (unknown, False)))
    assert verify_chain(plain, [], [DOMAIN.root], NOW)
    edwards = ed25519.Ed25519PrivateKey.generate()
    constraint = x509.NameConstraints([x509.UniformResourceIdentifier("a.test")], None)
    for key, more in ((edwards, ()), (P256, ((constraint, True),))):
        root = forge(subject=name("r"), issuer=name("r"), key=key, signer=key, extensions=ca_extensions(None, *more))
        leaf = forge(
            subject=x509.Name([]),
            issuer=name("r"),
            key=P256,
            signer=key,
            extensions=(*LEAF, (uris("spiffe://a.test/x"), True)),
        )
        with _refused("untrusted"):
            verify_chain(leaf, [], [root], NOW)


# Issuing


def test_an_authority_is_only_an_authority() -> None:
    root = DOMAIN.root
    extensions = {extension.oid: extension for extension in root.extensions}
    basic = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert (basic.value.ca, basic.value.path_length) == (True, 0)
    bits = root.extensions.get_extension_for_class(x509.KeyUsage)
    assert bits.critical
    assert bits.value == usage("key_cert_sign", "crl_sign")
    names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(names.value) == [x509.UniformResourceIdentifier("spiffe://a.test")]
    assert root.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)[0].value == str(root.serial_number)
    assert len(extensions) == 4
    assert root.subject != Domain().root.subject
    root.verify_directly_issued_by(root)


def test_a_leaf_has_the_form_that_every_client_accepts() -> None:
    get = LEAF_A.extensions.get_extension_for_class
    assert not list(LEAF_A.subject)
    assert get(x509.BasicConstraints) == x509.Extension(
        x509.BasicConstraints.oid, True, x509.BasicConstraints(ca=False, path_length=None)
    )
    assert get(x509.KeyUsage).critical
    assert get(x509.KeyUsage).value == usage("digital_signature", "key_encipherment", "key_agreement")
    assert get(x509.ExtendedKeyUsage).value == BOTH
    assert get(x509.SubjectAlternativeName).critical
    assert get(x509.AuthorityKeyIdentifier).value.key_identifier == (
        DOMAIN.root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    )
    assert get(x509.SubjectKeyIdentifier).value == x509.SubjectKeyIdentifier.from_public_key(LEAF_A.public_key())
    assert LEAF_A.not_valid_before_utc == _utc(NOW - 10)
    assert LEAF_A.not_valid_after_utc == _utc(NOW + HOUR)
    assert parse_certificate(DER) == LEAF_A


def _issue(
    issuer: LeafIssuer, *, lifetime: float = HOUR, now: float = NOW, number: int | None = None
) -> x509.Certificate:
    return issuer.issue(
        public_key=P256.public_key(),
        uri="spiffe://a.test/x",
        serial=serial() if number is None else number,
        now=now,
        lifetime=lifetime,
        dns_names=["localhost"],
    )


def test_a_leaf_never_outlives_its_authority_or_the_limit() -> None:
    short = Domain(lifetime=60)
    assert _issue(short.issuer).not_valid_after_utc == short.root.not_valid_after_utc == _utc(NOW + 60)
    early = _issue(short.issuer, now=NOW - 5)
    assert early.not_valid_before_utc == short.root.not_valid_before_utc
    for now in (NOW + 60, NOW - 11):
        with _refused("authority"):
            _issue(short.issuer, now=now)
    for lifetime in (0, -1, 0.5, 24 * HOUR + 1, float("nan"), float("inf")):
        with _refused("lifetime"):
            _issue(DOMAIN.issuer, lifetime=lifetime)
    for lifetime in (0, float("nan"), 11 * 365 * 24 * HOUR):
        with _refused("lifetime"):
            build_ca(DOMAIN.key, uri="spiffe://a.test", serial=1, now=NOW, lifetime=lifetime)


def test_serial_numbers_are_random_positive_and_bounded() -> None:
    assert serial_from(b"\xff" * 20) == (1 << 159) - 1
    for octets in (b"", b"\x01" * 19, b"\x01" * 21, bytes(20)):
        with _refused("serial"):
            serial_from(octets)
    for number in (0, -1, 1 << 159):
        with _refused("serial"):
            _issue(DOMAIN.issuer, number=number)


def test_keys_and_certificates_that_do_not_belong_together_issue_nothing() -> None:
    other = Domain()
    tls = generate(Purpose.TLS_PUBLIC)
    tls_root = build_tls_ca(tls, serial=serial(), now=NOW, lifetime=HOUR)
    for root, key in (
        (other.root, DOMAIN.key),
        (LEAF_A, DOMAIN.key),
        (tls_root, tls),
        (DOMAIN.root, generate(Purpose.JWT_SVID)),
    ):
        with _refused("authority"):
            LeafIssuer(root, key)
    for purpose in Purpose:
        if purpose is not Purpose.X509_CA:
            with _refused("authority"):
                build_ca(generate(purpose), uri="spiffe://a.test", serial=1, now=NOW, lifetime=HOUR)
    with _refused("authority"):
        build_localhost(DOMAIN.root, DOMAIN.key, public_key=P256.public_key(), serial=serial(), now=NOW, lifetime=HOUR)
    with _refused("authority"):
        build_tls_ca(DOMAIN.key, serial=1, now=NOW, lifetime=HOUR)
    bare = forge(
        subject=name("x"),
        issuer=name("x"),
        key=P256,
        signer=P256,
        extensions=LEAF,
    )
    with _refused("authority"):
        LeafIssuer(bare, generate(Purpose.X509_CA))


def test_names_that_are_no_names_are_refused() -> None:
    for uri, dns in (("spiffe://ä.test/x", "localhost"), ("spiffe://a.test/x", "ä"), ("spiffe://a.test/x", "")):
        with _refused("name"):
            DOMAIN.issuer.issue(
                public_key=P256.public_key(), uri=uri, serial=serial(), now=NOW, lifetime=HOUR, dns_names=[dns]
            )


def test_the_local_tls_authority_vouches_for_loopback_alone() -> None:
    key = generate(Purpose.TLS_PUBLIC)
    root = build_tls_ca(key, serial=serial(), now=NOW, lifetime=90 * 24 * HOUR)
    constraints = root.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    leaf = build_localhost(root, key, public_key=P256.public_key(), serial=serial(), now=NOW, lifetime=HOUR)
    server = PolicyBuilder().store(Store([root])).time(_utc(NOW))
    for subject in (
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ):
        assert server.build_server_verifier(subject).verify(leaf, [])
    assert leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value == x509.ExtendedKeyUsage(
        [ExtendedKeyUsageOID.SERVER_AUTH]
    )
    foreign = forge(
        subject=x509.Name([]),
        issuer=root.subject,
        key=P256,
        signer=key.certificate_key(),
        extensions=(*LEAF, (x509.SubjectAlternativeName([x509.DNSName("bank.example")]), True)),
    )
    with _refused("untrusted"):
        verify_chain(foreign, [], [root], NOW)
    with _refused("lifetime"):
        build_localhost(root, key, public_key=P256.public_key(), serial=serial(), now=NOW, lifetime=91 * 24 * HOUR)
