"""Which addresses may be reached. Pure.

Without permission for a host and port only what is globally reachable unicast. With it also loopback, private and
shared space, but never link-local, multicast, unspecified or reserved addresses, nor a cloud's metadata service. An
IPv6 address that carries an IPv4 address inside is refused in any case: it is a second spelling.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

# RFC 6890 and the registries behind it; written out, because "global" has changed its meaning between Python versions.
_PRIVATE_4: Final = tuple(
    map(IPv4Network, ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
)
_NEVER_4: Final = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "100.100.100.200/32",  # a cloud's metadata service in shared space
            "169.254.0.0/16",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",
        ),
    )
)
_PRIVATE_6: Final = (IPv6Network("::1/128"), IPv6Network("fc00::/7"))
_GLOBAL_6: Final = IPv6Network("2000::/3")
_NEVER_6: Final = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments, Teredo among them
            "2001:db8::/32",
            "2002::/16",  # 6to4: an IPv4 address inside
            "3fff::/20",
            "fd00:ec2::/32",  # a cloud's metadata service in private space
        ),
    )
)


def allowed(text: str, *, private: bool) -> bool:
    """Whether a resolved address, in any spelling that a resolver gives, may be connected to."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv4Address):
        return _allowed_4(address, private=private)
    return address.scope_id is None and _allowed_6(address, private=private)


def _allowed_4(address: IPv4Address, *, private: bool) -> bool:
    if any(address in network for network in _NEVER_4):
        return False
    return private or not any(address in network for network in _PRIVATE_4)


def _allowed_6(address: IPv6Address, *, private: bool) -> bool:
    if any(address in network for network in _NEVER_6):
        return False
    return address in _GLOBAL_6 or (private and any(address in network for network in _PRIVATE_6))
