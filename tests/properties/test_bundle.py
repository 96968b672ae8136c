"""SPIFFE bundles: strict as a whole, forgiving entry by entry, and never pooled."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from tests.properties.x509_material import LEAF, Domain, ca_extensions, forge, name

from aims.credentials.bundle import MAX_SEQUENCE, Bundle, BundleSet
from aims.credentials.errors import CredentialError
from aims.identifiers import TrustDomain
from aims.jose import KeySet, VerificationKey
from aims.jose.jwk import public_jwk
from aims.x509 import parse_chain

TD, OTHER = TrustDomain("a.test"), TrustDomain("b.test")
A, B = Domain("a.test"), Domain("b.test")
KEYS = [ec.generate_private_key(ec.SECP256R1()).public_key() for _ in range(3)]


def _keys(*kids: str | None) -> KeySet:
    return KeySet(VerificationKey(kid, None, KEYS[number]) for number, kid in enumerate(kids))


def _bundle(sequence: int | None = 5, **more: Any) -> Bundle:
    values: dict[str, Any] = {
        "x509_authorities": (A.root, B.root),
        "jwt_keys": _keys("j1", "j2"),
        "wit_keys": _keys("w1"),
        "refresh_hint": 60,
    }
    return Bundle(trust_domain=TD, sequence=sequence, **{**values, **more})


def _entry(**changes: Any) -> dict[str, Any]:
    """The published entry of A's authority, with changes; None removes a member."""
    entry = json.loads(Bundle(trust_domain=TD, x509_authorities=(A.root,)).build())["keys"][0]
    return {key: value for key, value in {**entry, **changes}.items() if value is not None}


def _parsed(*entries: Any, **members: Any) -> Bundle:
    return Bundle.parse(TD, json.dumps({**members, "keys": list(entries)}))


def _refused(reason: str) -> pytest.RaisesExc[CredentialError]:
    return pytest.raises(CredentialError, check=lambda error: error.reason == reason)


def test_a_bundle_survives_publication() -> None:
    bundle = _bundle()
    again = Bundle.parse(TD, bundle.build())
    assert again == bundle
    assert hash(again) == hash(bundle)
    assert again.x509_authorities == (A.root, B.root)
    assert [key.kid for key in again.jwt_keys] == ["j1", "j2"]
    assert [key.kid for key in again.wit_keys] == ["w1"]
    assert (again.sequence, again.refresh_hint) == (5, 60)
    assert again != Bundle.parse(OTHER, bundle.build())
    assert again != _bundle(6)
    assert again != "bundle"


def test_published_entries_have_the_members_that_the_specification_names() -> None:
    document = json.loads(_bundle().build())
    assert {key: document[key] for key in ("spiffe_sequence", "spiffe_refresh_hint")} == {
        "spiffe_sequence": 5,
        "spiffe_refresh_hint": 60,
    }
    shapes = [(entry["use"], sorted(entry)) for entry in document["keys"]]
    curve = ["crv", "kty"]
    assert shapes == [
        *[("x509-svid", [*curve, "use", "x", "x5c", "y"])] * 2,
        *[("jwt-svid", sorted([*curve, "kid", "use", "x", "y"]))] * 2,
        ("wit-svid", sorted([*curve, "kid", "use", "x", "y"])),
    ]
    assert document["keys"][0]["x5c"] == [base64.b64encode(A.root.public_bytes(Encoding.DER)).decode()]
    assert json.loads(Bundle(trust_domain=TD).build()) == {"keys": []}


def test_workload_api_forms_hold_one_kind_of_key_each() -> None:
    bundle = _bundle()
    assert parse_chain(bundle.x509_der()) == (A.root, B.root)
    jwt, wit = json.loads(bundle.jwt_jwks()), json.loads(bundle.wit_jwks())
    assert [key["kid"] for key in jwt["keys"]] == ["j1", "j2"]
    assert [key["kid"] for key in wit["keys"]] == ["w1"]
    assert sorted(jwt) == ["keys"]
    assert all(sorted(key) == ["crv", "kid", "kty", "x", "y"] for key in jwt["keys"])


