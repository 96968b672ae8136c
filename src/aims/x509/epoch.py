"""The epoch extension: which stops the issuer had read when it issued, and for which instance.

One non-critical extension under an OID of AIMS (ITU-T X.667: 2.25 and a UUID), DER:

    SEQUENCE { epoch INTEGER (0..2^63-1), instance UTF8String (SIZE (1..256)) }

``instance`` is printable ASCII without spaces. Other implementations skip the extension; ours refuses a malformed one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cryptography import x509

from aims.x509 import der
from aims.x509.errors import X509Error

# 2.25 followed by UUID 45c34a4d-03bf-4768-919a-9370a3b586af as one number. Fixed for ever: certificates carry it.
OID = x509.ObjectIdentifier("2.25.92730736596612367517875457926072993455")
MAX_EPOCH = 2**63 - 1
_INSTANCE = re.compile(r"[!-~]{1,256}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Epoch:
    """A change-feed number (0 to 2^63 - 1) and the instance (1 to 256 printable ASCII characters) it was read for.

    Raises: X509Error ``epoch``.
    """

    number: int
    instance: str

    def __post_init__(self) -> None:
        if type(self.number) is not int or not 0 <= self.number <= MAX_EPOCH:
            raise X509Error("epoch", "number")
        if _INSTANCE.fullmatch(self.instance) is None:
            raise X509Error("epoch", "instance")

    def encode(self) -> bytes:
        """Return the DER value of the extension."""
        body = der.integer(self.number) + der.encode(der.UTF8_STRING, self.instance.encode("ascii"))
        return der.encode(der.SEQUENCE, body)

    def extension(self) -> x509.UnrecognizedExtension:
        """Return the extension for a builder; add it as non-critical."""
        return x509.UnrecognizedExtension(OID, self.encode())

    @classmethod
    def decode(cls, data: bytes) -> Epoch:
        """Read the DER value. Encoding the result again must give ``data``, so there is one spelling of each.

        Raises: X509Error ``epoch``.
        """
        try:
            at, end = der.content(data, 0, len(data), der.SEQUENCE)
            number, stop = der.content(data, at, end, der.INTEGER)
            text, last = der.content(data, stop, end, der.UTF8_STRING)
            instance = data[text:last].decode("ascii")
        except (X509Error, UnicodeDecodeError) as error:
            raise X509Error("epoch", "DER") from error
        if stop - number > 8:
            raise X509Error("epoch", "number")
        epoch = cls(int.from_bytes(data[number:stop], "big", signed=True), instance)
        if epoch.encode() != data:
            raise X509Error("epoch", "not the one DER spelling")
        return epoch

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Epoch | None:
        """Return the epoch of a parsed certificate, None if it has none.

        Raises: X509Error ``epoch`` when it is malformed or marked critical.
        """
        for extension in certificate.extensions:
            if extension.oid == OID:
                if extension.critical or not isinstance(extension.value, x509.UnrecognizedExtension):
                    raise X509Error("epoch", "critical")
                return cls.decode(extension.value.value)
        return None
