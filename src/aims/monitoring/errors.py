"""What monitoring refuses, with its reasons. ``standard`` is the error code of RFC 8935 where a SET is at fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from aims.errors import AimsError, Reason, reasons

_TRANSMITTER: Final = "The transmitter has to correct the event."
_OURS: Final = "Compare both sides' configuration."


class MonitoringError(AimsError):
    """A remediation or a security event was refused."""

    layer: ClassVar[str] = "monitoring"
    reasons: ClassVar[Mapping[str, Reason]] = reasons(
        # remediation
        remedy=("This cannot be done to that kind of subject.", "Agents are suspended, instances quarantined."),
        subject_malformed=("This is not the name of an agent, person or instance.", "See `aims agent list`."),
        person_unknown=("Nobody is known under this identifier.", "Map the person to the transmitter's name first."),
        instance_unknown=("No such instance was issued a credential.", "Name the agent that it belongs to."),
        held=("Somebody else holds the stop.", "Whoever stopped it, or an administrator, can resume it."),
        changed=("Somebody else changed this meanwhile.", "Look at it again and repeat the command."),
        refused=("The store did not accept the remediation.", "Try again; the log of the server has the cause."),
        unfinished=(
            "The stop stands, but not all that was handed on under it has ended.",
            "Repeat the command; the log of the server has the cause.",
        ),
        # configuration
        issuer_malformed=("This is not an issuer's https URL.", "No query, no fragment, no user, no default port."),
        jwks_malformed=("The transmitter's keys cannot be used.", "Give a JWK Set with public keys that have a kid."),
        receiver_malformed=("The receiver's configuration cannot be used.", "An https URL, known events, a CA as PEM."),
        transmitter_unknown=("No transmitter of that issuer is configured.", "See `aims signals list-transmitters`."),
        # a SET, in the order in which it is examined
        set_media_type=("The body is not application/secevent+jwt.", _TRANSMITTER, "invalid_request"),
        set_too_large=("The event is larger than an event may be.", _TRANSMITTER, "invalid_request"),
        set_malformed=("The body is not a well-formed security event token.", _TRANSMITTER, "invalid_request"),
        set_typ=("The token is no security event token.", _TRANSMITTER, "invalid_request"),
        set_alg=("The signature algorithm is not allowed.", _TRANSMITTER, "invalid_key"),
        set_issuer=("Nobody is configured under this issuer.", _OURS, "invalid_issuer"),
        set_kid=("The signing key is not one of the transmitter's.", _OURS, "invalid_key"),
        set_signature=("The signature does not verify.", _OURS, "authentication_failed"),
        set_claim=("A claim is missing, forbidden, or of the wrong type.", _TRANSMITTER, "invalid_request"),
        set_audience=("The event is meant for somebody else.", _OURS, "invalid_audience"),
        set_time=("The event is from the future or too old.", "Compare the clocks of both sides.", "invalid_request"),
        set_event=("There is not exactly one event of a known type.", _TRANSMITTER, "invalid_request"),
        set_payload=("The event's payload is not what its type says.", _TRANSMITTER, "invalid_request"),
        set_subject=("The subject identifier is not one that is understood.", _TRANSMITTER, "invalid_request"),
        set_state=("The verification state was not asked for.", _TRANSMITTER, "invalid_state"),
        set_authority=("The transmitter may not say this about this subject.", _OURS, "access_denied"),
        set_rate=("The transmitter sends more than it may.", "Send more slowly."),
        busy=("Too many events from strangers at the moment.", "Try again in a second."),
        starting=("The transmitters are not loaded yet.", "Try again in a second."),
    )
