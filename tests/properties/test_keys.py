"""Keys: one purpose each, and stores that keep them to themselves."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.jwk import ECKey, OKPKey

from aims.keys import (
    Algorithm,
    KeyRing,
    KeyStoreError,
    LocalKey,
    PublicKey,
    Purpose,
    SigningKey,
    generate,
    immediate,
    local_key,
    open_store,
    thumbprint,
)
from aims.keys.file import MAX_KEY_BYTES, FileKeyStore
from aims.keys.memory import MemoryKeyStore
from aims.keys.purpose import ALGORITHMS, CERTIFICATE_PURPOSES
from aims.keys.slots import MAX_RETIRED, Retired, Slots, parse_kid

PAIRS = [(a, b) for a in Purpose for b in Purpose if a is not b]
JOSE = [purpose for purpose in Purpose if purpose not in CERTIFICATE_PURPOSES]


def _verify(public: PublicKey, signature: bytes, data: bytes) -> None:
    if isinstance(public.key, ed25519.Ed25519PublicKey):
        public.key.verify(signature, data)
        return
    half = len(signature) // 2
    digest = {Algorithm.ES256: hashes.SHA256(), Algorithm.ES384: hashes.SHA384()}[public.algorithm]
    assert half == (public.key.curve.key_size + 7) // 8
    r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
    public.key.verify(encode_dss_signature(r, s), data, ec.ECDSA(digest))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def _leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(".new-*"))


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _refused(reason: str) -> pytest.RaisesExc[KeyStoreError]:
    return pytest.raises(KeyStoreError, check=lambda error: error.reason == reason)


@pytest.mark.parametrize("purpose", JOSE)
async def test_every_algorithm_of_a_purpose_signs_in_jose_form(purpose: Purpose) -> None:
    for algorithm in ALGORITHMS[purpose]:
        key = generate(purpose, algorithm)
        public = key.public()
        _verify(public, await key.sign(b"data"), b"data")
        with pytest.raises(InvalidSignature):
            _verify(public, key.sign_now(b"data"), b"datA")


def test_algorithms_outside_the_table_are_refused() -> None:
    with _refused("algorithm"):
        generate(Purpose.JWT_SVID, Algorithm.ED25519)
    with _refused("algorithm"):
        local_key(Purpose.SET, ec.generate_private_key(ec.SECP521R1()))
    with _refused("algorithm"):
        local_key(Purpose.SET, rsa.generate_private_key(65537, 2048))
    with _refused("algorithm"):
        local_key(Purpose.X509_CA, ed25519.Ed25519PrivateKey.generate())


@pytest.mark.parametrize("purpose", Purpose)
def test_certificates_and_tokens_never_share_a_key(purpose: Purpose) -> None:
    key = generate(purpose)
    if purpose in CERTIFICATE_PURPOSES:
        assert key.certificate_key().public_key() == key.public_key()
        with _refused("purpose"):
            key.sign_now(b"header.claims")
    else:
        assert key.sign_now(b"header.claims")
        with _refused("purpose"):
            key.certificate_key()


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())])
def test_kid_is_the_jwk_thumbprint_ec(key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert thumbprint(key.public_key()) == ECKey.import_key(pem).thumbprint()


def test_kid_is_the_jwk_thumbprint_ed25519() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert thumbprint(key.public_key()) == OKPKey.import_key(pem).thumbprint()


def test_private_parts_do_not_show() -> None:
    key = generate(Purpose.SET, Algorithm.ES256)
    private = key._private
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    text = f"{key!r}{key}{key.public()!r}"
    assert "rivate" not in text
    assert str(private.private_numbers().private_value) not in text
    with pytest.raises(TypeError):
        pickle.dumps(key)
    with pytest.raises(AttributeError):
        key.purpose = Purpose.JWT_SVID  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(("made", "asked"), PAIRS)
async def test_a_key_of_one_purpose_is_none_of_another(made: Purpose, asked: Purpose) -> None:
    store = MemoryKeyStore()
    ring = await KeyRing.open(store, Purpose)
    kid = ring.current(made).kid
    with _refused("purpose"):
        ring.find(made, kid).for_purpose(asked)
    with _refused("missing"):
        ring.find(asked, kid)
    with _refused("purpose"):
        await store.load(asked, kid)
    assert kid not in {key.kid for key in ring.public_keys(asked)}
    await store.put_slots(asked, await store.slots(asked), Slots(current=kid))
    with _refused("purpose"):
        await ring.load(asked)
    assert ring.find(made, kid).for_purpose(made) == ring.current(made).public_key()


async def test_one_key_under_two_purposes_is_refused() -> None:
    class Liar(MemoryKeyStore):
        async def load(self, purpose: Purpose, kid: str) -> LocalKey:
            key = self._keys[kid]
            return LocalKey(purpose=purpose, kid=kid, algorithm=key.algorithm, _private=key._private)

    store = Liar()
    ring = await KeyRing.open(store, [Purpose.JWT_SVID])
    await store.put_slots(Purpose.WIT_SVID, None, Slots(current=ring.current(Purpose.JWT_SVID).kid))
    with _refused("purpose"):
        await ring.load(Purpose.WIT_SVID)


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_rotation_publishes_before_use_and_after(kind: str, folder: Path) -> None:
    store = open_store("memory:" if kind == "memory" else f"file:{folder}")
    ring = await KeyRing.open(store, [Purpose.SET])
    first = ring.current(Purpose.SET).kid
    assert ring.next(Purpose.SET) is None
    with _refused("no_next"):
        await ring.activate(Purpose.SET, retire_until=10)
    second = (await ring.prepare(Purpose.SET)).kid
    assert ring.current(Purpose.SET).kid == first
    assert [key.kid for key in ring.public_keys(Purpose.SET)] == [first, second]
    with _refused("next_exists"):
        await ring.prepare(Purpose.SET)
    assert (await ring.activate(Purpose.SET, retire_until=10)).kid == second
    again = await KeyRing.open(store, [Purpose.SET], create=False)
    assert [key.kid for key in again.public_keys(Purpose.SET)] == [second, first]
    assert await again.forget(Purpose.SET, 9.9) == ()
    assert await again.forget(Purpose.SET, 10) == (first,)
    assert await store.kids(Purpose.SET) == (second,)
    with _refused("changed"):
        await ring.prepare(Purpose.SET)
    assert await store.kids(Purpose.SET) == (second,)
    with _refused("missing"):
        await store.load(Purpose.SET, first)
    await store.destroy(Purpose.SET, first)


async def test_a_key_elsewhere_is_awaited(folder: Path) -> None:
    ring = await KeyRing.open(FileKeyStore(folder), [Purpose.SET])
    here = ring.current(Purpose.SET)
    _verify(here.public(), immediate(here).sign_now(b"x"), b"x")

    class Remote:
        """A key in a device: it has no way to sign at once."""

        purpose, kid, algorithm = here.purpose, here.kid, here.algorithm
        public, public_key, sign, certificate_key = here.public, here.public_key, here.sign, here.certificate_key

    away: SigningKey = Remote()
    with _refused("not_local"):
        immediate(away)
    _verify(away.public(), await away.sign(b"x"), b"x")


async def test_an_empty_ring_has_no_keys(folder: Path) -> None:
    ring = KeyRing(MemoryKeyStore())
    for ask in (ring.current, ring.next, ring.public_keys):
        with _refused("no_current"):
            ask(Purpose.SET)
    with _refused("no_current"):
        await KeyRing.open(FileKeyStore(folder), [Purpose.SET], create=False)


async def test_two_first_starts_agree_on_one_key(folder: Path) -> None:
    rings = await asyncio.gather(*(KeyRing.open(FileKeyStore(folder), [Purpose.SET]) for _ in range(8)))
    assert len({ring.current(Purpose.SET).kid for ring in rings}) == 1
    assert len(await FileKeyStore(folder).kids(Purpose.SET)) == 1


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("", "uri"),
        ("memory", "uri"),
        (":x", "uri"),
        ("memory:x", "uri"),
        ("file:", "uri"),
        ("file:relative", "uri"),
        ("file://host/keys", "uri"),
        ("file:/a\x00b", "uri"),
        ("file:/" + "a" * 2050, "uri"),
        ("FILE:/tmp/x", "scheme"),
        ("pkcs11:token=x", "scheme"),
        ("file:/nonexistent/parent/keys", "missing"),
    ],
)
def test_store_addresses_that_are_refused(uri: str, reason: str) -> None:
    with _refused(reason):
        open_store(uri)


def test_store_addresses_that_open(folder: Path) -> None:
    assert isinstance(open_store("memory:"), MemoryKeyStore)
    assert isinstance(open_store(f"file:{folder}"), FileKeyStore)
    assert isinstance(open_store(f"file://{folder}"), FileKeyStore)


async def test_files_are_private_and_bound_to_their_purpose(folder: Path) -> None:
    before = os.umask(0)
    try:
        store = FileKeyStore(folder)
        key = await store.create(Purpose.JWT_SVID)
        await store.put_slots(Purpose.JWT_SVID, None, Slots(current=key.kid))
    finally:
        os.umask(before)
    assert _mode(folder) == 0o700
    names = [".lock", f"jwt-svid.{key.kid}.pem", "jwt-svid.slots"]
    assert set(os.listdir(folder)) == set(names)  # noqa: PTH208  names, not paths
    assert [_mode(folder / name) for name in names] == [0o600] * 3
    assert (await store.load(Purpose.JWT_SVID, key.kid)).public() == key.public()
    text = (folder / f"jwt-svid.{key.kid}.pem").read_text()
    assert text.startswith(f"AIMS-Key: 1\nPurpose: jwt-svid\nKid: {key.kid}\n\n-----BEGIN PRIVATE KEY-----\n")
    (folder / f"jwt-svid.{key.kid}.pem").rename(folder / f"wit-svid.{key.kid}.pem")
    with _refused("purpose"):
        await store.load(Purpose.WIT_SVID, key.kid)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o602])
async def test_open_files_and_folders_are_refused(folder: Path, mode: int) -> None:
    store = FileKeyStore(folder)
    key = await store.create(Purpose.SET)
    file = folder / f"set.{key.kid}.pem"
    file.chmod(mode)
    with _refused("permissions") as caught:
        await store.load(Purpose.SET, key.kid)
    assert "chmod" in caught.value.hint
    file.chmod(0o600)
    os.chmod(folder, mode | 0o100)  # noqa: PTH101  a blocking Path call would be flagged in a coroutine
    with _refused("permissions"):
        await store.load(Purpose.SET, key.kid)
    with _refused("permissions"):
        await store.create(Purpose.SET)
    with _refused("permissions"):
        FileKeyStore(folder)


async def test_foreign_owner_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileKeyStore(folder)
    key = await store.create(Purpose.SET)
    monkeypatch.setattr("aims.keys.file.os.geteuid", lambda: folder.stat().st_uid + 1)
    with _refused("owner"):
        await store.load(Purpose.SET, key.kid)
    with _refused("owner"):
        FileKeyStore(folder)


async def test_links_and_other_kinds_are_refused(folder: Path, tmp_path: Path) -> None:
    store = FileKeyStore(folder)
    key = await store.create(Purpose.SET)
    (tmp_path / "link").symlink_to(folder)
    with _refused("symlink"):
        FileKeyStore(tmp_path / "link")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with _refused("symlink"):
        FileKeyStore(tmp_path / "dangling")
    (tmp_path / "plain").write_text("")
    with _refused("not_regular"):
        FileKeyStore(tmp_path / "plain")
    file = folder / f"set.{key.kid}.pem"
    file.rename(tmp_path / "moved")
    file.symlink_to(tmp_path / "moved")
    with _refused("symlink"):
        await store.load(Purpose.SET, key.kid)
    file.unlink()
    os.mkfifo(file, 0o600)
    with _refused("not_regular"):
        await store.load(Purpose.SET, key.kid)
    (folder / ".lock").unlink()
    (folder / ".lock").symlink_to(tmp_path / "elsewhere")
    with _refused("unavailable"):
        await store.create(Purpose.SET)


async def test_damaged_files_are_refused(folder: Path) -> None:
    store = FileKeyStore(folder)
    key, other = await store.create(Purpose.SET), await store.create(Purpose.SET)
    file = folder / f"set.{key.kid}.pem"
    good = file.read_bytes()
    body = good.partition(b"\n\n")[2]
    for bad in (
        b"",
        body,
        good + b"\n",
        b"\n" + good,
        good.replace(b"AIMS-Key: 1", b"AIMS-Key: 2"),
        good.replace(b"PRIVATE", b"EC PRIVATE"),
        good.replace(key.kid.encode(), other.kid.encode()),
        (folder / f"set.{other.kid}.pem").read_bytes(),
        re.sub(rb"KEY-----\n....", b"KEY-----\nAAAA", good, count=1),
        good.replace(b"-----END", b"\n" * MAX_KEY_BYTES + b"-----END"),
    ):
        file.write_bytes(bad)
        with _refused("malformed"):
            await store.load(Purpose.SET, key.kid)
    file.write_bytes(good)
    assert (await store.load(Purpose.SET, key.kid)).kid == key.kid


async def test_keys_are_never_overwritten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileKeyStore(folder)
    key = await store.create(Purpose.SET)
    before = (folder / f"set.{key.kid}.pem").read_bytes()
    monkeypatch.setattr("aims.keys.file.generate", lambda *_: key)
    with _refused("exists"):
        await store.create(Purpose.SET)
    assert (folder / f"set.{key.kid}.pem").read_bytes() == before
    assert not _leftovers(folder)


_WRITER = """
import asyncio, sys
from aims.keys import Purpose, open_store, KeyRing
async def main():
    ring = await KeyRing.open(open_store("file:" + sys.argv[1]), [Purpose.SET])
    for now in range(100000):
        print("ready", flush=True)
        await ring.prepare(Purpose.SET)
        await ring.activate(Purpose.SET, retire_until=now)
        await ring.forget(Purpose.SET, now)
