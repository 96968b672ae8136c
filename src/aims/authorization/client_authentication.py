"""Who asks: an agent of our own domain, by its SVID (draft-ietf-oauth-spiffe-client-auth-02).

    1. exactly one way of authentication                     client_several, client_none, client_method
    spiffe_x509, the certificate of an mTLS connection:
    2. it has not expired since the handshake                certificate_expired
    3. client_id is its SPIFFE ID                            client_id
    spiffe_jwt, a JWT-SVID as assertion:
    2. the assertion's type                                  assertion_type
    3. a JWT-SVID for this issuer alone, with at most ten    assertion_...
       minutes left
    4. client_id, if sent, is its subject                    client_id
    then:
    5. an active agent of that identifier is registered      client_unknown, client_kind
    6. policy lists it for spiffe_jwt, and the assertion is  client_method, assertion_unbound
       bound to a key (T3)
    7. nothing that the credential depends on was stopped    client_stopped

The caller still holds the key of a bound assertion against the DPoP proof: without it nobody was authenticated. A
JWT-SVID may be used again until it expires.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from aims.authorization.errors import AuthorizationError
from aims.authorization.model import Client, Memory, Request, dead
from aims.credentials import jwt_svid
from aims.credentials.errors import CredentialError
from aims.credentials.model import Fence
from aims.credentials.x509_svid import X509Svid
from aims.identifiers import TrustDomain
from aims.jose import JoseError, KeySet, base64url
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry.model import Kind, State, Workload

DOCUMENT: Final = "draft-ietf-oauth-spiffe-client-auth-02"
ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
MAX_REMAINING: Final = 600  # seconds

PROFILE: Final = replace(jwt_svid.PROFILE, name="client-assertion", audience="single", max_lifetime=MAX_REMAINING)

_ASSERTION: Final[Mapping[str, str]] = {
    "typ": "assertion_typ",
    "signature": "assertion_signature",
    "kid_unknown": "assertion_signature",
    "kid": "assertion_signature",
    "audience": "assertion_audience",
    "expired": "assertion_expired",
    "not_yet_valid": "assertion_expired",
    "lifetime": "assertion_lifetime",
}


def authenticate(
    request: Request, memory: Memory, assertions: Mapping[TrustDomain, KeySet], *, issuer: str, now: float
) -> Client:
    """Return the client of a request. ``assertions`` are the keys of JWT-SVIDs by trust domain.

    Raises:
        AuthorizationError: the first step that failed.
    """
    # 1. exactly one way of authentication
    method = _only_method(request)
    if method == "spiffe_x509":
        client = _by_certificate(request, memory, now)
    elif method == "spiffe_jwt":
        client = _by_assertion(request, memory, assertions, issuer, now)
    else:
        raise AuthorizationError("client_method", method)
    # 7. nothing that the credential depends on was stopped
    require_live(client, memory)
    return client


def require_live(client: Client, memory: Memory) -> None:
    """Do step 7 once more, where something was awaited since.

    Raises:
        AuthorizationError: ``client_stopped``.
    """
    stopped = dead(client.names, client.fence.epoch, memory.stops)
    if stopped is not None:
        raise AuthorizationError("client_stopped", f"{stopped.kind}:{stopped.id}")


def claimed(request: Request) -> dict[str, str | None]:
    """Return what a request says about its client, for the unverified member of a record."""
    return {"client_id": request.form.get("client_id")}


def _only_method(request: Request) -> str:
    form, sent = request.form, request.sent
    shown = {
        "spiffe_x509": sent.peer is not None,
        "spiffe_jwt": bool(form.get("client_assertion") or form.get("client_assertion_type")),
        "client_secret_post": form.get("client_secret") is not None,
        "Authorization": sent.authorization,
        "attestation": sent.attestation,
    }
    methods = [name for name, present in shown.items() if present]
    if len(methods) > 1:
        raise AuthorizationError("client_several", " ".join(methods))
    if not methods:
        raise AuthorizationError("client_none")
    return methods[0]


def _by_certificate(request: Request, memory: Memory, now: float) -> Client:
    svid = request.sent.peer
    assert isinstance(svid, X509Svid)  # noqa: S101  step 1 found it
    # 2. it has not expired since the handshake
    if now > svid.not_after:
        raise AuthorizationError("certificate_expired")
    # 3. client_id is its SPIFFE ID
    spiffe_id = str(svid.spiffe_id)
    if request.form.get("client_id") != spiffe_id:
        raise AuthorizationError("client_id", f"the certificate is of {spiffe_id}")
    workload = _registered(spiffe_id, memory)
    return Client(
        workload=workload,
        id=spiffe_id,
        method="spiffe_x509",
        fence=_fence(svid.fence),
        expires=svid.not_after,
        certificate=_thumbprint(svid.leaf),
    )


def _by_assertion(
    request: Request, memory: Memory, assertions: Mapping[TrustDomain, KeySet], issuer: str, now: float
) -> Client:
    form = request.form
    # 2. the assertion's type
    if form.get("client_assertion_type") != ASSERTION_TYPE:
        raise AuthorizationError("assertion_type")
    text = form.get("client_assertion")
    if text is None:
        raise AuthorizationError("assertion_malformed", "absent")
    # 3. a JWT-SVID for this issuer alone, with at most ten minutes left
    try:
        svid = jwt_svid.validate(text, assertions, audience=issuer, now=now, own=memory.trust_domain, profile=PROFILE)
    except JoseError as error:
        raise AuthorizationError(_ASSERTION.get(error.reason, "assertion_malformed"), str(error)) from error
    except CredentialError as error:
        reason = "assertion_signature" if error.reason == "no_trust_anchor" else "assertion_malformed"
        raise AuthorizationError(reason, str(error)) from error
    # 4. client_id, if sent, is its subject
    spiffe_id = str(svid.subject)
    if form.get("client_id") not in {None, spiffe_id}:
        raise AuthorizationError("client_id", f"the assertion is of {spiffe_id}")
    workload = _registered(spiffe_id, memory)
    # 6. policy lists it for spiffe_jwt, and the assertion is bound to a key
    if not memory.policy.tables.may_authenticate(workload.spiffe_id, "spiffe_jwt"):
        raise AuthorizationError("client_method", f"spiffe_jwt is off for {spiffe_id}")
    if svid.jkt is None:
        raise AuthorizationError("assertion_unbound")
    return Client(
        workload=workload,
        id=spiffe_id,
        method="spiffe_jwt",
        fence=_fence(svid.fence),
        expires=svid.expires,
        jkt=svid.jkt,
    )


def _registered(spiffe_id: str, memory: Memory) -> Workload:
    # 5. an active agent of that identifier is registered
    try:
        workload = memory.registry.workload_by_id(spiffe_id)
    except ProvisioningError as error:
        raise AuthorizationError("client_unknown", spiffe_id) from error
    if workload.state is not State.ACTIVE:
        raise AuthorizationError("client_unknown", f"{spiffe_id} is {workload.state}")
    if workload.kind is not Kind.AGENT:
        raise AuthorizationError("client_kind", spiffe_id)
    return workload


# One connection shows one certificate in all its requests.
@lru_cache(maxsize=4096)
def _thumbprint(leaf: x509.Certificate) -> str:
    return base64url.encode(leaf.fingerprint(hashes.SHA256())).decode("ascii")


def _fence(fence: Fence | None) -> Fence:
    # The handshake's check and the profile demand it of our own domain, and no other is registered.
    if fence is None:
        raise AuthorizationError("client_unknown", "a credential without a fence")
    return fence
