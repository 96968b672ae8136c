"""Why the certificate door refused."""

from __future__ import annotations

from typing import ClassVar

from aims.errors import AimsError, reasons


class X509Error(AimsError):
    """A certificate, chain or request that the door does not let in, or one that it does not make."""

    layer: ClassVar[str] = "x509"
    reasons = reasons(
        empty=("There is no certificate.", "Send the leaf first, then its intermediates."),
        too_many=("There are more certificates than a chain may have.", "Send the leaf and its intermediates only."),
        too_large=("A certificate or request is larger than allowed.", "Keep each within 16 KiB."),
        malformed=(
            "The octets are not a well-formed certificate or request.",
            "Send it in DER, or as PEM where that is asked for.",
        ),
        pem=("The text is not a plain sequence of PEM certificates.", "Remove everything around the certificates."),
        no_roots=("The trust domain has no certificate authority, so nothing is trusted.", "Fetch its bundle."),
        root_not_ca=("A trust anchor is no certificate authority.", "Correct the bundle."),
        leaf_is_ca=("A certificate authority may not authenticate a peer.", "Send a leaf that the authority issued."),
        expired=("The certificate has expired.", "Renew it."),
        not_yet_valid=("The certificate is not valid yet.", "Compare the clocks of both sides."),
        untrusted=("No path leads from the certificate to an authority of its trust domain.", "Refresh the bundle."),
        csr_signature=("The request is not signed by the key that it names.", "Sign the request with its own key."),
        key_type=(
            "The key is of a kind or size that is not accepted.",
            "Use P-256, P-384, or RSA of 2048 to 4096 bits.",
        ),
        authority=("The authority's certificate or key cannot issue.", "Rotate the authority."),
        lifetime=("The requested lifetime is outside the limits.", "Ask for 1 second to 24 hours."),
        serial=("The serial number is outside the limits.", "Take it from 20 random octets."),
        name=("The name cannot stand in a certificate.", "Use a short name in ASCII."),
        epoch=("The epoch extension is malformed.", "The issuer of the certificate has to be corrected."),
    )
