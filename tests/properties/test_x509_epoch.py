"""The epoch in a certificate: one spelling, bounds, and one extension."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from tests.properties.x509_material import HOUR, LEAF, NOW, Domain, forge_leaf, serial, uris

from aims.x509 import Epoch, X509Error, verify_chain
from aims.x509.epoch import MAX_EPOCH, OID

DOMAIN = Domain()
LEAF_A = DOMAIN.leaf()
P256 = ec.generate_private_key(ec.SECP256R1())


def _refused(reason: str) -> pytest.RaisesExc[X509Error]:
    return pytest.raises(X509Error, check=lambda error: error.reason == reason)


@given(
    st.integers(0, MAX_EPOCH),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=256),
)
def test_epochs_have_one_spelling(number: int, instance: str) -> None:
    epoch = Epoch(number, instance)
    assert Epoch.decode(epoch.encode()) == epoch


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x30\x00",
        b"\x30\x03\x02\x01\x01",
        b"\x30\x06\x02\x01\x01\x0c\x01a\x00",
        b"\x30\x07\x02\x01\x01\x0c\x01a\x00",
        b"\x30\x07\x02\x02\x00\x01\x0c\x01a",
        b"\x30\x06\x02\x01\xff\x0c\x01a",
        b"\x30\x0f\x02\x0a\x01" + bytes(9) + b"\x0c\x01a",
        b"\x30\x06\x02\x01\x01\x13\x01a",
        b"\x30\x06\x02\x01\x01\x0c\x01 ",
        b"\x30\x06\x02\x01\x01\x0c\x01\xff",
        b"\x30\x05\x02\x01\x01\x0c\x00",
        b"\x30\x81\x06\x02\x01\x01\x0c\x01a",
        b"\x31\x06\x02\x01\x01\x0c\x01a",
        b"\x30\x06\x02\x00\x0c\x02aa",
        b"\x30\x82\x01\x08\x02\x01\x01\x0c\x82\x01\x01" + b"a" * 257,
    ],
)
def test_malformed_epochs_are_refused(value: bytes) -> None:
    with _refused("epoch"):
        Epoch.decode(value)


def test_epochs_out_of_bounds_are_refused() -> None:
    for number in (-1, MAX_EPOCH + 1):
        with _refused("epoch"):
            Epoch(number, "a")
    with _refused("epoch"):
        Epoch(True, "a")
    for instance in ("", "a" * 257, "a b", "ä", "a\n"):
        with _refused("epoch"):
            Epoch(1, instance)


def test_certificates_carry_the_epoch_as_one_non_critical_extension(tmp_path: Path) -> None:
    epoch = Epoch(1_000_000, "node-1:0123456789abcdefghijklmnop")
    leaf = DOMAIN.issuer.issue(
        public_key=P256.public_key(), uri="spiffe://a.test/x", serial=serial(), now=NOW, lifetime=HOUR, epoch=epoch
    )
    assert Epoch.of(leaf) == epoch
    assert Epoch.of(LEAF_A) is None
    found = leaf.extensions.get_extension_for_oid(OID)
    assert not found.critical
    assert verify_chain(leaf, [], [DOMAIN.root], NOW)
    loud = forge_leaf(DOMAIN, san=uris("spiffe://a.test/x"), extensions=(*LEAF, (epoch.extension(), True)))
    with _refused("epoch"):
        Epoch.of(loud)
    openssl = shutil.which("openssl")
    if openssl is not None:
        # offset 0: the value as another implementation reads it
        file = tmp_path / "value"
        file.write_bytes(epoch.encode())
        text = subprocess.run(  # a fixed argument vector
            [openssl, "asn1parse", "-inform", "DER", "-in", str(file)], capture_output=True, check=True, timeout=20
        ).stdout.decode()
        assert "INTEGER           :0F4240" in text
        assert "UTF8STRING        :node-1:0123456789abcdefghijklmnop" in text
