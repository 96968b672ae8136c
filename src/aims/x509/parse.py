"""Certificates from outside: bounded in number and size, nothing before, between or after them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from aims.x509 import der
from aims.x509.errors import X509Error

MAX_CERTIFICATES = 10
MAX_CERTIFICATE_BYTES = 16384
_PEM_LINE = 64
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END CERTIFICATE-----[\r\n]*")


def parse_certificate(data: bytes) -> x509.Certificate:
    """Read exactly one DER certificate of at most 16 KiB.

    Serial number, key and extensions are read at once, so that nothing of it fails later.

    Raises: X509Error ``too_large``, ``malformed``.
    """
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise X509Error("too_large", f"{len(data)} octets")
    _check_form(data)
    try:
        certificate = x509.load_der_x509_certificate(data)
        certificate.public_key()
        _check_extensions(certificate)
        if certificate.version is not x509.Version.v3:
            raise X509Error("malformed", "not version 3")
    except (
        ValueError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        x509.InvalidVersion,
        CryptographyDeprecationWarning,  # where warnings are errors
    ) as error:
        raise X509Error("malformed", str(error)) from error
    return certificate


def parse_chain(data: bytes, *, most: int = MAX_CERTIFICATES) -> tuple[x509.Certificate, ...]:
    """Read 1 to ``most`` concatenated DER certificates (the form of the Workload API).

    Raises: X509Error ``empty``, ``too_many``, ``too_large``, ``malformed``.
    """
    if len(data) > most * MAX_CERTIFICATE_BYTES:
        raise X509Error("too_large", f"{len(data)} octets")
    parts: list[bytes] = []
    at = 0
    while at < len(data):
        _, end = der.content(data, at, len(data), der.SEQUENCE)
        if len(parts) == most:
            raise X509Error("too_many", f"more than {most}")
        parts.append(data[at:end])
        at = end
    return parse_sequence(parts, most=most)


def parse_sequence(parts: Iterable[bytes], *, most: int = MAX_CERTIFICATES) -> tuple[x509.Certificate, ...]:
    """Read 1 to ``most`` DER certificates that arrive one by one, as TLS gives them.

    Raises: as `parse_chain`.
    """
    listed = tuple(parts)
    if not listed:
        raise X509Error("empty")
    if len(listed) > most:
        raise X509Error("too_many", f"more than {most}")
    return tuple(parse_certificate(part) for part in listed)


def parse_pem(text: bytes, *, most: int = MAX_CERTIFICATES) -> tuple[x509.Certificate, ...]:
    """Read 1 to ``most`` PEM certificates with nothing but line ends around them (RFC 7468, strict form).

    Raises: X509Error ``pem``, and as `parse_chain`.
    """
    if len(text) > most * MAX_CERTIFICATE_BYTES * 2:
        raise X509Error("too_large", f"{len(text)} octets")
    parts: list[bytes] = []
    at = 0
    while at < len(text):
        block = _PEM.match(text, at)
        if block is None:
            raise X509Error("pem")
        if len(parts) == most:
            raise X509Error("too_many", f"more than {most}")
        lines = block[1].split()
        if any(len(line) > _PEM_LINE for line in lines):
            raise X509Error("pem", "long line")
        parts.append(base64_octets(b"".join(lines)))
        at = block.end()
    return parse_sequence(parts, most=most)


def base64_octets(text: bytes) -> bytes:
    """Return the octets of base64 in its one canonical spelling; Python's strict decoder lets extra padding pass.

    Raises: X509Error ``pem``.
    """
    try:
        octets = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise X509Error("pem", "not base64") from error
    if base64.b64encode(octets) != text:
        raise X509Error("pem", "not canonical base64")
    return octets


def join_der(certificates: Iterable[x509.Certificate]) -> bytes:
    """Return the certificates as concatenated DER."""
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in certificates)


def join_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Return the certificates as PEM."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _check_form(data: bytes) -> None:
    """Refuse two forms that the library lets pass, one with a mere warning."""
    start, end = der.content(data, 0, len(data), der.SEQUENCE)
    at, signed = der.content(data, start, end, der.SEQUENCE)
    # RFC 5280 4.1.2.2: a serial number is positive and has at most 20 octets
    tag, first, last = der.element(data, at, signed)
    if tag == 0xA0:  # [0] version
        tag, first, last = der.element(data, last, signed)
    if tag != der.INTEGER or not 1 <= last - first <= 20 or data[first] & 0x80 or not any(data[first:last]):
        raise X509Error("malformed", "serial number")
    # a signature is whole octets; another count of unused bits would give one certificate several fingerprints
    _, algorithm = der.content(data, signed, end, der.SEQUENCE)
    first, last = der.content(data, algorithm, end, der.BIT_STRING)
    if last != end or first == last or data[first] != 0:
        raise X509Error("malformed", "signature value")


def _check_extensions(certificate: x509.Certificate) -> None:
    for extension in certificate.extensions:
        value = extension.value
        serial = value.authority_cert_serial_number if isinstance(value, x509.AuthorityKeyIdentifier) else None
        if serial is not None and serial <= 0:
            raise X509Error("malformed", "serial number of the authority")
