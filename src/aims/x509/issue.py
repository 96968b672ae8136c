"""Issuing: authorities that sign themselves, and leaves in the form that every SPIFFE client accepts.

Extensions that are the same in every leaf of an authority are encoded once. Times are Unix seconds in, whole seconds in
the certificate.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aims.keys import Purpose, SigningKey
from aims.x509 import der
from aims.x509.chain import is_ca
from aims.x509.epoch import OID as EPOCH_OID
from aims.x509.epoch import Epoch
from aims.x509.errors import X509Error
from aims.x509.public_key import LeafKey, leaf_key

BACKDATE: Final = 10  # seconds, so that a peer with a slow clock accepts a fresh certificate
MAX_LEAF_LIFETIME: Final = 24 * 3600
MAX_TLS_LIFETIME: Final = 90 * 24 * 3600
MAX_CA_LIFETIME: Final = 10 * 365 * 24 * 3600

_LEAF_BITS: Final = ("digital_signature", "key_encipherment", "key_agreement")
_CA_BITS: Final = ("key_cert_sign", "crl_sign")
_NAMES_OID: Final = x509.SubjectAlternativeName.oid
_KEY_OID: Final = x509.SubjectKeyIdentifier.oid
_URI_NAME: Final = partial(der.encode, 0x86)  # GeneralName [6], RFC 5280 4.2.1.6
_DNS_NAME: Final = partial(der.encode, 0x82)  # GeneralName [2]
_NOBODY: Final = x509.Name([])
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
    return _serial(int.from_bytes(octets, "big") >> 1)


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
        self._form = _Form(authority, key, Purpose.X509_CA, _BOTH, MAX_LEAF_LIFETIME)

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
        more = () if epoch is None else (x509.Extension(EPOCH_OID, False, epoch.extension()),)
        return self._form.issue(public_key, der.encode(der.SEQUENCE, names), serial, now, lifetime, more)


def build_localhost(
    authority: x509.Certificate, key: SigningKey, *, public_key: LeafKey, serial: int, now: float, lifetime: float
) -> x509.Certificate:
    """Return a server certificate for ``localhost``, 127.0.0.1 and ::1 by the local TLS authority, at most 90 days.

    Raises: X509Error ``key_type``, ``lifetime``, ``serial``, ``authority``.
    """
    form = _Form(authority, key, Purpose.TLS_PUBLIC, (ExtendedKeyUsageOID.SERVER_AUTH,), MAX_TLS_LIFETIME)
    return form.issue(public_key, _LOOPBACK.public_bytes(), serial, now, lifetime, ())


class _Form:
    """What all leaves of one authority share, encoded once.

    The builder is filled through its constructor: each of its methods copies everything that is there already.
    """

    __slots__ = ("_after", "_before", "_constant", "_key", "_longest", "_name", "authority")

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
        self.authority = authority
        self._key = key
        self._longest = longest
        self._name = authority.subject
        self._before = authority.not_valid_before_utc
        self._after = authority.not_valid_after_utc
        self._constant = (
            _encoded(x509.BasicConstraints(ca=False, path_length=None), critical=True),
            _encoded(_usage(_LEAF_BITS), critical=True),
            _encoded(x509.ExtendedKeyUsage(usages), critical=False),
            _encoded(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False),
        )

    def issue(  # noqa: PLR0917  inner method of two callers
        self,
        public_key: LeafKey,
        names: bytes,
        serial: int,
        now: float,
        lifetime: float,
        more: Iterable[x509.Extension[x509.ExtensionType]],
    ) -> x509.Certificate:
        if not 1 <= lifetime <= self._longest:
            raise X509Error("lifetime", f"{lifetime} s")
        moment = _moment(now)
        if not self._before <= moment < self._after:
            raise X509Error("authority", "outside its validity")
        key = leaf_key(public_key)
        builder = x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=_NOBODY,
            public_key=key,
            serial_number=_serial(serial),
            not_valid_before=_plain(max(_moment(now - BACKDATE), self._before)),
            not_valid_after=_plain(min(_moment(now + lifetime), self._after)),
            extensions=[
                *self._constant,
                _plain_extension(_NAMES_OID, names, critical=True),  # critical, because the subject is empty
                _subject_key(key),
                *more,
            ],
        )
        return _sign(builder, self._key)


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
            x509.NameAttribute(NameOID.SERIAL_NUMBER, str(_serial(serial))),
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
        .add_extension(_usage(_CA_BITS), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _sign(builder: x509.CertificateBuilder, key: SigningKey) -> x509.Certificate:
    private = key.certificate_key()
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise X509Error("authority", "Ed25519 signatures do not pass path validation")
    digest = hashes.SHA384() if private.curve.key_size > 256 else hashes.SHA256()
    return builder.sign(private, digest)


def _serial(number: int) -> int:
    if not 0 < number < 1 << 159:
        raise X509Error("serial")
    return number


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


def _encoded(value: x509.ExtensionType, *, critical: bool) -> x509.Extension[x509.ExtensionType]:
    return _plain_extension(value.oid, value.public_bytes(), critical=critical)


def _plain_extension(
    oid: x509.ObjectIdentifier, octets: bytes, *, critical: bool
) -> x509.Extension[x509.ExtensionType]:
    return x509.Extension(oid, critical, x509.UnrecognizedExtension(oid, octets))


def _subject_key(key: LeafKey) -> x509.Extension[x509.ExtensionType]:
    if isinstance(key, ec.EllipticCurvePublicKey):  # RFC 5280 4.2.1.2 (1), faster than through the whole key's DER
        point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        digest = hashlib.sha1(point, usedforsecurity=False).digest()
    else:
        digest = x509.SubjectKeyIdentifier.from_public_key(key).digest
    return _plain_extension(_KEY_OID, der.encode(der.OCTET_STRING, digest), critical=False)


def _plain(moment: datetime) -> datetime:
    # the form in which the builder keeps times: UTC without a zone
    return moment.replace(tzinfo=None)


def _usage(bits: Iterable[str]) -> x509.KeyUsage:
    wanted = frozenset(bits)
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in wanted for name in names})
