"""The root of the one error tree, and the form of every refusal.

    AimsError
    ├── IdentifierError      identifiers/      L1
    ├── JoseError            jose/             ground: the token door
    ├── X509Error            x509/             ground: the certificate door
    ├── KeyStoreError        keys/             ground: key stores
    ├── TlsError             tls/              ground: TLS contexts and their peers
    ├── StorageError         storage/          ground: engine, guarded writes, change feed
    ├── FetchError           fetch/            ground: outbound HTTP
    ├── CredentialError      credentials/      L2
    ├── AttestationError     attestation/      L3
    ├── ProvisioningError    provisioning/     L4
    ├── AuthenticationError  authentication/   L5
    ├── AuthorizationError   authorization/    L6
    ├── MonitoringError      monitoring/       L7
    ├── PolicyError          policy/           pillar
    ├── AuditError           audit/            pillar
    ├── NodeError            node/             rim
    ├── ServerError          server/           rim
    ├── SdkError             sdk/              rim
    └── CliError             cli/, demo/       rim

A class of the tree is a layer. What went wrong is a *reason* from the table of that class: its code
``layer.reason`` never changes, its sentence and hint are safe to show to anybody, and the detail given at the
raise is for the log and the operator only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Reason:
    """One way to fail: a sentence for a person, a hint that says what to do, and a standard's own error code.

    ``standard`` is the code that a specification fixes for the wire (for example ``invalid_client``), or "".
    """

    sentence: str
    hint: str = ""
    standard: str = ""


def reasons(**table: Reason | tuple[str, str] | tuple[str, str, str]) -> Mapping[str, Reason]:
    """Freeze a table of reasons; a tuple is (sentence, hint) or (sentence, hint, standard)."""
    return MappingProxyType(
        {name: entry if isinstance(entry, Reason) else Reason(*entry) for name, entry in table.items()}
    )


class AimsError(Exception):
    """Root of everything that AIMS raises on purpose.

    ``reason`` must stand in the class's own table: an unknown one is a programming error and raises ``LookupError``.
    ``detail`` is private: it goes to logs and audit, never to the other side.
    """

    layer: ClassVar[str] = "aims"
    reasons: ClassVar[Mapping[str, Reason]] = MappingProxyType({})

    def __init__(self, reason: str, detail: str = "") -> None:
        entry = self.reasons.get(reason)
        if entry is None:
            raise LookupError(f"{type(self).__name__} has no reason {reason!r}")
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.sentence = entry.sentence
        self.hint = entry.hint
        self.standard = entry.standard

    @property
    def code(self) -> str:
        """The stable code ``layer.reason``."""
        return f"{self.layer}.{self.reason}"

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}" + (f" ({self.detail})" if self.detail else "")


def catalogue(root: type[AimsError] = AimsError) -> Iterator[tuple[str, Reason]]:
    """Yield ``(code, reason)`` of every class below ``root`` that has been imported."""
    for branch in root.__subclasses__():
        own = branch.__dict__.get("reasons", {})
        for name, entry in own.items():
            yield f"{branch.layer}.{name}", entry
        yield from catalogue(branch)