def _certificate(*, ca: bool) -> dict[str, Any]:
    key = ec.generate_private_key(ec.SECP256R1())
    extensions = ca_extensions() if ca else LEAF
    made = forge(subject=name("x"), issuer=name("x"), key=key, signer=key, extensions=extensions)
    x5c = [base64.b64encode(made.public_bytes(Encoding.DER)).decode()]
    return {**public_jwk(key.public_key()), "use": "x509-svid", "x5c": x5c}


GOOD_X5C = _entry()["x5c"][0]


@pytest.mark.parametrize(
    "entry",
    [
        "text",
        None,
        [],
        {},
        _entry(kty=None),
        _entry(kty="XYZ"),
        _entry(use=None),
        _entry(use="X509-SVID"),
        _entry(use="sig"),
        _entry(use=["x509-svid"]),
        _entry(x5c=None),
        _entry(x5c=[]),
        _entry(x5c=GOOD_X5C),
        _entry(x5c=[1]),
        _entry(x5c=["", GOOD_X5C]),
        _entry(x5c=[GOOD_X5C + "\n"]),
        _entry(x5c=[GOOD_X5C.replace("=", "") + "A"]),
        _entry(x5c=["ä"]),
        _entry(x5c=[base64.b64encode(b"no certificate").decode()]),
        _entry(x5c=[base64.b64encode(A.leaf().public_bytes(Encoding.DER)).decode()]),
        _entry(x5c=[base64.b64encode(B.root.public_bytes(Encoding.DER)).decode()]),
        _entry(d="AAAA"),
        _certificate(ca=False),
        public_jwk(KEYS[0], use="jwt-svid"),
        public_jwk(KEYS[0], use="wit-svid"),
        public_jwk(KEYS[0], kid="a", use="unknown"),
        public_jwk(KEYS[0], kid="a"),
        {"kty": "oct", "use": "jwt-svid", "kid": "a", "k": "AAAA"},
    ],
)
def test_an_unusable_entry_is_ignored_and_only_that_entry(entry: Any) -> None:
    alone = _parsed(entry)
    assert alone.is_empty
    beside = _parsed(entry, _certificate(ca=True), public_jwk(KEYS[1], kid="k", use="jwt-svid"))
    assert len(beside.x509_authorities) == 1
    assert len(beside.jwt_keys) == 1
    assert len(beside.wit_keys) == 0


def test_only_the_first_certificate_of_an_entry_counts() -> None:
    other = base64.b64encode(B.root.public_bytes(Encoding.DER)).decode()
    bundle = _parsed(_entry(x5c=[GOOD_X5C, other], kid="set-although-it-must-not-be"), _entry())
    assert bundle.x509_authorities == (A.root,)


def test_an_empty_bundle_trusts_nothing() -> None:
    bundle = Bundle.parse(TD, b'{"keys":[]}')
    assert bundle.is_empty
    assert bundle.x509_authorities == ()
    assert (bundle.sequence, bundle.refresh_hint) == (None, None)
    assert not _bundle().is_empty


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"{}",
        b"[]",
        b'{"keys":null}',
        b'{"keys":{}}',
        b'{"keys":[],"keys":[]}',
        b'{"keys":[]}x',
        b'\xef\xbb\xbf{"keys":[]}',
        b'{"keys":[],"spiffe_sequence":"5"}',
        b'{"keys":[],"spiffe_sequence":null}',
        b'{"keys":[],"spiffe_sequence":true}',
        b'{"keys":[],"spiffe_sequence":1.5}',
        b'{"keys":[],"spiffe_sequence":-1}',
        b'{"keys":[],"spiffe_sequence":18446744073709551616}',
        b'{"keys":[],"spiffe_refresh_hint":"60"}',
        b'{"keys":[],"spiffe_refresh_hint":-1}',
        b'{"keys":[],"spiffe_refresh_hint":4294967296}',
        b'{"keys":[' + b",".join([b"{}"] * 257) + b"]}",
        b'{"keys":[]' + b" " * 300_000 + b"}",
        b'{"keys":' + b"[" * 100 + b"]" * 100 + b"}",
    ],
)
def test_documents_that_are_no_bundle(octets: bytes) -> None:
    with _refused("bundle_malformed"):
        Bundle.parse(TD, octets)


