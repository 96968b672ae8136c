"""Why the token door refused."""

from __future__ import annotations

from aims.errors import AimsError, reasons

_ISSUER = "The issuer of the token has to be corrected."


class JoseError(AimsError):
    """A token, or a key in JWK form, that the door does not let in. The first failed step is named."""

    layer = "jose"
    reasons = reasons(
        malformed=("The token is not a well-formed compact JWS with JSON objects inside.", _ISSUER),
        too_large=("The token is larger than its kind may be.", "Send a smaller token."),
        duplicate_member=("A JSON object in the token names one member twice.", _ISSUER),
        typ=("The token is of another kind than expected here.", "Send the kind of token that this place asks for."),
        alg=("The signature algorithm is not allowed for this kind of token or for this key.", _ISSUER),
        crit=("The header marks an extension as critical that is not understood.", _ISSUER),
        header_forbidden=("The header carries key material or an extension that is forbidden here.", _ISSUER),
        header_unknown=("The header has a member that this kind of token does not have.", _ISSUER),
        kid=("The key identifier is missing, malformed or ambiguous.", _ISSUER),
        kid_unknown=("No trusted key has this key identifier.", "Check the trust anchors, or fetch them once more."),
        signature=("The signature does not verify.", "The token was changed or signed with another key."),
        claim_type=("A claim has the wrong type or may not stand in this kind of token.", _ISSUER),
        claim_missing=("A required claim is missing.", _ISSUER),
        expired=("The token has expired.", "Obtain a new one."),
        lifetime=("The token lives longer than its kind may.", "Ask for a shorter lifetime."),
        not_yet_valid=("The token is not valid yet.", "Compare the clocks of both sides."),
        audience=("The token is meant for somebody else.", "Ask for a token with this audience."),
        subject=("The subject is not a valid identifier.", _ISSUER),
        jwk=("The key is not an acceptable key in JWK form.", "Use a public EC, RSA or Ed25519 key."),
    )