asyncio.run(main())
"""


@pytest.mark.parametrize("rounds", [0, 3, 8])
def test_a_killed_writer_leaves_a_ring_that_opens(folder: Path, rounds: int) -> None:
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(folder)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(rounds + 1):
            assert writer.stdout.readline() == b"ready\n"
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(10) == -signal.SIGKILL
    (folder / ".new-0123456789abcdef").write_bytes(b"half a key")
    asyncio.run(_rotate(folder))
    assert not _leftovers(folder)


async def _rotate(folder: Path) -> None:
    ring = await KeyRing.open(FileKeyStore(folder), [Purpose.SET], create=False)
    _verify(ring.current(Purpose.SET).public(), await ring.current(Purpose.SET).sign(b"x"), b"x")
    if ring.next(Purpose.SET) is None:
        await ring.prepare(Purpose.SET)
    await ring.activate(Purpose.SET, retire_until=0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'{"current":"x","next":null,"retired":[]}',
        b'{"current":"%b","next":"%b","retired":[]}' % (b"A" * 43, b"A" * 43),
        b'{"current":"%b","next":null,"retired":[],"more":1}' % (b"A" * 43),
        b'{"current":"%b","next":null,"retired":[{"kid":"%b","until":"1"}]}' % (b"A" * 43, b"B" * 43),
        b'{"current":"\xff","next":null,"retired":[]}',
        b" " * 9000 + b'{"current":"%b","next":null,"retired":[]}' % (b"A" * 43),
        b'{"current":"%b","next":null,"retired":' % (b"A" * 43) + b"[" * 4000,
    ],
)
def test_damaged_slots_are_refused(data: bytes) -> None:
    with pytest.raises(KeyStoreError) as caught:
        Slots.decode(data)
    assert caught.value.reason in {"malformed", "kid"}


def test_slots_and_names_are_bounded() -> None:
    kids = [f"{number:043d}" for number in range(MAX_RETIRED + 2)]
    most = Slots(current=kids[0], retired=tuple(Retired(kid, 1.5) for kid in kids[1:-1]))
    assert Slots.decode(most.encode()) == most
    with _refused("malformed"):
        Slots(current=kids[0], retired=tuple(Retired(kid, 1) for kid in kids[1:]))
    for bad in ("", "a" * 42, "a" * 44, "a" * 43 + "\n", "../" + "a" * 40, "é" * 43):
        with _refused("kid"):
            parse_kid(bad)
