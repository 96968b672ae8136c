"""The SPIFFE bundle (SPIFFE_Trust_Domain_and_Bundle.md): what one trust domain's credentials are judged by.

A bundle never says whose it is, so the value here always carries its trust domain, and a set of bundles is asked for
one domain at a time. Nothing in this module pools keys of several.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from aims.credentials.errors import CredentialError
from aims.identifiers import TrustDomain
from aims.jose import JoseError, KeySet
from aims.jose.algorithms import PublicKey
from aims.jose.jwk import parse_public, public_jwk
from aims.jose.jwks import JwkSet, build_jwks, parse_jwks
from aims.x509 import X509Error, parse_certificate
from aims.x509.chain import MAX_ROOTS, is_ca
from aims.x509.parse import base64_octets, join_der

MAX_SEQUENCE: Final = 2**64 - 1
MAX_REFRESH_HINT: Final = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """The keys of one trust domain. Without any, nothing of that domain is trusted (R-TB-04).

    ``x509_authorities`` are CA certificates, at most 64; every JWT and WIT key has a ``kid``, unique over both kinds.
    ``sequence`` (0 to 2^64 - 1) grows with each change; ``refresh_hint`` is seconds. Either may be None where another
    implementation left it out. Two bundles are equal if they are published as the same octets for the same domain.

    Raises: CredentialError ``bundle_authority``, ``bundle_kid``, ``bundle_malformed`` (a number out of bounds).
    """

    trust_domain: TrustDomain
    x509_authorities: tuple[x509.Certificate, ...] = ()
    jwt_keys: KeySet = KeySet()  # noqa: RUF009  an empty key set never changes
    wit_keys: KeySet = KeySet()  # noqa: RUF009  an empty key set never changes
    sequence: int | None = None
    refresh_hint: int | None = None

    def __post_init__(self) -> None:
        if len(self.x509_authorities) > MAX_ROOTS or not all(map(is_ca, self.x509_authorities)):
            raise CredentialError("bundle_authority")
        kids = [key.kid for keys in (self.jwt_keys, self.wit_keys) for key in keys]
        if None in kids or len(set(kids)) != len(kids):
            raise CredentialError("bundle_kid")
        _bounded(self.sequence, MAX_SEQUENCE, "spiffe_sequence")
        _bounded(self.refresh_hint, MAX_REFRESH_HINT, "spiffe_refresh_hint")

    @classmethod
    def parse(cls, trust_domain: TrustDomain, octets: bytes | str) -> Bundle:
        """Read a SPIFFE bundle that was published for ``trust_domain`` (at most 256 KiB, 256 entries).

        Entries of unknown ``kty`` or ``use``, X.509 entries whose first ``x5c`` value is no CA certificate or does not
        fit their key members, and JWT and WIT entries without ``kid`` are ignored (R-TB-05, R-X5-10, R-JW-12); what is
        left may be nothing.

        Raises: CredentialError ``bundle_malformed``, ``bundle_kid``, ``bundle_authority`` (more than 64).
        """
        try:
            jwks = parse_jwks(octets)
        except JoseError as error:
            raise CredentialError("bundle_malformed", str(error)) from error
        try:
            jwt_keys, wit_keys = jwks.keys("jwt-svid"), jwks.keys("wit-svid")
        except JoseError as error:
            raise CredentialError("bundle_kid", str(error)) from error
        return cls(
            trust_domain=trust_domain,
            x509_authorities=_authorities(jwks),
            jwt_keys=jwt_keys,
            wit_keys=wit_keys,
            sequence=_number(jwks, "spiffe_sequence"),
            refresh_hint=_number(jwks, "spiffe_refresh_hint"),
        )

    @property
    def is_empty(self) -> bool:
        """Whether every key was withdrawn."""
        return not (self.x509_authorities or len(self.jwt_keys) or len(self.wit_keys))

    def build(self) -> bytes:
        """Return the bundle as it is published: JSON, X.509 entries without ``kid``, all others with it."""
        numbers = {"spiffe_sequence": self.sequence, "spiffe_refresh_hint": self.refresh_hint}
        members = {name: number for name, number in numbers.items() if number is not None}
        return build_jwks([*self._x509_entries(), *self._entries("jwt-svid"), *self._entries("wit-svid")], **members)

    def x509_der(self) -> bytes:
        """Return the authorities as the Workload API carries them: concatenated DER."""
        return join_der(self.x509_authorities)

    def jwt_jwks(self) -> bytes:
        """Return a plain JWK Set of the JWT keys, without ``use``, which generic JWT libraries would stumble over."""
        return build_jwks(public_jwk(key.key, kid=key.kid) for key in self.jwt_keys)

    def wit_jwks(self) -> bytes:
        """Return a plain JWK Set of the WIT keys, without ``use``."""
        return build_jwks(public_jwk(key.key, kid=key.kid) for key in self.wit_keys)

    def _x509_entries(self) -> Iterator[dict[str, Any]]:
        for authority in self.x509_authorities:
            members = public_jwk(_public(authority), use="x509-svid")
            yield {**members, "x5c": [base64.b64encode(authority.public_bytes(Encoding.DER)).decode("ascii")]}

    def _entries(self, use: str) -> Iterator[dict[str, str]]:
        for key in self.jwt_keys if use == "jwt-svid" else self.wit_keys:
            yield public_jwk(key.key, kid=key.kid, use=use)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bundle):
            return NotImplemented
        return self.trust_domain == other.trust_domain and self.build() == other.build()

    def __hash__(self) -> int:
        return hash((self.trust_domain, self.sequence))


class BundleSet:
    """Bundles by trust domain: asked for one domain, and never for all keys. Immutable; changes give a new set.

    Raises: CredentialError ``bundle_trust_domain`` for two bundles of one domain.
    """

    __slots__ = ("_bundles",)

    def __init__(self, bundles: Iterable[Bundle] = ()) -> None:
        held: dict[TrustDomain, Bundle] = {}
        for bundle in bundles:
            if bundle.trust_domain in held:
                raise CredentialError("bundle_trust_domain", bundle.trust_domain.name)
            held[bundle.trust_domain] = bundle
        self._bundles: Mapping[TrustDomain, Bundle] = MappingProxyType(held)

    def get(self, trust_domain: TrustDomain) -> Bundle | None:
        """Return the bundle of exactly this trust domain."""
        return self._bundles.get(trust_domain)

    @property
    def jwt_keys(self) -> Mapping[TrustDomain, KeySet]:
        """The JWT-SVID keys of each trust domain, apart from each other."""
        return {domain: bundle.jwt_keys for domain, bundle in self._bundles.items()}

    @property
    def wit_anchors(self) -> Mapping[str, KeySet]:
        """The WIT keys by origin (``spiffe://td``), apart from each other."""
        return {domain.uri: bundle.wit_keys for domain, bundle in self._bundles.items()}

    def accept(self, bundle: Bundle) -> BundleSet:
        """Return a set with ``bundle`` in place of the one of its domain.

        Raises: CredentialError ``bundle_sequence`` if both are numbered and it is older, or has the number of the one
            at hand and other keys: a rollback would bring withdrawn keys back (R-TB-02, R-FD-12).
        """
        held = self._bundles.get(bundle.trust_domain)
        if held is not None and held.sequence is not None and bundle.sequence is not None:
            older = bundle.sequence < held.sequence
            if older or (bundle.sequence == held.sequence and not _same_keys(bundle, held)):
                raise CredentialError("bundle_sequence", f"{bundle.sequence} after {held.sequence}")
        return BundleSet([*(one for one in self if one.trust_domain != bundle.trust_domain), bundle])

    def __iter__(self) -> Iterator[Bundle]:
        return iter(self._bundles.values())

    def __len__(self) -> int:
        return len(self._bundles)

    def __contains__(self, trust_domain: object) -> bool:
        return trust_domain in self._bundles

    def __eq__(self, other: object) -> bool:
        return self._bundles == other._bundles if isinstance(other, BundleSet) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._bundles))

    def __repr__(self) -> str:
        return f"BundleSet({', '.join(sorted(domain.name for domain in self._bundles))})"


