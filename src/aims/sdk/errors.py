"""Why the SDK could not do what it was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from aims.errors import AimsError, Reason, reasons

_EXAMPLE = "Write unix:///run/aims/workload.sock, or start the program with `aims run`."


class SdkError(AimsError):
    """An agent's or a service's own side of AIMS failed, or the node refused."""

    layer: ClassVar[str] = "sdk"
    reasons: ClassVar[Mapping[str, Reason]] = reasons(
        answer_invalid=(
            "The answer that a browser brought back does not belong to what was asked.",
            "Ask the person again, and use the answer only in the process that asked.",
        ),
        endpoint_missing=(
            "This process was not started by AIMS: the address of the Workload API is not known.",
            "Start it: aims run --as NAME -- python agent.py (or set SPIFFE_ENDPOINT_SOCKET to the node's socket).",
        ),
        endpoint_malformed=("The address of the Workload API is not unix: with an absolute path.", _EXAMPLE),
        endpoint_tcp=(
            "The Workload API is not used over TCP: nothing tells the node who is at the other end.",
            _EXAMPLE,
        ),
        denied=(
            "The node has no identity for this process, or not the one asked for.",
            "Stop using what was given before. Start the program with `aims run`.",
        ),
        unavailable=("The node cannot be reached or cannot answer now.", "Try again; `aims doctor` says why."),
        deadline=("The node did not answer in time.", "Try again; `aims doctor` says why."),
        refused=("The node refused the request as wrong.", "Asking again does not help."),
        unsupported=("The node does not offer this part of the Workload API.", "Asking again does not help."),
        response_invalid=(
            "The answer of the Workload API breaks its specification and was dropped.",
            "Use a node of the SDK's version; see the log for what was wrong.",
        ),
        no_node=("No node answers at the socket.", "Start it with `aims up`; `aims doctor` says what is missing."),
        not_entitled=(
            "The node has no identity for this process.",
            "Start the program with `aims run`; `aims entry list` shows what is approved.",
        ),
        stopped=("This agent's identity was taken away.", "Ask its owner; `aims explain` says what happened."),
        awaited=(
            "New credentials are on their way from the node.",
            "Try again in a moment; if it stays, `aims doctor` says what is missing.",
        ),
        not_started=(
            "The identity is not in use.",
            "Use it inside of `async with aims.Identity()`; without an event loop: aims.sdk.blocking.BlockingIdentity.",
        ),
        expired=("The credential has expired and the node gave no new one.", "See whether the node runs."),
        no_wit=("The node issues no Workload Identity Tokens.", "Use mutual TLS, or another node."),
        peer_unknown=(
            "It is not known which SPIFFE ID stands behind this URL.",
            "Add it: aims resource add NAME --url URL --service SERVICE; or name it (peer=...).",
        ),
        peer_refused=(
            "The server is not the one that is expected there; nothing of the request was sent.",
            "Check the address, the resource map, and who listens on that port.",
        ),
        peer_unreachable=(
            "Nothing answers at the URL.",
            "Start the service (aims run --as SERVICE -- CMD), and compare its port with `aims resource list`.",
        ),
        port_in_use=("The port cannot be listened on.", "End who listens there (ss -ltnp), or take another port."),
        peer_stopped=("The server that is expected there was stopped.", "Ask its owner."),
        call_refused=("The service refused the call.", "Its own code and hint say why; `aims explain` says more."),
        profile_unknown=("This call profile is not spoken here.", "Use wimse or wimse-method-bound."),
        tokens_both=(
            "An access token and a Txn-Token cannot go with one request.",
            "Give token= to a resource that takes access tokens, txn_token= to one that takes WITs; not both.",
        ),
        resource_unknown=(
            "The policy has no resource whose server this process is.",
            "Add a row to the table of resources whose peer is this SPIFFE ID.",
        ),
        issuer_unreachable=("The authorization server cannot be reached.", "Try again; `aims doctor` says why."),
        issuer_invalid=("The authorization server's answer cannot be believed.", "Check the server's address."),
        scope_insufficient=("The caller's token does not hold the scope that this needs.", "Ask for a wider token."),
        details_insufficient=(
            "The caller's token does not allow exactly this.",
            "Ask for a token whose authorization_details say what is to be done.",
        ),
        no_caller=(
            "No request is being served here.",
            "Ask inside of a request that came through the middleware.",
        ),
        transaction_edge=(
            "A Txn-Token does not leave the trust domain, and no resource of it is at this URL.",
            "Add it: aims resource add NAME --url URL --service SERVICE; or call without the Txn-Token.",
        ),
        request_invalid=("The request cannot be proved: its method or URL has no normal form.", "Use a plain URL."),
        response_too_large=(
            "The answer of the Workload API is larger than 4 MiB and was not read.",
            "Entitle this workload to fewer identities.",
        ),
    )

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\n fix: {self.hint}" if self.hint else text

    @property
    def brief(self) -> str:
        """The error in one line, without what to do: for the detail of another one."""
        return super().__str__()


class CallRefusedError(SdkError):
    """A service behind the middleware said no: ``status`` is HTTP's, ``service_code`` its own stable code.

    ``stop`` says which stop it was that ended the caller, if it was one: kind, id, number in the change feed, blocked.
    """

    def __init__(
        self, status: int, service_code: str, message: str, hint: str, stop: Mapping[str, object] | None = None
    ) -> None:
        super().__init__("call_refused", f"{status} {service_code}")
        self.status = status
        self.service_code = service_code
        self.stop = stop
        self.sentence = f"The service refused the call: {service_code}: {message}"
        self.hint = hint
