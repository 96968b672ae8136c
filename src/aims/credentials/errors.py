"""Why a credential was refused.

The reasons of a WIT keep the names that whole-request verification uses, so that the layer above passes them on
unchanged under its own name.
"""

from __future__ import annotations

from aims.errors import AimsError, reasons

_ISSUER = "The issuer of the credential has to correct it."


class CredentialError(AimsError):
    """An X509-SVID, JWT-SVID, WIT or bundle that cannot be believed. The first failed step is named."""

    layer = "credentials"
    reasons = reasons(
        no_trust_anchor=(
            "No bundle is held for the trust domain that the credential names.",
            "Federate with that trust domain, or check its name.",
        ),
        unfenced=(
            "A credential of our own trust domain carries no instance or epoch, so no stop could reach it.",
            "Obtain a new credential from this trust domain's server.",
        ),
        cnf=("The confirmation member is malformed.", _ISSUER),
        wit_malformed=("The WIT is not one well-formed signed token.", "Send exactly one compact JWS."),
        wit_header_count=("The request carries no WIT header field, or more than one.", "Send exactly one."),
        wit_sub=("The WIT's subject is no workload identifier.", _ISSUER),
        wit_no_trust_anchor=(
            "No trust anchor is held for the origin that the WIT names.",
            "Federate with that trust domain, or check its name.",
        ),
        wit_typ=("The token is not a Workload Identity Token of the current revision.", "Its typ is wit+jwt."),
        wit_alg=("The WIT is signed with an algorithm that is not accepted.", "Use ES256."),
        wit_signature=("The WIT's signature does not verify under the anchors of its trust domain.", _ISSUER),
        wit_expired=("The WIT has expired.", "Obtain a new one."),
        wit_not_yet_valid=("The WIT is not valid yet.", "Compare the clocks of both sides."),
        wit_missing=("The WIT lacks a claim that it must have.", _ISSUER),
        wit_cnf=("The WIT's confirmation key is absent, unacceptable or publicly known.", _ISSUER),
        wit_lifetime=("The WIT lives longer than a WIT may.", "Ask for a shorter lifetime."),
        wit_unfenced=(
            "A WIT of our own trust domain carries no instance or epoch, so no stop could reach it.",
            "Obtain a new WIT from this trust domain's server.",
        ),
    )
