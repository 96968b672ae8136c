"""Why a caller was not believed, and what HTTP says then.

The reasons of a WIT are those of `aims.credentials`, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from aims.credentials.errors import CredentialError
from aims.errors import AimsError, reasons

_ONE_PROOF = "Make a new proof for each request."
_CLOCKS = "Compare the clocks of both sides."
_WIT = {name: entry for name, entry in CredentialError.reasons.items() if name.startswith("wit_")}


class AuthenticationError(AimsError):
    """A request whose caller is not believed. The first failed step is named."""

    layer = "authentication"
    reasons = reasons(
        **_WIT,
        request_malformed=("The request's method, target or header fields cannot be read.", "Send plain HTTP."),
        target_outside=("The target lies outside of the resource that was asked.", "Check the resource's URL."),
        authorization_count=(
            "The request carries no Authorization field, or more than one.",
            "Send exactly one Authorization header, with scheme WPT.",
        ),
        authorization_scheme=("The Authorization field has another scheme than WPT.", "Send Authorization: WPT."),
        wpt_malformed=("The WPT is not one well-formed signed token.", "Send exactly one compact JWS."),
        wpt_alg_mismatch=("The WPT's algorithm is not the one that the WIT names.", "Sign with cnf.jwk.alg."),
        wpt_signature=("The WPT does not verify with the key in the WIT.", "Sign with the WIT's own key."),
        wpt_typ=("The token is not a Workload Proof Token.", "Its typ is wpt+jwt."),
        wpt_aud=("The WPT is meant for somebody else.", "The proof names another service: make it for this URL."),
        wpt_exp_missing=("The WPT has no expiry.", _ONE_PROOF),
        wpt_expired=("The WPT has expired.", _ONE_PROOF),
        wpt_exp_too_far=("The WPT lives longer than a proof may.", "Let it live for two minutes."),
        wpt_not_yet_valid=("The WPT is not valid yet.", _CLOCKS),
        wth_missing=("The WPT names no WIT.", "Add wth."),
        wth_mismatch=("The WPT was made for another WIT.", "Hash the WIT's text exactly as it is sent."),
        wpt_jti_missing=("The WPT has no identifier.", "Add jti with 128 random bits."),
        txn_token_header_count=("The request carries several Txn-Tokens.", "Send one Txn-Token field."),
        tth_missing=("The request carries a Txn-Token that the WPT does not cover.", "Add tth."),
        tth_mismatch=(
            "The WPT covers another Txn-Token than the request carries.",
            "Hash the Txn-Token's text exactly as it is sent.",
        ),
        oth_key_case=("A name in oth is not written in lower case.", "Write header names in lower case."),
        oth_unknown=("The WPT covers a header field that is not understood here.", "Leave it out of oth."),
        oth_header_count=("A header field in oth is absent, or there are several.", "Send it exactly once."),
        oth_mismatch=("A context token and its hash in oth differ, or it has none.", "Hash the field as it is sent."),
        wpt_htm=("The WPT is for another method, or names none.", "htm must be this request's method."),
        wpt_htu=("The WPT is for another URI, or names none.", "htu must be this request's URL without query."),
        wpt_iss=("The WPT's issuer is not the subject of the WIT.", "Leave iss out, or use the WIT's sub."),
        wpt_replay=("The WPT was used before.", _ONE_PROOF),
        dpop_header_count=("The request carries no DPoP field, or more than one.", "Send exactly one."),
        dpop_malformed=("The DPoP proof is not well-formed.", _ONE_PROOF, "invalid_dpop_proof"),
        dpop_typ=("The token is not a DPoP proof.", "Its typ is dpop+jwt.", "invalid_dpop_proof"),
        dpop_alg=("The DPoP proof's algorithm is not accepted.", "Use ES256.", "invalid_dpop_proof"),
        dpop_jwk=("The DPoP proof carries no acceptable public key.", "Send the public JWK.", "invalid_dpop_proof"),
        dpop_signature=("The DPoP proof does not verify with its key.", _ONE_PROOF, "invalid_dpop_proof"),
        dpop_missing=("The DPoP proof lacks a claim that it must have.", _ONE_PROOF, "invalid_dpop_proof"),
        dpop_htm=("The DPoP proof is for another method.", _ONE_PROOF, "invalid_dpop_proof"),
        dpop_htu=("The DPoP proof is for another URI.", _ONE_PROOF, "invalid_dpop_proof"),
        dpop_iat=("The DPoP proof is too old, or from the future.", _CLOCKS, "invalid_dpop_proof"),
        dpop_nonce=("The DPoP proof lacks a current nonce.", "Use the nonce of this answer.", "use_dpop_nonce"),
        dpop_ath=("The DPoP proof covers another access token.", "Add ath.", "invalid_dpop_proof"),
        dpop_key=("The token is bound to another key.", "Use the key that the token was issued for.", "invalid_token"),
        dpop_replay=("The DPoP proof was used before.", _ONE_PROOF, "invalid_dpop_proof"),
        stopped=("The caller, or something that its right depends on, was stopped.", "Ask the agent's owner."),
        state_unknown=(
            "It is not known here what was stopped, so nobody is let in.",
            "Wait until the enforcement point hears from its node or server again.",
        ),
        window_starting=(
            "The replay window is younger than this proof, so it could have been used before.",
            "Send the request again with a new proof.",
        ),
        window_unavailable=(
            "The replay window cannot be asked, so nobody is let in.",
            "Try again; if it stays, the service was suspended, or its code approved anew: start it again.",
        ),
        peer_unmapped=("No resource is known at this URL.", "Add a row to the policy's table of resources."),
        proof_template=("The proof that was to be made would break its own specification.", "Check its inputs."),
    )


@dataclass(frozen=True, slots=True)
class Consequence:
    """What an HTTP server answers: a status, the ``WWW-Authenticate`` value or "", and seconds for ``Retry-After``.

    ``retry_after`` 0 means that the field is left out.
    """

    status: int
    challenge: str = ""
    retry_after: int = 0


_WPT = Consequence(401, "WPT")  # WPT-02 2.1: no parameters are defined
_BAD = Consequence(400)  # workload-creds 5.2: a WIT has no authentication scheme of its own
_DPOP = Consequence(401, 'DPoP error="invalid_dpop_proof"')
_EXCEPTIONS: Final[Mapping[str, Consequence]] = {
    "request_malformed": _BAD,
    "target_outside": Consequence(404),
    "txn_token_header_count": _BAD,
    "stopped": Consequence(401),
    "state_unknown": Consequence(503, retry_after=2),
    "window_starting": Consequence(503, retry_after=5),
    "window_unavailable": Consequence(503, retry_after=1),
    "dpop_header_count": Consequence(401, "DPoP"),
    "dpop_nonce": Consequence(401, 'DPoP error="use_dpop_nonce"'),
    "dpop_key": Consequence(401, 'DPoP error="invalid_token"'),
    "peer_unmapped": Consequence(403),
    "proof_template": Consequence(500),
}
_BY_PREFIX: Final[Mapping[str, Consequence]] = {
    "wit": _BAD,
    "wpt": _WPT,
    "authorization": _WPT,
    "wth": _WPT,
    "tth": _WPT,
    "oth": _WPT,
    "dpop": _DPOP,
}

CONSEQUENCES: Final[Mapping[str, Consequence]] = MappingProxyType(
    {name: _EXCEPTIONS.get(name) or _BY_PREFIX[name.partition("_")[0]] for name in AuthenticationError.reasons}
)
"""What HTTP says for each reason, at a protected resource. A token endpoint maps DPoP faults to 400 by ``standard``."""
