"""X509-SVID (SPIFFE X509-SVID.md; draft-ietf-wimse-workload-creds 6.1): a certificate that names one workload."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from aims.credentials.bundle import BundleSet
from aims.credentials.errors import CredentialError
from aims.credentials.model import Fence
from aims.identifiers import SpiffeId, TrustDomain
from aims.identifiers.errors import IdentifierError
from aims.jose import base64url
from aims.x509 import Epoch, LeafIssuer, X509Error, parse_chain, verify_chain
from aims.x509.chain import is_ca
from aims.x509.parse import join_der, parse_sequence
from aims.x509.public_key import LeafKey

_PATH_REASONS = {
    "expired": "x509_expired",
    "not_yet_valid": "x509_not_yet_valid",
    "no_roots": "x509_no_trust_anchor",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Svid:
    """A workload's certificate with its intermediates, leaf first. Times are Unix seconds, ``not_after`` inclusive.

    ``fence`` is None where another implementation issued it.
    """

    spiffe_id: SpiffeId
    chain: tuple[x509.Certificate, ...]
    not_before: float
    not_after: float
    serial: int
    fence: Fence | None

    @property
    def leaf(self) -> x509.Certificate:
        """The workload's own certificate."""
        return self.chain[0]

    @property
    def der(self) -> bytes:
        """The chain as the Workload API carries it: concatenated DER, leaf first."""
        return join_der(self.chain)

    @property
    def thumbprint(self) -> str:
        """``x5t#S256`` of the leaf (RFC 8705 3.1), 43 characters."""
        return base64url.encode(hashlib.sha256(self.leaf.public_bytes(Encoding.DER)).digest()).decode("ascii")


def validate(
    chain: bytes | Sequence[bytes],
    bundles: BundleSet,
    *,
    now: float,
    expected: SpiffeId | AbstractSet[SpiffeId] | None = None,
    own: TrustDomain | None = None,
) -> X509Svid:
    """Return the X509-SVID that a peer presented: concatenated DER, or DER certificates one by one as TLS gives them.

    1. Parse the chain, leaf first (R-X5-01).
    2. Exactly one URI name (R-X5-02).
    3. It is a SPIFFE ID (R-X5-03).
    4. It has a path (R-X5-04).
    5. The leaf is no CA, may sign handshakes and nothing else, and has both extended usages if any (R-X5-05).
    6. There is a bundle of exactly that trust domain, with authorities (R-X5-06).
    7. RFC 5280 path validation at ``now`` against these authorities alone (R-X5-07, R-X5-08).
    8. A certificate of trust domain ``own`` carries a fence, so that a stop can reach it.
    9. The whole identifier is ``expected``, or one of them; an empty set expects nobody, None leaves it to the caller.

    The proof that the peer holds the key is TLS's; whether it may do what it asks is the caller's question.

    Raises:
        CredentialError: ``x509_malformed``, ``x509_uri_count``, ``x509_spiffe_id``, ``x509_root_path``, ``x509_ca``,
            ``x509_key_usage``, ``x509_extended_key_usage``, ``x509_epoch``, ``x509_no_trust_anchor``,
            ``x509_expired``, ``x509_not_yet_valid``, ``x509_untrusted``, ``unfenced``, ``x509_unexpected_peer``.
    """
    svid = read(chain)  # 1-5
    # 6
    bundle = bundles.get(svid.spiffe_id.trust_domain)
    if bundle is None:
        raise CredentialError("x509_no_trust_anchor", svid.spiffe_id.trust_domain.name)
    # 7
    try:
        verify_chain(svid.leaf, svid.chain[1:], bundle.x509_authorities, now)
    except X509Error as error:
        raise CredentialError(_PATH_REASONS.get(error.reason, "x509_untrusted"), str(error)) from error
    # 8
    if svid.spiffe_id.trust_domain == own and svid.fence is None:
        raise CredentialError("unfenced", str(svid.spiffe_id))
    # 9
    if expected is not None:
        wanted = {expected} if isinstance(expected, SpiffeId) else expected
        if svid.spiffe_id not in wanted:
            raise CredentialError("x509_unexpected_peer", f"{svid.spiffe_id} instead of {_names(wanted)}")
    return svid


