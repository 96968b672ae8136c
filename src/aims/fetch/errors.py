"""Why the outbound door refused, or what the other side did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from aims.errors import AimsError, Reason, reasons

_THEIRS: Final = "Ask whoever runs the other side."


class FetchError(AimsError):
    """An outbound request that was not made, or whose answer was not taken."""

    layer: ClassVar[str] = "fetch"
    reasons: ClassVar[Mapping[str, Reason]] = reasons(
        url=("The address is not a plain https URL.", "https, no user, no fragment, at most 2048 characters."),
        address=(
            "The name leads to an address that must not be reached.",
            "Private and loopback addresses have to be allowed for this host and port by name.",
        ),
        unresolved=("The name has no address.", "Check the spelling and the name service."),
        unreachable=("The other side does not answer.", _THEIRS),
        tls=("The other side's certificate was not accepted.", "Check its name and which authority is trusted for it."),
        request=("The request cannot be sent.", "Headers are printable ASCII; the connection's own are set here."),
        slow=("The exchange took too long.", _THEIRS),
        redirect=("The other side points elsewhere, and redirects are not followed.", "Use the final address."),
        malformed=("The answer is not well-formed HTTP.", _THEIRS),
        too_large=("The answer is larger than allowed.", _THEIRS),
        content_type=("The answer is of another type than was asked for.", _THEIRS),
    )
