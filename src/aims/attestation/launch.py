"""The launch profile: what an entry approves when it says ``launch``.

A selector ``launch`` alone would make everybody who reaches the launcher's socket the agent. So an entry names a
profile by digest, ``launch:profile:<sha256>``, and the node starts only what equals it: the ELF that runs, the
arguments up to the program and as far as they were registered, the content of the code roots, and the rule by which
the caller's environment was cleaned. Further arguments may follow only where the profile says so.

``launch:unmeasured`` vouches only that the node started the process. It is for development.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from aims.attestation.errors import AttestationError
from aims.attestation.selectors import Selector

PROFILE_VERSION = 1
ENVIRONMENT_RULE = "clean-1"
UNMEASURED = Selector("launch", "unmeasured")

MAX_ARGUMENTS = 256
MAX_HEAD_OCTETS = 64 * 1024
MAX_ROOTS = 32
MAX_PATH_OCTETS = 4096
MAX_PROFILE_OCTETS = 512 * 1024

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MEMBERS = frozenset({"version", "executable", "head", "roots", "environment", "more_arguments"})


@dataclass(frozen=True, slots=True, order=True)
class CodeRoot:
    """A file or folder whose content is part of the program: absolute path, SHA-256 in hex over its canonical list.

    Raises: AttestationError ``profile_malformed``.
    """

    path: str
    digest: str

    def __post_init__(self) -> None:
        if not self.path.startswith("/") or not 1 < _octets(self.path) <= MAX_PATH_OCTETS:
            raise AttestationError("profile_malformed", "the path of a code root")
        if not _DIGEST.fullmatch(self.digest):
            raise AttestationError("profile_malformed", "the digest of a code root")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What the node found before it started a program.

    ``argv`` is the resolved one: ``argv[0]`` is absolute, a script comes after its interpreter.
    """

    executable: str
    argv: tuple[str, ...]
    roots: tuple[CodeRoot, ...]
    environment: str = ENVIRONMENT_RULE


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchProfile:
    """What may be started: exists only if it is within its limits.

    ``executable``: SHA-256 in hex of the ELF that runs. ``head``: 1 to 256 arguments, at most 64 KiB, ``head[0]``
    absolute. ``roots``: at most 32, sorted by path, each path once. ``more_arguments``: whether others may follow.

    Raises: AttestationError ``profile_malformed``.
    """

    executable: str
    head: tuple[str, ...]
    roots: tuple[CodeRoot, ...] = ()
    environment: str = ENVIRONMENT_RULE
    more_arguments: bool = False

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.executable):
            raise AttestationError("profile_malformed", "the digest of the executable")
        if not 1 <= len(self.head) <= MAX_ARGUMENTS or not self.head[0].startswith("/"):
            raise AttestationError("profile_malformed", "the head of the arguments")
        if sum(_octets(argument) for argument in self.head) > MAX_HEAD_OCTETS:
            raise AttestationError("profile_malformed", "the head of the arguments is too long")
        if any("\0" in argument for argument in self.head):
            raise AttestationError("profile_malformed", "an argument holds a zero octet")
        paths = [root.path for root in self.roots]
        if len(paths) > MAX_ROOTS or paths != sorted(set(paths)):
            raise AttestationError("profile_malformed", "the code roots are too many, unsorted or doubled")
        if self.environment != ENVIRONMENT_RULE:
            raise AttestationError("profile_malformed", f"environment rule {self.environment!r:.40}")

    @classmethod
    def of(cls, measurement: Measurement, *, more_arguments: bool = False) -> LaunchProfile:
        """Make the profile that approves exactly what was measured."""
        return cls(
            executable=measurement.executable,
            head=measurement.argv,
            roots=tuple(sorted(measurement.roots)),
            environment=measurement.environment,
            more_arguments=more_arguments,
        )

    def canonical(self) -> bytes:
        """Return the JSON whose octets are hashed: sorted members, no spaces, UTF-8 (the form of RFC 8785)."""
        document = {
            "version": PROFILE_VERSION,
            "executable": self.executable,
            "head": list(self.head),
            "roots": [[root.path, root.digest] for root in self.roots],
            "environment": self.environment,
            "more_arguments": self.more_arguments,
        }
        return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8")

    @classmethod
    def parse(cls, octets: bytes) -> LaunchProfile:
        """Read the canonical JSON; any other spelling of the same value is refused.

        Raises: AttestationError ``profile_malformed``.
        """
        if len(octets) > MAX_PROFILE_OCTETS:
            raise AttestationError("profile_malformed", f"{len(octets)} octets")
        try:
            document = json.loads(octets.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise AttestationError("profile_malformed", "not JSON") from error
        if not isinstance(document, dict) or set(document) != _MEMBERS or document["version"] != PROFILE_VERSION:
            raise AttestationError("profile_malformed", "members or version")
        head, roots = document["head"], document["roots"]
        if not isinstance(head, list) or not isinstance(roots, list):
            raise AttestationError("profile_malformed", "head or roots are no lists")
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in roots):
            raise AttestationError("profile_malformed", "a code root is no pair")
        texts = [document["executable"], document["environment"], *head, *(text for pair in roots for text in pair)]
        if not all(isinstance(text, str) for text in texts) or not isinstance(document["more_arguments"], bool):
            raise AttestationError("profile_malformed", "a member has the wrong type")
        profile = cls(
            executable=document["executable"],
            head=tuple(head),
            roots=tuple(CodeRoot(path, digest) for path, digest in roots),
            environment=document["environment"],
            more_arguments=document["more_arguments"],
        )
        if profile.canonical() != octets:
            raise AttestationError("profile_malformed", "not the canonical form")
        return profile

    def selector(self) -> Selector:
        """Return ``launch:profile:<sha256>`` over the canonical JSON."""
        return Selector("launch", f"profile:{hashlib.sha256(self.canonical()).hexdigest()}")


def compare_words(profile: LaunchProfile, argv: Sequence[str], roots: Sequence[str]) -> tuple[str, ...]:
    """Name what differs before any content is read: ``arguments``, ``roots`` (their paths)."""
    names: list[str] = []
    allowed = argv[: len(profile.head)] if profile.more_arguments else argv
    if tuple(allowed) != profile.head:
        names.append("arguments")
    if len(set(roots)) != len(roots) or set(roots) != {root.path for root in profile.roots}:
        names.append("roots")
    return tuple(names)


def compare(profile: LaunchProfile, measurement: Measurement) -> tuple[str, ...]:
    """Name what differs from the profile; the empty tuple means that the profile approves the measurement.

    Names, in this order: ``executable``, ``arguments``, ``roots`` (other roots than approved), ``root:PATH`` (other
    content), ``environment``.
    """
    names: list[str] = []
    if measurement.executable != profile.executable:
        names.append("executable")
    names += compare_words(profile, measurement.argv, [root.path for root in measurement.roots])
    approved = {root.path: root.digest for root in profile.roots}
    found = {root.path: root.digest for root in measurement.roots}
    names += [f"root:{path}" for path in sorted(found) if path in approved and found[path] != approved[path]]
    if measurement.environment != profile.environment:
        names.append("environment")
    return tuple(names)


def _octets(text: str) -> int:
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise AttestationError("profile_malformed", "text that is not Unicode") from error
