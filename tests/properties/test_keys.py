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
    KeyStoreError,
    LocalKey,
    Purpose,
    SigningKey,
    current_key,
    generate,
    immediate,
    local_key,
    named,
    open_store,
    thumbprint,
)
from aims.keys.file import MAX_KEY_BYTES, FileKeyStore
from aims.keys.memory import MemoryKeyStore
from aims.keys.named import parse_kid
from aims.keys.purpose import ALGORITHMS, CERTIFICATE_PURPOSES

PAIRS = [(a, b) for a in Purpose for b in Purpose if a is not b]
JOSE = [purpose for purpose in Purpose if purpose not in CERTIFICATE_PURPOSES]


def _verify(key: SigningKey, signature: bytes, data: bytes) -> None:
    public = key.public_key()
    if isinstance(public, ed25519.Ed25519PublicKey):
        public.verify(signature, data)
        return
    half = len(signature) // 2
    digest = {Algorithm.ES256: hashes.SHA256(), Algorithm.ES384: hashes.SHA384()}[key.algorithm]
    assert half == (public.curve.key_size + 7) // 8
    r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
    public.verify(encode_dss_signature(r, s), data, ec.ECDSA(digest))


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
        _verify(key, await key.sign(b"data"), b"data")
        with pytest.raises(InvalidSignature):
            _verify(key, key.sign_now(b"data"), b"datA")


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
    text = f"{key!r}{key}"
    assert "rivate" not in text
    assert str(private.private_numbers().private_value) not in text
    with pytest.raises(TypeError):
        pickle.dumps(key)
    with pytest.raises(AttributeError):
        key.purpose = Purpose.JWT_SVID  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(("made", "asked"), PAIRS)
async def test_a_key_of_one_purpose_is_none_of_another(made: Purpose, asked: Purpose) -> None:
    store = MemoryKeyStore()
    key, other = await current_key(store, made), await current_key(store, asked)
    assert key.kid != other.kid
    with _refused("purpose"):
        await store.load(asked, key.kid)
    store._current[asked] = key.kid
    with _refused("purpose"):
        await current_key(store, asked)
    assert (await current_key(store, made)).public_key() == key.public_key()


async def test_a_store_that_gives_another_key_is_not_believed() -> None:
    class Liar(MemoryKeyStore):
        async def load(self, purpose: Purpose, kid: str) -> LocalKey:
            return generate(purpose if kid == self._current.get(Purpose.SET) else Purpose.SET)

    store = Liar()
    for purpose in (Purpose.SET, Purpose.JWT_SVID):
        with _refused("purpose"):
            await current_key(store, purpose)


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_a_purpose_has_one_key_that_stays(kind: str, folder: Path) -> None:
    store = open_store("memory:" if kind == "memory" else f"file:{folder}")
    assert await store.current(Purpose.SET) is None
    first = await current_key(store, Purpose.SET)
    assert await store.current(Purpose.SET) == first.kid
    again = store if kind == "memory" else open_store(f"file:{folder}")
    assert (await current_key(again, Purpose.SET)).kid == first.kid
    second = await store.create(Purpose.SET)
    with _refused("changed"):
        await store.make_current(Purpose.SET, second.kid)
    assert (await current_key(store, Purpose.SET)).kid == first.kid
    await store.destroy(Purpose.SET, first.kid)
    with _refused("missing"):
        await current_key(store, Purpose.SET)
    await store.destroy(Purpose.SET, first.kid)


async def test_a_key_elsewhere_is_awaited(folder: Path) -> None:
    here = await current_key(FileKeyStore(folder), Purpose.SET)
    _verify(here, immediate(here).sign_now(b"x"), b"x")

    class Remote:
        """A key in a device: it has no way to sign at once."""

        purpose, kid, algorithm = here.purpose, here.kid, here.algorithm
        public_key, sign, certificate_key = here.public_key, here.sign, here.certificate_key

    away: SigningKey = Remote()
    with _refused("not_local"):
        immediate(away)
    _verify(away, await away.sign(b"x"), b"x")


async def test_two_first_starts_agree_on_one_key(folder: Path) -> None:
    keys = await asyncio.gather(*(current_key(FileKeyStore(folder), Purpose.SET) for _ in range(8)))
    assert len({key.kid for key in keys}) == 1
    assert await FileKeyStore(folder).kids(Purpose.SET) == (keys[0].kid,)


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
        await store.make_current(Purpose.JWT_SVID, key.kid)
    finally:
        os.umask(before)
    assert _mode(folder) == 0o700
    names = [".lock", f"jwt-svid.{key.kid}.pem", "jwt-svid.slots"]
    assert set(os.listdir(folder)) == set(names)  # noqa: PTH208  names, not paths
    assert [_mode(folder / name) for name in names] == [0o600] * 3
    assert (await store.load(Purpose.JWT_SVID, key.kid)).public_key() == key.public_key()
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
from aims.keys import Purpose, current_key, open_store
async def main():
    store = open_store("file:" + sys.argv[1])
    await current_key(store, Purpose.SET)
    for _ in range(100000):
        print("ready", flush=True)
        key = await store.create(Purpose.SET)
        await store.destroy(Purpose.SET, key.kid)
asyncio.run(main())
"""


@pytest.mark.parametrize("rounds", [0, 3, 8])
def test_a_killed_writer_leaves_a_store_that_opens(folder: Path, rounds: int) -> None:
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(folder)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(rounds + 1):
            assert writer.stdout.readline() == b"ready\n"
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(10) == -signal.SIGKILL
    (folder / ".new-0123456789abcdef").write_bytes(b"half a key")
    asyncio.run(_use(folder))
    assert not _leftovers(folder)


async def _use(folder: Path) -> None:
    store = FileKeyStore(folder)
    key = await current_key(store, Purpose.SET)
    _verify(key, await key.sign(b"x"), b"x")
    for kid in await store.kids(Purpose.SET):
        assert (await store.load(Purpose.SET, kid)).kid == kid
    await store.create(Purpose.SET)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'{"current":"x","next":null,"retired":[]}',
        b'{"current":"%b","next":"%b","retired":[]}' % (b"A" * 43, b"B" * 43),
        b'{"current":"%b","next":null,"retired":[],"more":1}' % (b"A" * 43),
        b'{"current":"%b","next":null,"retired":[{"kid":"%b","until":1}]}' % (b"A" * 43, b"B" * 43),
        b'{"current":"\xff","next":null,"retired":[]}',
        b" " * 9000 + b'{"current":"%b","next":null,"retired":[]}' % (b"A" * 43),
        b'{"current":"%b","next":null,"retired":' % (b"A" * 43) + b"[" * 4000,
    ],
)
def test_a_damaged_name_is_refused(data: bytes) -> None:
    with pytest.raises(KeyStoreError) as caught:
        named.decode(data)
    assert caught.value.reason in {"malformed", "kid"}


def test_names_are_bounded() -> None:
    kid = "A" * 43
    assert named.encode(kid) == b'{"current":"%b","next":null,"retired":[]}' % kid.encode()
    assert named.decode(named.encode(kid)) == kid
    for bad in ("", "a" * 42, "a" * 44, "a" * 43 + "\n", "../" + "a" * 40, "é" * 43):
        with _refused("kid"):
            parse_kid(bad)
