"""What people and their agents are told when a login, a consent or a code is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from aims.authorization.errors import AuthorizationError
from aims.errors import Reason, reasons

_AGAIN: Final = "Go back to the agent and begin again."
_LINK: Final = "Ask your administrator for a new link."
_CLIENT: Final = "The agent has to correct its request."


class PeopleError(AuthorizationError):
    """A browser's request, or a code, was refused. Its codes share the layer of ``AuthorizationError``."""

    reasons: ClassVar[Mapping[str, Reason]] = reasons(
        # logging in
        person_name=("A person's name is 1 to 128 printable characters.", "Choose another name."),
        person_unknown=("Nobody of that name is known here.", "See `aims person list`."),
        person_stopped=("This account was stopped.", "Ask your administrator."),
        link_unknown=("This link does not work (any more).", _LINK),
        link_browser=("This link was opened in another browser.", _LINK),
        link_closed=("Open the link itself before you use it.", "Open it in this browser, then press the button."),
        session_none=("You are not logged in.", "Open your login link, then come back to this page."),
        browser_foreign=("The request did not come from a page of this server.", "Use the buttons on its own pages."),
        browser_form=("The form of this page has expired or was changed.", "Load the page again."),
        # an authorization request that must not be answered by a redirect
        request_parameters=("The authorization request is malformed.", _CLIENT),
        request_client=("No active agent of that identifier is registered here.", "Check who sent you here."),
        request_redirect=("The address to return to is not one of this agent's.", "Check who sent you here."),
        redirect_malformed=(
            "This is no address that codes may be sent to.",
            "https, http on a loopback address, or a scheme with a dot; no fragment.",
        ),
        # an authorization request that is answered by a redirect
        response_type=("Only codes are given.", _CLIENT, "unsupported_response_type"),
        challenge=("The request has no S256 challenge.", "Send code_challenge of 43 characters.", "invalid_request"),
        request_parameter=("A parameter of the request is malformed.", _CLIENT, "invalid_request"),
        request_target=("The request does not name one resource that is registered here.", _CLIENT, "invalid_target"),
        request_scope=("The scope is missing, unknown, or more than the agent may hold.", _CLIENT, "invalid_scope"),
        request_details=(
            "The authorization details do not fit the resource.",
            _CLIENT,
            "invalid_authorization_details",
        ),
        denied=("The person refused.", "Do without it, or ask for less.", "access_denied"),
        # consent
        pending_other=(
            "Another request of this agent for the same came at this moment.",
            "Go back to the agent, or decide on the other one on the page of your grants.",
        ),
        pending_many=("Too many requests wait for your decision.", "Decide on some of them first."),
        pending_gone=("This request was decided already, has changed, or has expired.", _AGAIN),
        grant_gone=("There is no such grant of yours, or it has ended.", "Load the page again."),
        # codes
        code_unknown=("The code is unknown.", "Send the person to the authorization endpoint.", "invalid_grant"),
        code_expired=("The code has expired.", "Send the person to the authorization endpoint.", "invalid_grant"),
        code_used=("The code was used before; what it gave has ended.", "Ask the person again.", "invalid_grant"),
        code_client=("The code was given to another client.", "Use your own.", "invalid_grant"),
        code_redirect=(
            "redirect_uri is another than the code was sent to.",
            "Send the same, or none.",
            "invalid_grant",
        ),
        code_verifier=(
            "The verifier does not fit the challenge.",
            "Send the verifier of this challenge.",
            "invalid_grant",
        ),
        code_key=("The code is bound to another DPoP key.", "Use the key of dpop_jkt.", "invalid_grant"),
        code_target=("The code is for another resource.", "Ask for its own, or leave it out.", "invalid_target"),
    )


STATUS: Final[Mapping[str, int]] = {
    "session_none": 401,
    "browser_foreign": 403,
    "browser_form": 403,
    "link_browser": 403,
    "person_stopped": 403,
    "pending_other": 409,
    "pending_many": 429,
    "pending_gone": 410,
    "link_unknown": 410,
    "grant_gone": 410,
}
"""HTTP status of an error page; 400 for the others."""
