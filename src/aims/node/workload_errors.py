"""Why the Workload API refuses a call, and why its socket cannot be opened.

``standard`` is the gRPC status that SPIFFE_Workload_Endpoint.md (or gRPC itself) gives to the case. It decides what
a client does next: drop what it holds (PERMISSION_DENIED), come back later (UNAVAILABLE), or report and give up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from aims.errors import Reason, reasons
from aims.node.errors import NodeError

_SHORTER = "Set XDG_RUNTIME_DIR, or the node's socket folder, to a shorter path."


class WorkloadApiError(NodeError):
    """A call that is not served, or a socket that is not opened."""

    reasons: ClassVar[Mapping[str, Reason]] = reasons(
        security_header=(
            "The request does not carry the metadata workload.spiffe.io = true exactly once.",
            "Use a SPIFFE Workload API client.",
            "INVALID_ARGUMENT",
        ),
        call_malformed=(
            "The request is no gRPC request of this API.",
            "Use a client of the SPIFFE Workload API.",
            "INVALID_ARGUMENT",
        ),
        call_too_large=("The request message is too large.", "Send a smaller message.", "RESOURCE_EXHAUSTED"),
        call_compressed=("Compressed messages are not accepted.", "Send identity encoding.", "UNIMPLEMENTED"),
        call_slow=("The request did not arrive in time.", "Send the whole message at once.", "DEADLINE_EXCEEDED"),
        deadline=(
            "The deadline passed before the answer was ready.",
            "Ask again with a later deadline.",
            "DEADLINE_EXCEEDED",
        ),
        unknown_method=(
            "The Workload API has no such method.",
            "Use a client of the SPIFFE Workload API.",
            "UNIMPLEMENTED",
        ),
        audience_missing=("The audience is empty.", "Name who the token is for.", "INVALID_ARGUMENT"),
        audience_invalid=(
            "The audiences are too many, too long or repeated.",
            "Name at most 8, each once and in printable ASCII.",
            "INVALID_ARGUMENT",
        ),
        svid_missing=("The JWT-SVID to validate is empty.", "Send the token as it was received.", "INVALID_ARGUMENT"),
        svid_refused=(
            "The JWT-SVID is not valid.",
            "Have its sender fetch a new one for this audience.",
            "INVALID_ARGUMENT",
        ),
        spiffe_id_invalid=(
            "The requested SPIFFE ID is not a workload's SPIFFE ID.",
            "Write spiffe://TRUST-DOMAIN/PATH, or leave it out.",
            "INVALID_ARGUMENT",
        ),
        not_entitled=(
            "No identity is issued to this process, or not the one asked for.",
            "Start it with `aims run`, and see `aims entry list` for what is approved.",
            "PERMISSION_DENIED",
        ),
        not_ready=("The node cannot answer yet.", "Try again shortly; `aims doctor` says why.", "UNAVAILABLE"),
        api_stopping=("The node is stopping.", "Connect again when it is back.", "UNAVAILABLE"),
        response_too_large=(
            "The answer is larger than gRPC clients accept (4 MiB).",
            "Entitle this workload to fewer identities or federate with fewer trust domains.",
            "RESOURCE_EXHAUSTED",
        ),
        state_invalid=(
            "The node holds an inconsistent state for this workload.",
            "The log of the node has the cause; report it.",
            "INTERNAL",
        ),
        socket_path_relative=("The socket path is not absolute.", "Give an absolute path."),
        socket_path_too_long=("The socket path is longer than 100 octets.", _SHORTER),
        socket_path_taken=("Something that is not a socket is at the socket path.", "Move it away or choose another."),
        socket_folder_missing=("The folder of the socket does not exist.", "Create it, owned by the node's user."),
        socket_folder_unsafe=(
            "Others may write to the folder of the socket and could replace it.",
            "Make it writable by the node's user alone.",
        ),
        socket_in_use=("Another process serves this socket.", "Stop the other node or choose another socket."),
    )
