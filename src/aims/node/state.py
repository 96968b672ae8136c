"""The node's folder: its key, its X509-SVID and whom it believes, so that a restart needs no new join token.

FOLDER/         0700, ours
    node.lock   held by the running node
    node.json   0600: everything but the key, replaced as a whole
    keys/       a key store of purpose ``node``; ``node.json`` names the key that counts
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from aims.clock import Clock
from aims.credentials import x509_svid
from aims.credentials.bundle import Bundle, BundleSet
from aims.credentials.x509_svid import X509Svid
from aims.errors import AimsError
from aims.identifiers import SpiffeId, TrustDomain
from aims.jose import base64url
from aims.keys import KeyStore, KeyStoreError, Purpose, SigningKey, open_store
from aims.node.errors import NodeError
from aims.node.messages import bundle_of
from aims.node.server_client import Welcome, base_url
from aims.provisioning.join_token import MAX_TOKEN, PREFIX, JoinToken
from aims.tls import TlsIdentity

STANDARD_INPUT: Final = Path("-")
_MAX_DOCUMENT: Final = 1024 * 1024
_DOCUMENT: Final = "node.json"
_LOCK: Final = "node.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The node's own SVID with its key, the bundle that judges the server, and where the server is."""

    svid: X509Svid
    key: SigningKey = field(repr=False)
    bundle: Bundle
    public_url: str
    mtls_url: str
    ca: bytes

    @property
    def spiffe_id(self) -> SpiffeId:
        return self.svid.spiffe_id

    @property
    def trust_domain(self) -> TrustDomain:
        return self.svid.spiffe_id.trust_domain

    @property
    def node(self) -> str:
        """The node's id, the last segment of its SPIFFE ID."""
        return self.svid.spiffe_id.segments[-1]

    @property
    def server(self) -> SpiffeId:
        """Whom the node talks to."""
        return SpiffeId.service(self.trust_domain, "aims")

    def tls(self) -> TlsIdentity:
        """Return what the node shows. Raises: KeyStoreError, TlsError."""
        return TlsIdentity(self.svid.chain, self.key.certificate_key())

    def came_by(self, token: JoinToken) -> bool:
        """Tell whether a join by ``token`` would lead to the same server."""
        return self.public_url == token.url and self.ca == token.ca


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    spiffe_id: str
    kid: str
    svid: list[str]
    bundle: dict[str, Any]
    public_url: str
    mtls_url: str
    ca: str


