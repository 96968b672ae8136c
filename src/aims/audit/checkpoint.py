"""Checkpoints of the log: C2SP ``tlog-checkpoint`` inside C2SP ``signed-note``, with an Ed25519 key.

The text is three lines: origin, size in decimal, root in base64. A signature line names the key and carries four
octets of key hash before the signature. Parsing accepts exactly the form that writing produces; further signatures
(witnesses) are kept apart and not judged here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from aims.audit.errors import AuditError

Sign = Callable[[bytes], bytes]

MAX_OCTETS: Final = 16_384
MAX_SIGNATURES: Final = 16
_ED25519: Final = b"\x01"
_NAME: Final = re.compile(r"[!-*,-~]{1,200}")  # printable ASCII without space and "+"
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,15}")
_VKEY: Final = re.compile(r"([!-*,-~]{1,200})\+([0-9a-f]{8})\+([A-Za-z0-9+/=]{1,100})")


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """The public key of a log with its name: ``name+hash+base64``."""

    name: str
    key: bytes

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.key) != 32:
            raise AuditError("note_key", "name of printable ASCII without '+', key of 32 octets")

    @property
    def key_hash(self) -> bytes:
        """Four octets that tell keys of one name apart; they prove nothing."""
        return hashlib.sha256(self.name.encode("ascii") + b"\n" + _ED25519 + self.key).digest()[:4]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the one-line form. Raises ``AuditError("note_key")``."""
        match = _VKEY.fullmatch(text)
        raw = _base64(match[3]) if match else None
        if match is None or raw is None or len(raw) != 33 or raw[:1] != _ED25519:
            raise AuditError("note_key")
        found = cls(match[1], raw[1:])
        if found.key_hash.hex() != match[2]:
            raise AuditError("note_key", "the hash does not belong to name and key")
        return found

    def __str__(self) -> str:
        return f"{self.name}+{self.key_hash.hex()}+{base64.b64encode(_ED25519 + self.key).decode('ascii')}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log says about itself: under this origin, so many entries have this root."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.origin) or not 0 <= self.size < 2**53 or len(self.root) != 32:
            raise AuditError("note_malformed", "origin, size or root out of bounds")

    @property
    def text(self) -> bytes:
        """The three lines that are signed."""
        root = base64.b64encode(self.root).decode("ascii")
        return f"{self.origin}\n{self.size}\n{root}\n".encode("ascii")

    def signed(self, key: VerifierKey, sign: Sign) -> bytes:
        """Return the signed note. Raises ``AuditError("signer_mismatch")`` if ``sign`` does not belong to ``key``."""
        signature = sign(self.text)
        if len(signature) != 64 or not _verifies(key, signature, self.text):
            raise AuditError("signer_mismatch")
        line = base64.b64encode(key.key_hash + signature).decode("ascii")
        return self.text + f"\n\u2014 {key.name} {line}\n".encode()

    @classmethod
    def verified(cls, note: bytes, key: VerifierKey) -> Self:
        """Read a note that ``key`` signed, and whose origin is the key's name.

        Steps: 1 the note splits into text and signature lines of the one exact form; 2 exactly one signature is by
        ``key``; 3 it verifies over the text; 4 the text is a checkpoint; 5 its origin is the key's name.
        Raises ``AuditError``: ``note_malformed``, ``note_signer`` or ``note_signature``.
        """
        text, signatures = _split_note(note)  # 1
        own = [signature for name, raw, signature in signatures if name == key.name and raw == key.key_hash]
        if not own:  # 2
            raise AuditError("note_signer")
        if len(own) > 1:
            raise AuditError("note_malformed", "two signatures by one key")
        if len(own[0]) != 64 or not _verifies(key, own[0], text):  # 3
            raise AuditError("note_signature")
        lines = text.decode("utf-8").split("\n")  # 4
        root = _base64(lines[2]) if len(lines) == 4 else None
        if root is None or len(root) != 32 or not _SIZE.fullmatch(lines[1]):
            raise AuditError("note_malformed", "not the three lines of a checkpoint")
        found = cls(lines[0], int(lines[1]), root)
        if found.origin != key.name:  # 5
            raise AuditError("note_malformed", "checkpoint of another log")
        return found


def _split_note(note: bytes) -> tuple[bytes, list[tuple[str, bytes, bytes]]]:
    if len(note) > MAX_OCTETS:
        raise AuditError("note_malformed", "too long")
    try:
        decoded = note.decode("utf-8")
    except UnicodeDecodeError as error:
        raise AuditError("note_malformed", "not UTF-8") from error
    if any(character < " " and character != "\n" for character in decoded):
        raise AuditError("note_malformed", "control character")
    text, separator, tail = decoded.rpartition("\n\n")
    lines = tail.split("\n")
    if not separator or lines.pop() != "" or not 1 <= len(lines) <= MAX_SIGNATURES:
        raise AuditError("note_malformed", "no signature lines")
    signatures: list[tuple[str, bytes, bytes]] = []
    for line in lines:
        parts = line.split(" ")
        raw = _base64(parts[2]) if len(parts) == 3 and parts[0] == "\u2014" else None
        if raw is None or len(raw) < 5 or not parts[1] or "+" in parts[1]:
            raise AuditError("note_malformed", "signature line")
        signatures.append((parts[1], raw[:4], raw[4:]))
    return (text + "\n").encode("utf-8"), signatures


def _base64(text: str) -> bytes | None:
    """Standard base64 in its one form; re-encoding finds stray bits that lenient decoders accept."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.b64encode(raw).decode("ascii") == text else None


def _verifies(key: VerifierKey, signature: bytes, text: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key.key).verify(signature, text)
    except InvalidSignature:
        return False
    return True
