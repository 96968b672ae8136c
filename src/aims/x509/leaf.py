"""The DER of a leaf (RFC 5280 4.1), put together from parts that are encoded once for each authority.

A library's builder encodes the whole certificate anew for each leaf, which costs more than the signature. Here only
what differs is encoded: serial number, times, key, names and epoch. A test holds the result against the library's
builder, octet by octet, for all that an issuer can be asked.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aims.keys import Purpose, SigningKey
from aims.x509 import der
from aims.x509.chain import is_ca
from aims.x509.errors import X509Error
from aims.x509.public_key import LeafKey, leaf_key

BACKDATE: Final = 10  # seconds, so that a peer with a slow clock accepts a fresh certificate
MOST_NAMES_OCTETS: Final = 32 * 1024

_VERSION_3: Final = bytes((0xA0, 3)) + der.integer(2)
_NO_SUBJECT: Final = der.encode(der.SEQUENCE, b"")
_NAMES: Final = der.object_identifier("2.5.29.17")
_SUBJECT_KEY: Final = der.object_identifier("2.5.29.14")
_TRUE: Final = der.encode(der.BOOLEAN, b"\xff")
_FIRST_OF_2050: Final = 2_524_608_000  # RFC 5280 4.1.2.5: UTCTime until then

_EC_KEY: Final = der.object_identifier("1.2.840.10045.2.1")
# up to the point of a SubjectPublicKeyInfo: algorithm, curve, and BIT STRING with no unused bits
_CURVES: Final = {
    "secp256r1": (der.object_identifier("1.2.840.10045.3.1.7"), 65),
    "secp384r1": (der.object_identifier("1.3.132.0.34"), 97),
}
_SCHEMES: Final = {
    256: (ec.ECDSA(hashes.SHA256()), der.encode(der.SEQUENCE, der.object_identifier("1.2.840.10045.4.3.2"))),
    384: (ec.ECDSA(hashes.SHA384()), der.encode(der.SEQUENCE, der.object_identifier("1.2.840.10045.4.3.3"))),
}


def _before_point(curve: bytes, octets: int) -> bytes:
    algorithm = der.encode(der.SEQUENCE, _EC_KEY + curve)
    whole = der.encode(der.SEQUENCE, algorithm + der.encode(der.BIT_STRING, bytes(1 + octets)))
    return whole[:-octets]


_BEFORE_POINT: Final = {name: _before_point(*row) for name, row in _CURVES.items()}


class LeafForm:
    """What all leaves of one authority share.

    Raises: X509Error ``authority`` if certificate and key do not belong together or the purpose is another.
    """

    __slots__ = (
        "_after",
        "_algorithm",
        "_before",
        "_constant",
        "_head",
        "_longest",
        "_private",
        "_scheme",
        "authority",
    )

    def __init__(
        self,
        authority: x509.Certificate,
        key: SigningKey,
        purpose: Purpose,
        usages: Iterable[x509.ObjectIdentifier],
        longest: float,
    ) -> None:
        if key.purpose is not purpose:
            raise X509Error("authority", f"a key for {key.purpose}")
        if not is_ca(authority) or authority.public_key() != key.public_key():
            raise X509Error("authority", "certificate and key do not belong together")
        try:
            identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except x509.ExtensionNotFound as error:
            raise X509Error("authority", "no subject key identifier") from error
        private = key.certificate_key()
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise X509Error("authority", "Ed25519 signatures do not pass path validation")
        self.authority = authority
        self._longest = longest
        self._private = private
        self._scheme, self._algorithm = _SCHEMES[private.curve.key_size]
        self._head = self._algorithm + authority.subject.public_bytes()
        self._before = int(authority.not_valid_before_utc.timestamp())
        self._after = int(authority.not_valid_after_utc.timestamp())
        self._constant = b"".join(
            extension(der.object_identifier(value.oid.dotted_string), value.public_bytes(), critical=critical)
            for value, critical in (
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (leaf_usage(), True),
                (x509.ExtendedKeyUsage(usages), False),
                (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False),
            )
        )

    def issue(  # noqa: PLR0917  inner method of two callers
        self, public_key: LeafKey, names: bytes, serial: int, now: float, lifetime: float, more: bytes = b""
    ) -> x509.Certificate:
        """Return a signed leaf with the SubjectAlternativeName ``names``; ``more`` is one encoded extension or none.

        Raises: X509Error ``lifetime``, ``authority``, ``key_type``, ``serial``, ``name``.
        """
        if not 1 <= lifetime <= self._longest:
            raise X509Error("lifetime", f"{lifetime} s")
        if not self._before <= int(now) < self._after:
            raise X509Error("authority", "outside its validity")
        if len(names) > MOST_NAMES_OCTETS:
            raise X509Error("name", f"more than {MOST_NAMES_OCTETS} octets")
        key, identifier = _public_key(leaf_key(public_key))
        validity = _time(max(int(now - BACKDATE), self._before)) + _time(min(int(now + lifetime), self._after))
        extensions = b"".join(
            (
                self._constant,
                extension(_NAMES, names, critical=True),  # critical, because the subject is empty
                extension(_SUBJECT_KEY, der.encode(der.OCTET_STRING, identifier), critical=False),
                more,
            )
        )
        to_be_signed = der.encode(
            der.SEQUENCE,
            b"".join(
                (
                    _VERSION_3,
                    der.integer(valid_serial(serial)),
                    self._head,
                    der.encode(der.SEQUENCE, validity),
                    _NO_SUBJECT,
                    key,
                    der.encode(0xA3, der.encode(der.SEQUENCE, extensions)),
                )
            ),
        )
        signature = der.encode(der.BIT_STRING, b"\0" + self._private.sign(to_be_signed, self._scheme))
        return x509.load_der_x509_certificate(der.encode(der.SEQUENCE, to_be_signed + self._algorithm + signature))


def extension(oid: bytes, value: bytes, *, critical: bool) -> bytes:
    """Return an Extension (RFC 5280 4.1) of an encoded identifier and an encoded value."""
    return der.encode(der.SEQUENCE, oid + (_TRUE if critical else b"") + der.encode(der.OCTET_STRING, value))


def leaf_usage() -> x509.KeyUsage:
    """What the key of a leaf may do (X509-SVID 4.3)."""
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=True,
        data_encipherment=False,
        key_agreement=True,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def valid_serial(number: int) -> int:
    """Return a number that may be a serial number: positive, at most 159 bits. Raises: X509Error ``serial``."""
    if not 0 < number < 1 << 159:
        raise X509Error("serial")
    return number


def _public_key(key: LeafKey) -> tuple[bytes, bytes]:
    """Return the SubjectPublicKeyInfo of a key and its identifier (RFC 5280 4.2.1.2 (1))."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return _BEFORE_POINT[key.curve.name] + point, hashlib.sha1(point, usedforsecurity=False).digest()
    whole = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return whole, x509.SubjectKeyIdentifier.from_public_key(key).digest


def _time(seconds: int) -> bytes:
    year, month, day, hour, minute, second = time.gmtime(seconds)[:6]
    rest = b"%02d%02d%02d%02d%02dZ" % (month, day, hour, minute, second)
    if seconds < _FIRST_OF_2050:
        return der.encode(der.UTC_TIME, b"%02d" % (year % 100) + rest)
    return der.encode(der.GENERALIZED_TIME, b"%04d" % year + rest)
