"""Issuing: authorities that sign themselves, and leaves in the form that every SPIFFE client accepts.

Times are Unix seconds in, whole seconds in the certificate.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aims.keys import Purpose, SigningKey
from aims.x509 import der
from aims.x509.epoch import OID as EPOCH_OID
from aims.x509.epoch import Epoch
from aims.x509.errors import X509Error
from aims.x509.leaf import BACKDATE, LeafForm, extension, valid_serial
from aims.x509.public_key import LeafKey

MAX_LEAF_LIFETIME: Final = 24 * 3600
MAX_TLS_LIFETIME: Final = 90 * 24 * 3600
MAX_CA_LIFETIME: Final = 10 * 365 * 24 * 3600

_EPOCH: Final = der.object_identifier(EPOCH_OID.dotted_string)
_URI_NAME: Final = partial(der.encode, 0x86)  # GeneralName [6], RFC 5280 4.2.1.6
_DNS_NAME: Final = partial(der.encode, 0x82)  # GeneralName [2]
_BOTH: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_LOOPBACK: Final = x509.SubjectAlternativeName(
    [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
)
_LOOPBACK_ONLY: Final = x509.NameConstraints(
    permitted_subtrees=[
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_network("127.0.0.1/32")),
        x509.IPAddress(ipaddress.ip_network("::1/128")),
    ],
    excluded_subtrees=None,
)


def serial_from(octets: bytes) -> int:
    """Return a positive serial number of 159 bits from 20 random octets (RFC 5280 4.1.2.2).

    Raises: X509Error ``serial``.
    """
    if len(octets) != 20:
        raise X509Error("serial", f"{len(octets)} octets")
    return valid_serial(int.from_bytes(octets, "big") >> 1)


def build_ca(
    key: SigningKey,
    *,
    uri: str,
    serial: int,
    now: float,
    lifetime: float,
    path_length: int | None = 0,
) -> x509.Certificate:
    """Return the self-signed certificate of a trust domain's authority.

    ``uri`` is the identifier of the trust domain (``spiffe://td``), ``lifetime`` at most ten years. The subject carries
    the serial number too, because roots with equal subjects make a verifier try each of them.

    Raises: X509Error ``authority`` for a key of another purpose than x509-ca, ``serial``, ``lifetime``, ``name``.
    """
    builder = _ca(key, Purpose.X509_CA, "AIMS authority", serial, now, lifetime, path_length)
    return _sign(builder.add_extension(x509.SubjectAlternativeName([_uri(uri)]), critical=False), key)


def build_tls_ca(key: SigningKey, *, serial: int, now: float, lifetime: float) -> x509.Certificate:
    """Return the certificate of the local TLS authority, which can vouch for ``localhost`` and loopback alone.

    Raises: X509Error ``authority`` for a key of another purpose than tls-public, ``serial``, ``lifetime``.
    """
    builder = _ca(key, Purpose.TLS_PUBLIC, "AIMS local TLS authority", serial, now, lifetime, 0)
    return _sign(builder.add_extension(_LOOPBACK_ONLY, critical=True), key)


class LeafIssuer:
    """Issues the leaves of one authority: X509-SVIDs of an x509-ca key.

    Raises: X509Error ``authority`` if certificate and key do not belong together or the purpose is another.
    """

    __slots__ = ("_form",)

    def __init__(self, authority: x509.Certificate, key: SigningKey) -> None:
        self._form = LeafForm(authority, key, Purpose.X509_CA, _BOTH, MAX_LEAF_LIFETIME)

    @property
    def authority(self) -> x509.Certificate:
        """The authority's certificate."""
        return self._form.authority

    def issue(
        self,
        *,
        public_key: LeafKey,
        uri: str,
        serial: int,
        now: float,
        lifetime: float,
        epoch: Epoch | None = None,
        dns_names: Iterable[str] = (),
    ) -> x509.Certificate:
        """Return a certificate with ``uri`` as its only URI name and an empty subject.

        Valid from ``now`` - 10 s for ``lifetime`` seconds (at most 24 h), never beyond the authority.

        Raises: X509Error ``key_type``, ``lifetime``, ``serial``, ``name``, ``authority`` (outside its validity).
        """
        names = _URI_NAME(_ascii(uri)) + b"".join(_DNS_NAME(_ascii(name, most=253)) for name in dns_names)
        more = b"" if epoch is None else extension(_EPOCH, epoch.encode(), critical=False)
        return self._form.issue(public_key, der.encode(der.SEQUENCE, names), serial, now, lifetime, more)


def build_localhost(
    authority: x509.Certificate, key: SigningKey, *, public_key: LeafKey, serial: int, now: float, lifetime: float
) -> x509.Certificate:
    """Return a server certificate for ``localhost``, 127.0.0.1 and ::1 by the local TLS authority, at most 90 days.

    Raises: X509Error ``key_type``, ``lifetime``, ``serial``, ``authority``.
    """
    form = LeafForm(authority, key, Purpose.TLS_PUBLIC, (ExtendedKeyUsageOID.SERVER_AUTH,), MAX_TLS_LIFETIME)
    return form.issue(public_key, _LOOPBACK.public_bytes(), serial, now, lifetime)


def _ca(  # noqa: PLR0917  inner function of two callers
    key: SigningKey, purpose: Purpose, name: str, serial: int, now: float, lifetime: float, path_length: int | None
) -> x509.CertificateBuilder:
    if key.purpose is not purpose:
        raise X509Error("authority", f"a key for {key.purpose}")
    if not 0 < lifetime <= MAX_CA_LIFETIME:
        raise X509Error("lifetime", f"{lifetime} s")
    public = key.public_key()
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, str(valid_serial(serial))),
        ]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(_moment(now - BACKDATE))
        .not_valid_after(_moment(now + lifetime))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_ca_usage(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _sign(builder: x509.CertificateBuilder, key: SigningKey) -> x509.Certificate:
    private = key.certificate_key()
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise X509Error("authority", "Ed25519 signatures do not pass path validation")
    digest = hashes.SHA384() if private.curve.key_size > 256 else hashes.SHA256()
    return builder.sign(private, digest)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def _uri(text: str) -> x509.UniformResourceIdentifier:
    try:
        return x509.UniformResourceIdentifier(text)
    except ValueError as error:
        raise X509Error("name", "not ASCII") from error


def _ascii(text: str, *, most: int = 2048) -> bytes:
    if not text.isascii() or not 0 < len(text) <= most:
        raise X509Error("name", f"not 1 to {most} ASCII characters")
    return text.encode("ascii")


def _ca_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
