"""Why a right was not given, or a token not accepted, and the OAuth code that each reason has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from aims.errors import AimsError, Reason, reasons

_ONE: Final = "Send exactly one proof of who you are: the X509-SVID of the connection, or client_assertion."
_SVID: Final = "Ask the node for a new JWT-SVID, with the issuer alone as its audience."
_ISSUER: Final = "Ask the authorization server for a new token."
_POLICY: Final = "The policy's tables and rules decide; see `aims policy`."


class AuthorizationError(AimsError):
    """A request for a right, or a token that should prove one, was refused. ``standard`` is the OAuth error code."""

    layer: ClassVar[str] = "authorization"
    reasons: ClassVar[Mapping[str, Reason]] = reasons(
        # the request
        request_malformed=(
            "The request is not a well-formed form.",
            "POST application/x-www-form-urlencoded, every parameter once.",
            "invalid_request",
        ),
        request_too_large=("The request is too large.", "Send at most 32 KiB.", "invalid_request"),
        query=("The URL has a query.", "Parameters and credentials belong into the body.", "invalid_request"),
        parameter_twice=("A parameter stands in the request twice.", "Send it once.", "invalid_request"),
        parameter_missing=(
            "A required parameter is missing.",
            "The specification of the grant lists them.",
            "invalid_request",
        ),
        # who asks
        client_several=("The request authenticates its client in more than one way.", _ONE, "invalid_request"),
        client_none=("The request does not authenticate its client.", _ONE, "invalid_client"),
        client_method=("The client may not authenticate this way.", _ONE, "invalid_client"),
        client_id=("client_id is missing, or is not the SPIFFE ID of the credential.", "Send it.", "invalid_client"),
        client_unknown=(
            "No active agent of that identifier is registered here.",
            "See `aims agent list`.",
            "invalid_client",
        ),
        client_stopped=("The agent, its instance or its node was stopped.", "Ask the agent's owner.", "invalid_client"),
        client_posture=("Nothing is known about what keeps this instance apart.", "Renew its SVID.", "invalid_client"),
        certificate_expired=(
            "The certificate of the connection has expired.",
            "Connect with the new one.",
            "invalid_client",
        ),
        assertion_type=(
            "The type of the client assertion is not the one of JWT-SVIDs.",
            "client_assertion_type is urn:ietf:params:oauth:client-assertion-type:jwt-spiffe.",
            "invalid_client",
        ),
        assertion_malformed=("The client assertion is not a well-formed JWT-SVID.", _SVID, "invalid_client"),
        assertion_typ=("The client assertion is a token of another kind.", _SVID, "invalid_client"),
        assertion_signature=("The client assertion does not verify.", _SVID, "invalid_client"),
        assertion_audience=(
            "The client assertion is for another audience than this issuer alone.",
            _SVID,
            "invalid_client",
        ),
        assertion_expired=("The client assertion has expired, or is not valid yet.", _SVID, "invalid_client"),
        assertion_lifetime=("The client assertion lives longer than ten minutes.", _SVID, "invalid_client"),
        assertion_unbound=(
            "The client assertion is not bound to a key.",
            "Ask for a JWT-SVID with jkt.",
            "invalid_client",
        ),
        assertion_key=(
            "The client assertion is bound to another key than the proof's.",
            "Make the DPoP proof with the key of the SVID.",
            "invalid_client",
        ),
        # proofs
        proof_several=("The request carries several DPoP proofs.", "Send one DPoP field.", "invalid_request"),
        proof_missing=("A DPoP proof is needed here.", "Send one, or use the mTLS endpoint.", "invalid_dpop_proof"),
        # grants
        grant_type=("This grant type does not exist here.", "See the server's metadata.", "unsupported_grant_type"),
        client_kind=("Only agents get tokens.", "Register an agent.", "unauthorized_client"),
        policy=("The policy does not allow this.", _POLICY, "access_denied"),
        lifetime=("No lifetime is left within the limits.", "Renew the SVID or the subject token.", "invalid_grant"),
        stopped=("Something that this right depends on was stopped.", "Ask the agent's owner.", "invalid_grant"),
        # targets
        target_missing=("The request names no target.", "Send resource, or audience for an agent.", "invalid_target"),
        target_several=("The request names several targets.", "Ask for one token each.", "invalid_target"),
        target_unknown=(
            "The target is not registered here.",
            "Use its URL or one of its audiences: aims resource list",
            "invalid_target",
        ),
        target_profile=("The target takes no access tokens.", "Call it with WIT and WPT.", "invalid_target"),
        target_other=(
            "The subject token holds no right at this target.",
            "Ask for the token's own resource.",
            "invalid_target",
        ),
        # scope and details
        scope_missing=("No scope was asked for, and nothing means nothing.", "Send scope.", "invalid_scope"),
        scope_malformed=("The scope is malformed.", "Scopes are separated by one space, each once.", "invalid_scope"),
        scope_ceiling=(
            "The scope is wider than what the policy allows the agent.",
            "A row of [[ceilings]] has to name the agent, the resource and the scope: aims policy show --folder NEW",
            "invalid_scope",
        ),
        scope_parent=("The scope is wider than what the subject token holds.", "Ask for less.", "invalid_scope"),
        details_malformed=(
            "authorization_details is not a list of objects with a type.",
            "Send a JSON array of objects, each with a type (RFC 9396 2).",
            "invalid_authorization_details",
        ),
        details_unknown=(
            "The policy does not allow these authorization_details with this scope.",
            "A type is a purpose of the resource, with the members that it lists.",
            "invalid_authorization_details",
        ),
        details_parent=(
            "The subject token does not hold these authorization_details.",
            "Ask for what it holds, member by member.",
            "invalid_authorization_details",
        ),
        # exchange
        subject_token_type=(
            "A subject token of this type is not exchanged.",
            "Send an access token.",
            "invalid_request",
        ),
        requested_token_type=("A token of this type is not issued.", "Ask for an access token.", "invalid_request"),
        subject_token=("The subject token is not a live access token of this server.", _ISSUER, "invalid_request"),
        subject_stopped=(
            "Something that the subject token depends on was stopped.",
            "Ask the agent's owner.",
            "invalid_request",
        ),
        subject_presenter=(
            "The subject token was neither issued to this client nor is it for it.",
            _ISSUER,
            "invalid_request",
        ),
        subject_proof=(
            "The subject token is bound to a key that this request does not prove.",
            "Prove the key that it was issued for.",
            "invalid_request",
        ),
        may_act=("The subject token does not let this client act.", "Delegate to this client.", "invalid_request"),
        actor_token=(
            "The actor token is not this client's own.",
            "Leave it out: the client is the actor.",
            "invalid_request",
        ),
        actor_token_type=(
            "actor_token and actor_token_type belong together.",
            "Send both, or none.",
            "invalid_request",
        ),
        actor_twice=("An actor would stand in the chain twice.", "Delegate to another agent.", "invalid_request"),
        chain_too_long=("The chain of actors would be longer than four.", "Delegate less deep.", "invalid_request"),
        chain_malformed=("The chain of actors in the token is malformed.", _ISSUER, "invalid_token"),
        delegation_posture=("An agent in this posture may not delegate.", _POLICY, "access_denied"),
        # a token at a resource
        token_malformed=("The access token is malformed.", _ISSUER, "invalid_token"),
        token_typ=("The token is not an access token.", _ISSUER, "invalid_token"),
        token_issuer=("The access token is from another issuer.", _ISSUER, "invalid_token"),
        token_signature=("The access token does not verify.", _ISSUER, "invalid_token"),
        token_claims=("The access token lacks a claim, or one is malformed.", _ISSUER, "invalid_token"),
        token_expired=("The access token has expired, or is not valid yet.", _ISSUER, "invalid_token"),
        token_audience=("The access token is for another audience.", _ISSUER, "invalid_token"),
        token_passthrough=(
            "The access token is for another audience, and was issued to somebody else than its presenter.",
            "Exchange a token instead of forwarding it.",
            "invalid_token",
        ),
        token_binding=(
            "The access token is bound to another key.",
            "Prove the key that it was issued for.",
            "invalid_token",
        ),
        token_unbound=("The access token is bound to no key.", "Ask for a bound one.", "invalid_token"),
        token_scheme=(
            "The access token was presented under the wrong scheme.",
            "This resource takes access tokens: send one with the scheme DPoP, as the client of aims.Identity does.",
            "invalid_token",
        ),
        # revocation
        revoke_other=(
            "The token was issued to another client.",
            "Only its own client revokes it.",
            "unauthorized_client",
        ),
        grant_unknown=("There is no such grant.", "See the grant's id in the token.", "invalid_request"),
        # the server
        template=(
            "The token that was to be made would break its own specification.",
            "The log of the server says which part; report it.",
            "server_error",
        ),
        unavailable=("The authorization server cannot decide at present.", "Try again.", "temporarily_unavailable"),
    )


STATUS: Final[Mapping[str, int]] = {
    "invalid_client": 401,
    "invalid_token": 401,
    "insufficient_scope": 403,
    "server_error": 500,
    "temporarily_unavailable": 503,
}
"""HTTP status by OAuth code; 400 for the others (RFC 6749 5.2, RFC 6750 3.1)."""
