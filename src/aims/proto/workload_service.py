"""The seven methods of the SPIFFE Workload API (SPIFFE_Workload_API.md, commit 665a28f).

The service has no package on the wire. It is written here by hand instead of in ``workload.proto``, where it would
get the package of the messages (see there).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from google.protobuf.message import Message

from aims.proto import workload_pb2 as pb

SERVICE = "SpiffeWorkloadAPI"
# SPIFFE_Workload_Endpoint.md: every request carries it, so that a browser or a fooled proxy cannot speak to the socket.
SECURITY_HEADER = ("workload.spiffe.io", "true")
# What gRPC clients accept as one message unless they are told otherwise.
CLIENT_MESSAGE_LIMIT = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Method:
    """One remote procedure: one request in, one response or a stream of responses out.

    With ``asks`` the client sends a stream of requests, and the call ends well when it has sent the last.
    """

    name: str
    request: type[Message]
    response: type[Message]
    streams: bool
    asks: bool = False
    service: str = SERVICE

    @property
    def path(self) -> str:
        """The full method name as it stands in ``:path``."""
        return f"/{self.service}/{self.name}"


FETCH_X509_SVID = Method("FetchX509SVID", pb.X509SVIDRequest, pb.X509SVIDResponse, streams=True)
FETCH_X509_BUNDLES = Method("FetchX509Bundles", pb.X509BundlesRequest, pb.X509BundlesResponse, streams=True)
FETCH_JWT_SVID = Method("FetchJWTSVID", pb.JWTSVIDRequest, pb.JWTSVIDResponse, streams=False)
FETCH_JWT_BUNDLES = Method("FetchJWTBundles", pb.JWTBundlesRequest, pb.JWTBundlesResponse, streams=True)
VALIDATE_JWT_SVID = Method("ValidateJWTSVID", pb.ValidateJWTSVIDRequest, pb.ValidateJWTSVIDResponse, streams=False)
FETCH_WIT_SVID = Method("FetchWITSVID", pb.WITSVIDRequest, pb.WITSVIDResponse, streams=True)
FETCH_WIT_BUNDLES = Method("FetchWITBundles", pb.WITBundlesRequest, pb.WITBundlesResponse, streams=True)

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.path: method
        for method in (
            FETCH_X509_SVID,
            FETCH_X509_BUNDLES,
            FETCH_JWT_SVID,
            FETCH_JWT_BUNDLES,
            VALIDATE_JWT_SVID,
            FETCH_WIT_SVID,
            FETCH_WIT_BUNDLES,
        )
    }
)
