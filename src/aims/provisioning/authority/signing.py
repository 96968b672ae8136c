"""The authority of this process: the current keys, loaded and ready.

A new ``Authority`` is made after each step; it never changes, so a signature always comes from one consistent set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cryptography import x509

from aims.credentials import jwt_svid, wit
from aims.credentials.model import Fence
from aims.credentials.x509_svid import X509Svid
from aims.identifiers import SpiffeId, TrustDomain
from aims.jose import sign
from aims.keys import Purpose, SigningKey
from aims.provisioning.authority.model import AuthorityState
from aims.provisioning.authority.service import AuthorityService
from aims.provisioning.errors import ProvisioningError
from aims.x509 import Epoch, LeafIssuer, parse_certificate
from aims.x509.leaf import BACKDATE
from aims.x509.public_key import LeafKey

_HEADERS: Final[Mapping[Purpose, Mapping[str, str]]] = {
    Purpose.JWT_SVID: jwt_svid.HEADER,
    Purpose.WIT_SVID: wit.HEADER,
}


class Authority:
    """Signs for one trust domain with the keys that were current when it was opened."""

    __slots__ = ("_issuer", "_span", "_tokens", "roots", "state", "tls_ca", "tls_key", "trust_domain")

    def __init__(self, trust_domain: TrustDomain, state: AuthorityState, keys: Mapping[Purpose, SigningKey]) -> None:
        self.trust_domain = trust_domain
        self.state = state
        authority = parse_certificate(state.current(Purpose.X509_CA).certificate)
        self._issuer = LeafIssuer(authority, keys[Purpose.X509_CA])
        self._span = tuple(
            int(moment.timestamp()) for moment in (authority.not_valid_before_utc, authority.not_valid_after_utc)
        )
        self._tokens = {purpose: keys[purpose] for purpose in _HEADERS}
        self.roots: tuple[x509.Certificate, ...] = tuple(
            parse_certificate(key.certificate) for key in state.published(Purpose.X509_CA)
        )
        """The CA certificates of the trust domain: current, next and retiring."""
        self.tls_ca: x509.Certificate = parse_certificate(state.current(Purpose.TLS_PUBLIC).certificate)
        """The local TLS authority, which vouches for the public listener and never stands in a SPIFFE bundle."""
        self.tls_key = keys[Purpose.TLS_PUBLIC]

    @classmethod
    async def open(cls, service: AuthorityService, trust_domain: TrustDomain, state: AuthorityState) -> Authority:
        """Load the current keys.

        Raises: ProvisioningError ``authority_empty``; KeyStoreError.
        """
        purposes = (Purpose.X509_CA, Purpose.JWT_SVID, Purpose.WIT_SVID, Purpose.TLS_PUBLIC)
        return cls(trust_domain, state, {each: await service.load(state.current(each)) for each in purposes})

    def ends(self, purpose: Purpose) -> int:
        """Return when (Unix seconds) the current key of a purpose ends; nothing that it signs lives longer."""
        return self.state.current(purpose).not_after

    def sign_x509(
        self, spiffe_id: SpiffeId, *, public_key: LeafKey, serial: int, now: int, lifetime: int, fence: Fence
    ) -> X509Svid:
        """Sign an X509-SVID: valid from ten seconds before ``now`` for ``lifetime`` seconds, and never beyond the CA.

        What ``x509_svid.issue`` finds out of authority and leaf on each call is known here once, so it is not asked.

        Raises: ProvisioningError ``name_reserved`` for an identifier of another trust domain or without a path;
            X509Error ``authority`` when the CA has expired, ``lifetime`` and others.
        """
        if spiffe_id.trust_domain != self.trust_domain or not spiffe_id.path:
            raise ProvisioningError("name_reserved", str(spiffe_id))
        leaf = self._issuer.issue(
            public_key=public_key,
            uri=str(spiffe_id),
            serial=serial,
            now=now,
            lifetime=lifetime,
            epoch=Epoch(fence.epoch, fence.instance),
        )
        start, end = self._span
        return X509Svid(
            spiffe_id=spiffe_id,
            chain=(leaf,),
            not_before=max(now - BACKDATE, start),
            not_after=min(now + lifetime, end),
            serial=serial,
            fence=fence,
        )

    async def sign_jwt(self, purpose: Purpose, claims: Mapping[str, Any]) -> str:
        """Sign the claims of a JWT-SVID or WIT.

        Raises: ProvisioningError ``lifetime`` for claims without ``exp`` or beyond the key's end; KeyStoreError.
        """
        expires = claims.get("exp")
        if type(expires) is not int or expires > self.ends(purpose):
            raise ProvisioningError("lifetime", f"exp {expires!r}")
        return await sign(_HEADERS[purpose], claims, self._tokens[purpose])
