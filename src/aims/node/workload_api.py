"""The SPIFFE Workload API of the node: seven methods, which an ``ApiServer`` serves.

    server = ApiServer(WorkloadApi(identities), peer_of)
    await server.start(Path("/run/aims/workload.sock"))

Rules that hold for every stream (SPIFFE_Workload_API.md): the first message at once, each the complete state, no
identical repeats, and an end always with a status: PERMISSION_DENIED when the last identity is withdrawn, UNAVAILABLE
when the node stops, never OK.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from grpclib.const import Status

from aims.errors import AimsError
from aims.identifiers import IdentifierError, SpiffeId, TrustDomain
from aims.node.grpc_call import status_of
from aims.node.grpc_guard import Answers
from aims.node.identities import C, Identities, IdentityState, WitIdentity, X509Identity
from aims.node.workload_errors import WorkloadApiError
from aims.proto import workload_pb2 as pb
from aims.proto import workload_service as service

M = TypeVar("M", bound=Message)

MAX_AUDIENCES = 8
MAX_AUDIENCE_OCTETS = 2048
MAX_HINT_OCTETS = 1024  # R-WA-14
MAX_CLAIM_DEPTH = 8
_EXACT_INTEGERS = 2**53  # a Struct holds every number as a double


class WorkloadApi(Generic[C]):
    """The answers of the Workload API, one method per remote procedure; knows nothing of connections."""

    def __init__(self, identities: Identities[C]) -> None:
        self._identities = identities

    def answers(self) -> Mapping[service.Method, Answers[C]]:
        """Return who serves which method."""
        return {
            service.FETCH_X509_SVID: self.fetch_x509_svid,
            service.FETCH_X509_BUNDLES: self.fetch_x509_bundles,
            service.FETCH_JWT_SVID: self.fetch_jwt_svid,
            service.FETCH_JWT_BUNDLES: self.fetch_jwt_bundles,
            service.VALIDATE_JWT_SVID: self.validate_jwt_svid,
            service.FETCH_WIT_SVID: self.fetch_wit_svid,
            service.FETCH_WIT_BUNDLES: self.fetch_wit_bundles,
        }

    def fetch_x509_svid(self, caller: C, _: pb.X509SVIDRequest) -> AsyncGenerator[pb.X509SVIDResponse, None]:
        """Stream the caller's X509-SVIDs with keys and bundles."""
        return self._states(caller, _x509_svids)

    def fetch_x509_bundles(self, caller: C, _: pb.X509BundlesRequest) -> AsyncGenerator[pb.X509BundlesResponse, None]:
        """Stream the X.509 bundles that the caller may trust."""
        return self._states(caller, _x509_bundles)

    def fetch_jwt_bundles(self, caller: C, _: pb.JWTBundlesRequest) -> AsyncGenerator[pb.JWTBundlesResponse, None]:
        """Stream the JWT bundles that the caller may trust."""
        return self._states(caller, _jwt_bundles)

    async def fetch_wit_svid(self, caller: C, request: pb.WITSVIDRequest) -> AsyncGenerator[pb.WITSVIDResponse, None]:
        """Stream the caller's WITs with keys, or the one asked for."""
        wanted = _spiffe_id(request.spiffe_id)
        async with aclosing(self._states(caller, lambda state: _wit_svids(state, wanted))) as responses:
            async for response in responses:
                yield response

    async def fetch_wit_bundles(
        self, caller: C, _: pb.WITBundlesRequest
    ) -> AsyncGenerator[pb.WITBundlesResponse, None]:
        """Stream the WIT bundles that the caller may trust."""
        async with aclosing(self._states(caller, _wit_bundles)) as responses:
            async for response in responses:
                yield response

    async def fetch_jwt_svid(self, caller: C, request: pb.JWTSVIDRequest) -> AsyncGenerator[pb.JWTSVIDResponse, None]:
        """Make JWT-SVIDs for the audiences asked for."""
        audiences = _audiences(request.audience)
        wanted = _spiffe_id(request.spiffe_id)
        made = await self._identities.jwt_svids(caller, audiences, wanted)
        if not made or (wanted is not None and any(identity.spiffe_id != wanted for identity in made)):
            raise WorkloadApiError("not_entitled")
        hints = _hints(identity.hint for identity in made)
        yield pb.JWTSVIDResponse(
            svids=[
                pb.JWTSVID(spiffe_id=str(identity.spiffe_id), svid=identity.token, hint=hint)
                for identity, hint in zip(made, hints, strict=True)
            ]
        )

    async def validate_jwt_svid(
        self, caller: C, request: pb.ValidateJWTSVIDRequest
    ) -> AsyncGenerator[pb.ValidateJWTSVIDResponse, None]:
        """Validate a token that the caller was given; one that does not hold is INVALID_ARGUMENT."""
        (audience,) = _audiences([request.audience] if request.audience else [])
        if not request.svid:
            raise WorkloadApiError("svid_missing")
        try:
            valid = await self._identities.validate_jwt_svid(caller, audience, request.svid)
        except WorkloadApiError:
            raise
        except AimsError as error:
            if status_of(error) is Status.UNAVAILABLE:
                raise
            raise WorkloadApiError("svid_refused", str(error)) from error
        yield pb.ValidateJWTSVIDResponse(spiffe_id=str(valid.spiffe_id), claims=_struct(valid.claims))

    async def _states(self, caller: C, project: Callable[[IdentityState], M]) -> AsyncGenerator[M, None]:
        """Turn states into responses; a change that this method does not show is no message."""
        sent: M | None = None
        async with aclosing(self._identities.subscribe(caller)) as states:
            async for state in states:
                response = project(state)
                if sent is None or response != sent:
                    sent = response
                    yield response