def _number(jwks: JwkSet, name: str) -> int | None:
    number = jwks.members.get(name)
    if name in jwks.members and type(number) is not int:
        raise CredentialError("bundle_malformed", name)
    return number


def _authorities(jwks: JwkSet) -> tuple[x509.Certificate, ...]:
    found = []
    for entry in jwks.entries:
        certificate = _authority(entry) if entry.get("use") == "x509-svid" else None
        if certificate is not None and certificate not in found:
            found.append(certificate)
    return tuple(found)


def _authority(entry: Mapping[str, Any]) -> x509.Certificate | None:
    """Return the CA certificate of an entry, None where the entry is to be ignored."""
    values = entry.get("x5c")
    if not isinstance(values, list) or not values or not isinstance(values[0], str):
        return None
    try:
        certificate = parse_certificate(base64_octets(values[0].encode()))
        same = certificate.public_key() == parse_public(entry)
    except (X509Error, JoseError, UnicodeEncodeError):
        return None
    return certificate if same and is_ca(certificate) else None


def _public(authority: x509.Certificate) -> PublicKey:
    key = authority.public_key()
    if not isinstance(key, PublicKey):
        raise CredentialError("bundle_authority", type(key).__name__)
    return key


def _bounded(number: object, most: int, name: str) -> None:
    if number is not None and (type(number) is not int or not 0 <= number <= most):
        raise CredentialError("bundle_malformed", name)


def _same_keys(one: Bundle, other: Bundle) -> bool:
    return replace(one, refresh_hint=None) == replace(other, refresh_hint=None)
