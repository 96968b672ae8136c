"""The little of DER (X.690) that AIMS reads and writes by itself: one element at a time, definite and shortest lengths
only."""

from __future__ import annotations

from aims.x509.errors import X509Error

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06
UTF8_STRING = 0x0C
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
SEQUENCE = 0x30


def element(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Return (tag, first octet of the content, first octet after it) of the element at ``at``.

    Only one-octet tags exist here; a length of more than three octets is refused.

    Raises: X509Error ``malformed``.
    """
    if at + 2 > end:
        raise X509Error("malformed", "DER is cut off")
    tag, length, start = data[at], data[at + 1], at + 2
    if tag & 0x1F == 0x1F:
        raise X509Error("malformed", "long DER tag")
    if length >= 0x80:
        octets = length & 0x7F
        if not 1 <= octets <= 3 or start + octets > end:
            raise X509Error("malformed", "DER length")
        length = int.from_bytes(data[start : start + octets], "big")
        start += octets
        if length < 0x80 or length < 1 << 8 * (octets - 1):
            raise X509Error("malformed", "DER length is not the shortest")
    if start + length > end:
        raise X509Error("malformed", "DER is cut off")
    return tag, start, start + length


def content(data: bytes, at: int, end: int, tag: int) -> tuple[int, int]:
    """Return the bounds of the content of the element at ``at``, which must have ``tag``.

    Raises: X509Error ``malformed``.
    """
    found, start, stop = element(data, at, end)
    if found != tag:
        raise X509Error("malformed", f"DER tag {found:#04x} instead of {tag:#04x}")
    return start, stop


def encode(tag: int, body: bytes) -> bytes:
    """Return one element; ``body`` has at most 65535 octets."""
    length = len(body)
    if length < 0x80:
        return bytes((tag, length)) + body
    if length < 0x100:
        return bytes((tag, 0x81, length)) + body
    return bytes((tag, 0x82)) + length.to_bytes(2, "big") + body


def integer(number: int) -> bytes:
    """Return the INTEGER of a number that is not negative."""
    return encode(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def object_identifier(dotted: str) -> bytes:
    """Return the OBJECT IDENTIFIER that is written ``dotted`` (X.690 8.19)."""
    first, second, *others = map(int, dotted.split("."))
    body = bytearray()
    for arc in (40 * first + second, *others):
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(arc & 0x7F | 0x80)
        body.extend(reversed(septets))
    return encode(OBJECT_IDENTIFIER, bytes(body))