def read(chain: bytes | Sequence[bytes]) -> X509Svid:
    """Return an X509-SVID without asking who signed it: steps 1 to 5 of `validate`, for one's own credential.

    Raises: CredentialError, as `validate` in these steps.
    """
    # 1
    try:
        certificates = parse_chain(chain) if isinstance(chain, bytes) else parse_sequence(chain)
    except X509Error as error:
        raise CredentialError("x509_malformed", str(error)) from error
    return _of(certificates)


def issue(
    issuer: LeafIssuer,
    spiffe_id: SpiffeId,
    *,
    public_key: LeafKey,
    serial: int,
    now: float,
    lifetime: float,
    fence: Fence | None,
    dns_names: Sequence[str] = (),
    intermediates: Sequence[x509.Certificate] = (),
) -> X509Svid:
    """Build and sign an X509-SVID. ``fence`` is None only in tests of foreign issuers: we refuse our own without it.

    Raises:
        CredentialError: ``x509_root_path`` without a path, ``x509_spiffe_id`` if the issuer's authority is another
            trust domain's.
        X509Error: ``key_type``, ``lifetime``, ``serial``, ``name``, ``authority``.
    """
    if not spiffe_id.path:
        raise CredentialError("x509_root_path", str(spiffe_id))
    if _uris(issuer.authority) != [spiffe_id.trust_domain.uri]:
        raise CredentialError("x509_spiffe_id", f"{spiffe_id} under another trust domain's authority")
    leaf = issuer.issue(
        public_key=public_key,
        uri=str(spiffe_id),
        serial=serial,
        now=now,
        lifetime=lifetime,
        epoch=None if fence is None else Epoch(fence.epoch, fence.instance),
        dns_names=dns_names,
    )
    return _value(spiffe_id, (leaf, *intermediates), fence)


def _of(certificates: tuple[x509.Certificate, ...]) -> X509Svid:
    leaf = certificates[0]
    # 2
    uris = _uris(leaf)
    if len(uris) != 1:
        raise CredentialError("x509_uri_count", f"{len(uris)} URI names")
    # 3
    try:
        spiffe_id = SpiffeId.parse(uris[0])
    except IdentifierError as error:
        raise CredentialError("x509_spiffe_id", str(error)) from error
    # 4
    if not spiffe_id.path:
        raise CredentialError("x509_root_path", str(spiffe_id))
    # 5
    if is_ca(leaf):
        raise CredentialError("x509_ca", str(spiffe_id))
    _check_usage(leaf)
    try:
        epoch = Epoch.of(leaf)
        fence = None if epoch is None else Fence(epoch.instance, epoch.number)
    except (X509Error, CredentialError) as error:
        raise CredentialError("x509_epoch", str(error)) from error
    return _value(spiffe_id, certificates, fence)


def _check_usage(leaf: x509.Certificate) -> None:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound as error:
        raise CredentialError("x509_key_usage", "absent") from error
    bits = usage.value
    if not usage.critical or not bits.digital_signature or bits.key_cert_sign or bits.crl_sign:
        raise CredentialError("x509_key_usage", repr(bits))
    try:
        extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= set(extended):
        raise CredentialError("x509_extended_key_usage")


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _value(spiffe_id: SpiffeId, chain: tuple[x509.Certificate, ...], fence: Fence | None) -> X509Svid:
    leaf = chain[0]
    return X509Svid(
        spiffe_id=spiffe_id,
        chain=chain,
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
        serial=leaf.serial_number,
        fence=fence,
    )


def _names(wanted: AbstractSet[SpiffeId]) -> str:
    return ", ".join(sorted(map(str, wanted))[:4]) or "nobody"
