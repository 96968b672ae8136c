"""Certificates from outside: bounded in number and size, nothing before, between or after them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

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
    _positive_serial(data)
    try:
        certificate = x509.load_der_x509_certificate(data)
        certificate.public_key()
        list(certificate.extensions)
        if certificate.version is not x509.Version.v3:
            raise X509Error("malformed", "not version 3")
    except (
        ValueError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        x509.InvalidVersion,
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
        try:
            parts.append(base64.b64decode(b"".join(lines), validate=True))
        except binascii.Error as error:
            raise X509Error("pem", "not base64") from error
        at = block.end()
    return parse_sequence(parts, most=most)


def join_der(certificates: Iterable[x509.Certificate]) -> bytes:
    """Return the certificates as concatenated DER."""
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in certificates)


def join_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Return the certificates as PEM."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _positive_serial(data: bytes) -> None:
    # RFC 5280 4.1.2.2. The library only warns, and a warning is no verdict.
    at, end = der.content(data, 0, len(data), der.SEQUENCE)
    at, end = der.content(data, at, end, der.SEQUENCE)
    tag, start, stop = der.element(data, at, end)
    if tag == 0xA0:  # [0] version
        tag, start, stop = der.element(data, stop, end)
    if tag != der.INTEGER or not 1 <= stop - start <= 20 or data[start] & 0x80 or not any(data[start:stop]):
        raise X509Error("malformed", "serial number")
