"""Why a text is not an identifier."""

from __future__ import annotations

from aims.errors import AimsError, reasons

_CANONICAL = "Write the identifier in its canonical form; it is never repaired."


class IdentifierError(AimsError):
    """A text that is no trust domain, SPIFFE ID or workload identifier. The first broken rule is named."""

    layer = "identifiers"
    reasons = reasons(
        too_long=("The identifier is longer than 2048 octets.", "Shorten the path."),
        non_ascii=("The identifier holds characters outside ASCII.", _CANONICAL),
        not_absolute_uri_with_authority=(
            "The text is not an absolute URI with an authority.",
            "Begin with spiffe:// or wimse:// and a trust domain.",
        ),
        scheme_case=("The scheme is not written in lower case.", _CANONICAL),
        unknown_scheme=("The scheme names no kind of identifier that is known here.", "Use spiffe:// or wimse://."),
        fragment=("The identifier has a fragment.", "Remove '#' and what follows."),
        query=("The identifier has a query.", "Remove '?' and what follows."),
        percent_encoding=("The identifier is percent-encoded.", _CANONICAL),
        empty_authority=("The trust domain is empty.", "Name a trust domain."),
        userinfo=("The authority holds user information.", "Remove everything up to '@'."),
        ip_literal=("The authority is an IP literal.", "Name a trust domain, not an address."),
        port=("The authority has a port.", "Remove ':' and the port: a trust domain is not a host."),
        trust_domain_chars=(
            "The trust domain has a character outside a-z, 0-9, '.', '-' and '_'.",
            "Trust domains are lower case.",
        ),
        trust_domain_too_long=("The trust domain is longer than 255 octets.", "Choose a shorter trust domain."),
        trust_domain_trailing_dot=("The trust domain ends with a dot.", "Remove the final dot."),
        ip_address_trust_domain=("The trust domain is an IP address.", "Name a trust domain, not an address."),
        empty_path=("The identifier has no path, so it names no workload.", "Add a path such as /agents/NAME."),
        trailing_slash=("The path ends with a slash.", "Remove the final slash."),
        empty_segment=("The path has an empty segment.", "Remove the doubled slash or name the segment."),
        dot_segment=("The path has a '.' or '..' segment.", "Use plain segments."),
        segment_chars=("A path segment has a forbidden character.", "Use letters, digits, '.', '-' and '_'."),
    )
