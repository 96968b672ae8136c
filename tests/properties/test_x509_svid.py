"""X509-SVIDs: each step of validation refuses by its own name, in the order of the steps."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Set
from pathlib import Path

import pytest
import spiffe
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.properties.x509_material import (
    BOTH,
    HOUR,
    LEAF,
    NOW,
    Domain,
    Extensions,
    ca_extensions,
    forge,
    forge_leaf,
    name,
    serial,
    uris,
    usage,
)

from aims.credentials.bundle import Bundle, BundleSet
from aims.credentials.errors import CredentialError
from aims.credentials.model import Fence
from aims.credentials.x509_svid import X509Svid, issue, read, validate
from aims.identifiers import SpiffeId, TrustDomain
from aims.jose import KeySet, VerificationKey, base64url
from aims.x509 import Epoch, X509Error
from aims.x509.parse import join_pem

TD, OTHER_TD = TrustDomain("a.test"), TrustDomain("b.test")
A, B = Domain("a.test"), Domain("b.test")
BUNDLES = BundleSet(
    [
        Bundle(trust_domain=TD, x509_authorities=(A.root,)),
        Bundle(trust_domain=OTHER_TD, x509_authorities=(B.root,)),
    ]
)
WHO = SpiffeId.agent(TD, "a")
FENCE = Fence("node-1:0123456789abcdefghijklmnop", 7)
KEY = ec.generate_private_key(ec.SECP256R1())
BASIC, KU, EKU = LEAF


def _svid(who: SpiffeId = WHO, fence: Fence | None = FENCE, domain: Domain = A) -> X509Svid:
    return issue(
        domain.issuer,
        who,
        public_key=KEY.public_key(),
        serial=serial(),
        now=NOW,
        lifetime=HOUR,
        fence=fence,
    )


def _reason(chain: bytes, *, bundles: BundleSet = BUNDLES, now: float = NOW) -> str:
    with pytest.raises(CredentialError) as caught:
        validate(chain, bundles, now=now)
    return caught.value.reason


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _forged(san: x509.SubjectAlternativeName | None, extensions: Extensions = LEAF) -> bytes:
    return _der(forge_leaf(A, san=san, extensions=extensions))


GOOD = uris("spiffe://a.test/agents/a")


def test_what_is_issued_is_believed_and_carries_its_fence() -> None:
    made = _svid()
    found = validate(made.der, BUNDLES, now=NOW, expected=WHO, own=TD)
    assert found == made
    assert validate([_der(made.leaf)], BUNDLES, now=NOW) == made
    assert read(made.der) == made
    assert found.spiffe_id == WHO
    assert found.fence == FENCE
    assert (found.not_before, found.not_after, found.serial) == (NOW - 10, NOW + HOUR, made.leaf.serial_number)
    digest = hashlib.sha256(_der(made.leaf)).digest()
    assert found.thumbprint == base64url.encode(digest).decode()


def test_other_implementations_read_what_is_issued(tmp_path: Path) -> None:
    made, bundle = _svid(), BUNDLES.get(TD)
    assert bundle is not None
    key = KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    theirs = spiffe.X509Svid.parse_raw(made.der, key)
    assert str(theirs.spiffe_id) == str(WHO)
    domain = spiffe.TrustDomain(TD.name)
    assert spiffe.X509Bundle.parse_raw(domain, bundle.x509_der()).x509_authorities == {A.root}
    jwt = KeySet([VerificationKey("k", None, KEY.public_key())])
    jwks = Bundle(trust_domain=TD, jwt_keys=jwt).jwt_jwks()
    assert set(spiffe.JwtBundle.parse(domain, jwks).jwt_authorities) == {"k"}
    openssl = shutil.which("openssl")
    if openssl is not None:
        root, leaf = tmp_path / "root", tmp_path / "leaf"
        root.write_bytes(join_pem([A.root]))
        leaf.write_bytes(join_pem(made.chain))
        for purpose in ("sslclient", "sslserver"):
            command = [openssl, "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(root), str(leaf)]
            subprocess.run(command, check=True, capture_output=True, timeout=20)


def test_a_foreign_svid_needs_neither_fence_nor_extended_usage() -> None:
    plain = validate(_forged(GOOD, (BASIC, KU)), BUNDLES, now=NOW)
    assert plain.fence is None
    named = x509.SubjectAlternativeName([*GOOD, x509.DNSName("localhost")])
    assert validate(_forged(named), BUNDLES, now=NOW).spiffe_id == WHO
    assert validate(_forged(GOOD, (KU, EKU)), BUNDLES, now=NOW).spiffe_id == WHO


@pytest.mark.parametrize("chain", [b"", b"x", _der(_svid().leaf) + b"\x00", _der(A.root) * 11])
def test_step_1_the_chain_is_well_formed(chain: bytes) -> None:
    assert _reason(chain) == "x509_malformed"


@pytest.mark.parametrize(
    "san",
    [
        None,
        x509.SubjectAlternativeName([x509.DNSName("localhost")]),
        uris("spiffe://a.test/agents/a", "spiffe://a.test/agents/b"),
        uris("spiffe://a.test/agents/a", "spiffe://a.test/agents/a"),
        uris("spiffe://a.test/agents/a", "https://a.test/"),
    ],
)
def test_step_2_exactly_one_uri_name(san: x509.SubjectAlternativeName | None) -> None:
    assert _reason(_forged(san)) == "x509_uri_count"


@pytest.mark.parametrize(
    "uri",
    [
        "https://a.test/agents/a",
        "wimse://a.test/agents/a",
        "spiffe://A.test/agents/a",
        "spiffe://a.test/agents/../a",
        "spiffe://a.test/agents/a/",
        "spiffe://a.test/agents/%61",
        "spiffe://a.test:443/agents/a",
        "spiffe://a.test/agents/a\n",
        "spiffe://a.test/agents/a?x=1",
        "",
    ],
)
def test_step_3_the_name_is_a_spiffe_id(uri: str) -> None:
    assert _reason(_forged(uris(uri))) == "x509_spiffe_id"


def test_step_4_a_trust_domain_is_no_peer() -> None:
    assert _reason(_forged(uris("spiffe://a.test"))) == "x509_root_path"
    assert _reason(_der(A.root)) == "x509_root_path"


@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        (ca_extensions(), "x509_ca"),
        ((BASIC, EKU), "x509_key_usage"),
        ((BASIC, (usage("digital_signature"), False), EKU), "x509_key_usage"),
        ((BASIC, (usage("key_agreement"), True), EKU), "x509_key_usage"),
        ((BASIC, (usage("digital_signature", "key_cert_sign"), True), EKU), "x509_key_usage"),
        ((BASIC, (usage("digital_signature", "crl_sign"), True), EKU), "x509_key_usage"),
        ((BASIC, KU, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)), "x509_extended_key_usage"),
        ((BASIC, KU, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)), "x509_extended_key_usage"),
        ((*LEAF, (x509.UnrecognizedExtension(Epoch(1, "a").extension().oid, b"\x30\x00"), False)), "x509_epoch"),
        ((*LEAF, (Epoch(1, "no-node").extension(), False)), "x509_epoch"),
        ((*LEAF, (Epoch(2**60, FENCE.instance).extension(), False)), "x509_epoch"),
        ((*LEAF, (Epoch(1, FENCE.instance).extension(), True)), "x509_epoch"),
    ],
)
def test_step_5_the_leaf_authenticates_and_nothing_else(extensions: Extensions, reason: str) -> None:
    assert _reason(_forged(GOOD, extensions)) == reason


def test_step_6_a_bundle_of_exactly_that_trust_domain() -> None:
    chain = _svid().der
    only_b = BundleSet([Bundle(trust_domain=OTHER_TD, x509_authorities=(B.root,))])
    empty = BundleSet([Bundle(trust_domain=TD), Bundle(trust_domain=OTHER_TD, x509_authorities=(B.root,))])
    for bundles in (BundleSet(), only_b, empty):
        assert _reason(chain, bundles=bundles) == "x509_no_trust_anchor"


def test_step_7_the_path_leads_to_that_domains_authority() -> None:
    stolen_name = _der(forge_leaf(B, san=GOOD))
    assert _reason(stolen_name) == "x509_untrusted"
    assert _reason(stolen_name + _der(B.root)) == "x509_untrusted"
    chain = _svid().der
    assert _reason(chain, now=NOW + HOUR + 1) == "x509_expired"
    assert _reason(chain, now=NOW - 11) == "x509_not_yet_valid"
    middle_key = ec.generate_private_key(ec.SECP256R1())
    root_key = ec.generate_private_key(ec.SECP256R1())
    root = forge(subject=name("r"), issuer=name("r"), key=root_key, signer=root_key, extensions=ca_extensions())
    middle = forge(subject=name("m"), issuer=name("r"), key=middle_key, signer=root_key, extensions=ca_extensions())
    leaf = forge(subject=name("l"), issuer=name("m"), key=KEY, signer=middle_key, extensions=(*LEAF, (GOOD, False)))
    deep = BundleSet([Bundle(trust_domain=TD, x509_authorities=(root,))])
    assert validate(_der(leaf) + _der(middle), deep, now=NOW).spiffe_id == WHO
    assert _reason(_der(leaf), bundles=deep) == "x509_untrusted"


def test_step_8_our_own_svids_can_be_stopped() -> None:
    bare = _svid(fence=None).der
    with pytest.raises(CredentialError) as caught:
        validate(bare, BUNDLES, now=NOW, own=TD)
    assert caught.value.reason == "unfenced"
    assert validate(bare, BUNDLES, now=NOW, own=OTHER_TD).fence is None
    assert validate(bare, BUNDLES, now=NOW).fence is None


def test_step_9_the_peer_is_the_expected_one() -> None:
    chain, other = _svid().der, SpiffeId.agent(TD, "b")
    assert validate(chain, BUNDLES, now=NOW, expected={other, WHO}).spiffe_id == WHO
    same_path = SpiffeId.agent(OTHER_TD, "a")
    near = [SpiffeId.build(TD, *path) for path in (["agents"], ["agents", "a", "x"], ["agents", "A"], ["agents", "a2"])]
    wrong: list[SpiffeId | Set[SpiffeId]] = [other, same_path, {other}, frozenset(), *near]
    for expected in wrong:
        with pytest.raises(CredentialError) as caught:
            validate(chain, BUNDLES, now=NOW, expected=expected)
        assert caught.value.reason == "x509_unexpected_peer"


def test_an_earlier_step_is_named_before_a_later_one() -> None:
    everything_wrong = _forged(uris("https://x/"), (*ca_extensions(), (BOTH, False)))
    assert _reason(everything_wrong, bundles=BundleSet()) == "x509_spiffe_id"
    assert _reason(_forged(GOOD, (BASIC, EKU)), bundles=BundleSet()) == "x509_key_usage"


def test_an_authority_issues_only_below_its_own_trust_domain() -> None:
    with pytest.raises(CredentialError) as caught:
        _svid(SpiffeId.agent(OTHER_TD, "a"))
    assert caught.value.reason == "x509_spiffe_id"
    with pytest.raises(CredentialError) as caught:
        _svid(SpiffeId(TD, ""))
    assert caught.value.reason == "x509_root_path"
    with pytest.raises(X509Error) as refused:
        issue(A.issuer, WHO, public_key=KEY.public_key(), serial=0, now=NOW, lifetime=HOUR, fence=FENCE)
    assert refused.value.reason == "serial"