def test_the_whole_range_of_sequences_is_read() -> None:
    assert _parsed(spiffe_sequence=MAX_SEQUENCE).sequence == 2**64 - 1
    assert _parsed(spiffe_sequence=0, more={"x": 1}).sequence == 0


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_noise_is_refused_as_a_bundle(data: bytes | str) -> None:
    with _refused("bundle_malformed"):
        Bundle.parse(TD, data)


def test_key_identifiers_are_present_and_unique_over_both_kinds() -> None:
    wrong: list[dict[str, Any]] = [{"jwt_keys": _keys(None)}, {"wit_keys": _keys(None)}, {"wit_keys": _keys("j1")}]
    for keys in wrong:
        with _refused("bundle_kid"):
            _bundle(**keys)
    first, second = public_jwk(KEYS[0], kid="a", use="jwt-svid"), public_jwk(KEYS[1], kid="a", use="jwt-svid")
    for pair in ((first, second), (first, {**second, "use": "wit-svid"})):
        with _refused("bundle_kid"):
            _parsed(*pair)


def test_an_authority_of_a_bundle_is_a_certificate_authority() -> None:
    with _refused("bundle_authority"):
        _bundle(x509_authorities=(A.root, A.leaf()))
    with _refused("bundle_authority"):
        _bundle(x509_authorities=(A.root,) * 65)
    edwards = ed25519.Ed25519PrivateKey.generate()
    root = forge(subject=name("e"), issuer=name("e"), key=edwards, signer=edwards, extensions=ca_extensions())
    assert Bundle.parse(TD, _bundle(x509_authorities=(root,)).build()).x509_authorities == (root,)


def test_bundles_of_two_domains_stay_apart() -> None:
    mine, theirs = _bundle(), Bundle(trust_domain=OTHER, x509_authorities=(B.root,), jwt_keys=_keys("j1"))
    bundles = BundleSet([mine, theirs])
    assert bundles.get(TD) is mine
    assert bundles.get(TrustDomain("c.test")) is None
    assert (len(bundles), TD in bundles, TrustDomain("c.test") in bundles) == (2, True, False)
    assert bundles.jwt_keys[OTHER] is theirs.jwt_keys
    assert bundles.wit_anchors["spiffe://a.test"] is mine.wit_keys
    assert len(bundles.wit_anchors["spiffe://b.test"]) == 0
    with _refused("bundle_trust_domain"):
        BundleSet([mine, mine])
    assert bundles == BundleSet([theirs, mine])
    assert hash(bundles) == hash(BundleSet([theirs, mine]))
    assert bundles != BundleSet([mine])
    assert bundles != 1
    assert repr(bundles) == "BundleSet(a.test, b.test)"


def test_a_bundle_is_never_rolled_back() -> None:
    bundles = BundleSet([_bundle(5)])
    assert bundles.accept(_bundle(6)).get(TD) == _bundle(6)
    assert bundles.accept(_bundle(5, refresh_hint=30)).get(TD) == _bundle(5, refresh_hint=30)
    for older in (_bundle(4), _bundle(5, wit_keys=KeySet())):
        with _refused("bundle_sequence"):
            bundles.accept(older)
    unnumbered = bundles.accept(_bundle(None))
    assert unnumbered.accept(_bundle(1)).get(TD) == _bundle(1)
    assert bundles.get(TD) == _bundle(5)
    assert len(bundles.accept(Bundle(trust_domain=OTHER))) == 2
