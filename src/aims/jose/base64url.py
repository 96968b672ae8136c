"""base64url without padding (RFC 7515 2), in its one canonical spelling."""

from __future__ import annotations

import binascii

from aims.jose.errors import JoseError

_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_TO_URL = bytes.maketrans(b"+/", b"-_")
_PADDING = (b"", b"===", b"==", b"=")


def encode(octets: bytes) -> bytes:
    """Return the unpadded base64url of ``octets``."""
    return binascii.b2a_base64(octets, newline=False).translate(_TO_URL).rstrip(b"=")


def decode(text: bytes) -> bytes:
    """Return the octets that ``text`` spells.

    Encoding them again must give ``text``: that alone refuses padding, white space, the standard alphabet and a last
    character with spare bits, which lenient and even strict decoders let through.

    Raises:
        JoseError: ``malformed``.
    """
    try:
        octets = binascii.a2b_base64(text.translate(_TO_STANDARD) + _PADDING[len(text) & 3])
    except binascii.Error:
        raise JoseError("malformed", "not base64url") from None
    if binascii.b2a_base64(octets, newline=False).translate(_TO_URL).rstrip(b"=") != text:
        raise JoseError("malformed", "not canonical base64url")
    return octets