class StateFolder:
    """The folder of one node, locked as long as this value lives. Blocking: files only.

    Raises: NodeError ``node_folder``, ``node_running``; KeyStoreError.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = private_folder(folder)
        self._clock = clock
        self._lock = take_lock(folder / _LOCK)
        self.keys: KeyStore = open_store(f"file:{folder / 'keys'}")

    def close(self) -> None:
        """Let the next node in."""
        os.close(self._lock)

    async def load(self) -> Identity | None:
        """Return the identity that is stored, None where there is none yet.

        Raises: NodeError ``identity_expired``, ``identity_unusable``.
        """
        octets = _read(self._folder / _DOCUMENT)
        if octets is None:
            return None
        try:
            document = msgspec.json.decode(octets, type=_Document, strict=True)
            spiffe_id = SpiffeId.parse_workload(document.spiffe_id)
            key = await self.keys.load(Purpose.NODE, document.kid)
            return identity_of(
                spiffe_id=spiffe_id,
                key=key,
                chain=tuple(base64url.decode(each.encode("ascii")) for each in document.svid),
                bundle=bundle_of(document.bundle, spiffe_id.trust_domain),
                public_url=document.public_url,
                mtls_url=document.mtls_url,
                ca=base64url.decode(document.ca.encode("ascii")),
                now=self._clock.now(),
            )
        except NodeError:
            raise
        except (msgspec.MsgspecError, UnicodeError, AimsError) as error:
            detail = error.code if isinstance(error, AimsError) else type(error).__name__
            raise NodeError("identity_unusable", detail) from error

    async def save(self, identity: Identity) -> None:
        """Make ``identity`` the stored one, and forget every other key.

        Raises: NodeError ``node_folder``; KeyStoreError.
        """
        document = _Document(
            version=1,
            spiffe_id=str(identity.spiffe_id),
            kid=identity.key.kid,
            svid=[_text(each.public_bytes(Encoding.DER)) for each in identity.svid.chain],
            bundle=msgspec.json.decode(identity.bundle.build()),
            public_url=identity.public_url,
            mtls_url=identity.mtls_url,
            ca=_text(identity.ca),
        )
        _replace(self._folder, _DOCUMENT, msgspec.json.encode(document))
        with contextlib.suppress(KeyStoreError):  # the next one is forgotten with them
            for kid in await self.keys.kids(Purpose.NODE):
                if kid != identity.key.kid:
                    await self.keys.destroy(Purpose.NODE, kid)


def identity_of(
    *,
    spiffe_id: SpiffeId,
    key: SigningKey,
    chain: tuple[bytes, ...],
    bundle: Bundle,
    public_url: str,
    mtls_url: str,
    ca: bytes,
    now: float,
) -> Identity:
    """Build the node's identity from its parts, which must belong together.

    1. The chain is good by the bundle, for this node and no other. 2. The key is the chain's. 3. URLs are URLs.

    Raises: NodeError ``identity_expired``, ``identity_unusable``; CredentialError never leaves.
    """
    # 1
    try:
        svid = x509_svid.validate(chain, BundleSet([bundle]), now=now, expected=spiffe_id, own=spiffe_id.trust_domain)
    except AimsError as error:
        reason = "identity_expired" if error.reason == "x509_expired" else "identity_unusable"
        raise NodeError(reason, error.code) from error
    # 2
    if svid.leaf.public_key() != key.public_key():
        raise NodeError("identity_unusable", "another key")
    if len(spiffe_id.segments) != 2 or spiffe_id.segments[0] != "nodes":
        raise NodeError("identity_unusable", "no node's name")
    # 3
    return Identity(
        svid=svid, key=key, bundle=bundle, public_url=base_url(public_url), mtls_url=base_url(mtls_url), ca=ca
    )


def welcomed(
    welcome: Welcome, *, spiffe_id: SpiffeId, key: SigningKey, public_url: str, ca: bytes, now: float
) -> Identity:
    """Take the server's answer to a join or a renewal, if it is about this node, this key and this trust domain.

    Raises: NodeError ``server_answer``.
    """
    domain = spiffe_id.trust_domain
    if welcome.trust_domain not in {"", domain.name}:
        raise NodeError("server_answer", "another trust domain")
    try:
        return identity_of(
            spiffe_id=spiffe_id,
            key=key,
            chain=welcome.chain(),
            bundle=bundle_of(welcome.bundle, domain),
            public_url=public_url,
            mtls_url=welcome.mtls_url,
            ca=ca,
            now=now,
        )
    except NodeError as error:
        raise NodeError("server_answer", error.detail or error.reason) from error


def request_of(key: SigningKey) -> bytes:
    """Return a certificate request (PKCS#10 DER) that proves possession of a key of purpose ``node``; it names nobody.

    Raises: KeyStoreError.
    """
    private = key.certificate_key()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(private, hashes.SHA256()).public_bytes(Encoding.DER)


def read_join_token(source: Path) -> JoinToken:
    """Read a join token from a private file, or for ``-`` from standard input.

    Raises: NodeError ``join_token_file``; ProvisioningError ``join_token_malformed``.
    """
    if source.name.startswith(PREFIX):
        # everybody on this host can read arguments; and the error must not repeat it
        raise NodeError("join_token_file", "a token itself was given as the argument: it is not secret any more")
    if source == STANDARD_INPUT:
        octets = sys.stdin.buffer.readline(MAX_TOKEN + 2)
    else:
        found = _read(source, "join_token_file")
        if found is None:
            raise NodeError("join_token_file", f"{source} does not exist")
        octets = found
    return JoinToken.parse(octets.decode("ascii", "replace").removesuffix("\n").removesuffix("\r"))


def private_folder(folder: Path, *, readable: bool = False) -> Path:
    """Make a folder of mode 0700, or insist that the present one is this user's alone.

    With ``readable`` others may be let in to look, and so to reach sockets, but never to write.

    Raises: NodeError ``node_folder``.
    """
    if not folder.is_absolute():
        raise NodeError("node_folder", f"{folder} is not absolute")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise NodeError("node_folder", f"{folder}: {error.strerror}") from error
    closed = 0o022 if readable else 0o077
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & closed:
        raise NodeError("node_folder", f"{folder}: mode {stat.S_IMODE(found.st_mode):04o}, uid {found.st_uid}")
    return folder


def take_lock(path: Path) -> int:
    """Open a file of our own and lock it as long as the descriptor stays open.

    Raises: NodeError ``node_running``, ``node_folder``.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NodeError("node_folder", f"{path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise NodeError("node_running", str(path)) from error
    return descriptor


def _read(path: Path, reason: str = "node_folder") -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NodeError(reason, f"{path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in {0, os.geteuid()} or found.st_mode & 0o077:
            raise NodeError(reason, f"{path}: mode {stat.S_IMODE(found.st_mode):04o}, uid {found.st_uid}")
        octets = file.read(_MAX_DOCUMENT + 1)
    if len(octets) > _MAX_DOCUMENT:
        raise NodeError(reason, f"{path} is too long")
    return octets


def _replace(folder: Path, name: str, octets: bytes) -> None:
    temporary = folder / f".new-{secrets.token_hex(8)}"
    try:
        for old in folder.glob(".new-*"):  # of a node that was killed; the lock says that none lives
            old.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(octets)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(folder / name)
        parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise NodeError("node_folder", f"{folder}: {error.strerror}") from error


def _text(octets: bytes) -> str:
    return base64url.encode(octets).decode("ascii")