def _x509_svids(state: IdentityState) -> pb.X509SVIDResponse:
    _require_some(state.x509)
    bundle = state.x509_bundles[state.trust_domain]
    return pb.X509SVIDResponse(
        svids=[
            pb.X509SVID(
                spiffe_id=str(identity.spiffe_id),
                x509_svid=identity.chain,
                x509_svid_key=identity.key,
                bundle=bundle,
                hint=hint,
            )
            for identity, hint in zip(state.x509, _hints(identity.hint for identity in state.x509), strict=True)
        ],
        federated_bundles={td.uri: ca for td, ca in state.x509_bundles.items() if td != state.trust_domain},
    )


def _x509_bundles(state: IdentityState) -> pb.X509BundlesResponse:
    _require_some(state.x509)
    return pb.X509BundlesResponse(bundles=_by_uri(state.x509_bundles))


def _jwt_bundles(state: IdentityState) -> pb.JWTBundlesResponse:
    _require_some((*state.x509, *state.wit))
    if state.trust_domain not in state.jwt_bundles:
        raise WorkloadApiError("not_ready", "no JWT bundle of the own trust domain")
    return pb.JWTBundlesResponse(bundles=_by_uri(state.jwt_bundles))


def _wit_svids(state: IdentityState, wanted: SpiffeId | None) -> pb.WITSVIDResponse:
    chosen = [identity for identity in state.wit if wanted is None or identity.spiffe_id == wanted]
    _require_some(chosen)
    return pb.WITSVIDResponse(
        svids=[
            pb.WITSVID(spiffe_id=str(identity.spiffe_id), wit_svid=identity.token, wit_svid_key=identity.key, hint=hint)
            for identity, hint in zip(chosen, _hints(identity.hint for identity in chosen), strict=True)
        ]
    )


def _wit_bundles(state: IdentityState) -> pb.WITBundlesResponse:
    _require_some(state.wit)
    return pb.WITBundlesResponse(bundles=_by_uri(state.wit_bundles))


V = TypeVar("V", bytes, str)


def _by_uri(bundles: Mapping[TrustDomain, V]) -> dict[str, V]:
    return {trust_domain.uri: bundle for trust_domain, bundle in bundles.items()}


def _require_some(identities: Iterable[X509Identity | WitIdentity]) -> None:
    if not any(True for _ in identities):
        raise WorkloadApiError("not_entitled")


def _hints(hints: Iterable[str]) -> list[str]:
    """Keep the first of equal hints and none that is too long: clients would read only those (R-WA-14)."""
    seen: set[str] = set()
    kept = []
    for hint in hints:
        usable = hint not in seen and len(hint.encode()) <= MAX_HINT_OCTETS
        seen.add(hint)
        kept.append(hint if usable else "")
    return kept


def _audiences(audiences: Iterable[str]) -> tuple[str, ...]:
    asked = tuple(audiences)
    if not asked or not all(asked):
        raise WorkloadApiError("audience_missing")
    too_many = len(asked) > MAX_AUDIENCES or len(set(asked)) != len(asked)
    if too_many or any(len(audience.encode()) > MAX_AUDIENCE_OCTETS for audience in asked):
        raise WorkloadApiError("audience_invalid")
    return asked


def _spiffe_id(text: str) -> SpiffeId | None:
    if not text:
        return None
    try:
        return SpiffeId.parse_workload(text)
    except IdentifierError as error:
        raise WorkloadApiError("spiffe_id_invalid") from error


def _struct(claims: Mapping[str, object]) -> Struct:
    """Put JSON claims into a Struct, leaving out what it cannot hold exactly (others than SPIFFE's may be filtered)."""
    exact: dict[str, Any] = {name: value for name, value in claims.items() if _exact(value, MAX_CLAIM_DEPTH)}
    struct = Struct()
    struct.update(exact)
    return struct


def _exact(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(_exact(item, depth - 1) for item in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_exact(item, depth - 1) for item in value)
    if isinstance(value, int):
        return abs(value) <= _EXACT_INTEGERS
    return value is None or isinstance(value, str | float)
