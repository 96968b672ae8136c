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
        template=(
            "The credential that was to be built would break its own specification.",
            "Name a workload, at least one audience, and a lifetime within the limit.",
        ),
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
        x509_malformed=("The certificate chain is not well-formed.", "Send DER certificates, leaf first."),
        x509_uri_count=("The certificate does not have exactly one URI name.", _ISSUER),
        x509_spiffe_id=("The URI name of the certificate is no SPIFFE ID.", _ISSUER),
        x509_root_path=("The certificate names a trust domain instead of a workload.", _ISSUER),
        x509_ca=("The certificate is an authority's and may not authenticate a peer.", _ISSUER),
        x509_key_usage=("The certificate lacks digitalSignature or may sign certificates or CRLs.", _ISSUER),
        x509_extended_key_usage=("The certificate's extended key usage lacks serverAuth or clientAuth.", _ISSUER),
        x509_epoch=("The certificate's epoch extension is malformed.", _ISSUER),
        x509_no_trust_anchor=(
            "No X.509 authority is held for the trust domain that the certificate names.",
            "Federate with that trust domain, or refresh its bundle.",
        ),
        x509_untrusted=("The certificate does not lead to an authority of its trust domain.", "Refresh the bundle."),
        x509_expired=("The certificate has expired.", "Obtain a new one."),
        x509_not_yet_valid=("The certificate is not valid yet.", "Compare the clocks of both sides."),
        x509_unexpected_peer=(
            "The peer is not the one that was expected.",
            "Check the address and the SPIFFE ID that the resource map names for it.",
        ),
        bundle_malformed=("The bundle is not a well-formed SPIFFE bundle.", "Fetch it again from its trust domain."),
        bundle_sequence=("The bundle is older than the one at hand.", "Wait for the next refresh."),
        bundle_kid=("Two keys of the bundle share an identifier, or a key has none.", "Correct the bundle."),
        bundle_authority=("An X.509 authority of the bundle is no certificate authority.", "Correct the bundle."),
        bundle_trust_domain=("The bundles name one trust domain twice.", "Keep one bundle for each trust domain."),
    )
