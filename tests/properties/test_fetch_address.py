"""Which addresses and URLs the outbound door takes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aims.fetch import FetchError, parse_url
from aims.fetch.address import allowed

PRIVATE = ["10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "172.16.0.1", "172.31.255.255", "192.168.1.1"]
PRIVATE_6 = ["::1", "fc00::1", "fdff::1"]
NEVER = [
    "0.0.0.0",  # noqa: S104  refused, not bound
    "0.1.2.3",
    "169.254.169.254",
    "169.254.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "3fff::1",
    "5f00::1",
    "fe80::1",
    "fe80::1%lo",
    "2606:4700::1%1",
    "fec0::1",
    "ff02::1",
    "fd00:ec2::254",
]
NO_ADDRESS = [
    "",
    "localhost",
    "0x7f000001",
    "2130706433",
    "127.1",
    "0177.0.0.1",
    "127.0.0.1:80",
    " 127.0.0.1",
    "\u0661.1.1.1",
]
GLOBAL = ["8.8.8.8", "1.1.1.1", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "2a00:1450::1"]


def test_only_global_addresses_are_reached_without_permission() -> None:
    for text in GLOBAL:
        assert allowed(text, private=False), text
    for text in (*PRIVATE, *PRIVATE_6, *NEVER, *NO_ADDRESS):
        assert not allowed(text, private=False), text


def test_permission_opens_private_space_and_nothing_else() -> None:
    for text in (*GLOBAL, *PRIVATE, *PRIVATE_6):
        assert allowed(text, private=True), text
    for text in (*NEVER, *NO_ADDRESS):
        assert not allowed(text, private=True), text


@given(st.integers(2, 2**32 - 1))
def test_no_spelling_of_an_ipv4_address_inside_ipv6_gets_through(number: int) -> None:
    inside = int(IPv4Address(number))
    for prefix, shift in ((0, 0), (0xFFFF << 32, 0), (0x64FF9B << 96, 0), (0x2002 << 112, 80), (0x20010000 << 96, 0)):
        assert not allowed(str(IPv6Address(prefix | inside << shift)), private=True)


@pytest.mark.parametrize(
    ("url", "host", "port", "target", "authority"),
    [
        ("https://rp.example/events", "rp.example", 443, "/events", "rp.example"),
        ("https://rp.example", "rp.example", 443, "/", "rp.example"),
        ("https://rp.example:8443/a/b?c=d", "rp.example", 8443, "/a/b?c=d", "rp.example:8443"),
        ("https://[::1]:8443/", "::1", 8443, "/", "[::1]:8443"),
        ("https://127.0.0.1/x", "127.0.0.1", 443, "/x", "127.0.0.1"),
    ],
)
def test_an_https_url_is_one_endpoint(url: str, host: str, port: int, target: str, authority: str) -> None:
    endpoint = parse_url(url)
    assert (endpoint.host, endpoint.port, endpoint.target, endpoint.authority) == (host, port, target, authority)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://rp.example/",
        "HTTPS://rp.example/",
        "ftp://rp.example/",
        "file:///etc/passwd",
        "https:/rp.example/",
        "https://user@rp.example/",
        "https://user:pw@rp.example/",
        "https://rp.example/#f",
        "https://rp.example:0/",
        "https://rp.example:65536/",
        "https://rp.example:080/",
        "https://rp.example:/",
        "https://RP.example/",
        "https://rp..example/",
        "https://.example/",
        "https://rp.example./",
        "https://rp_x.example/",
        "https://rp.example\\@evil.example/",
        "https://rp.example/ x",
        "https://rp.example/\r\nHost: evil",
        "https://rp.example/\n",
        "https://rp.example/\u00e4",
        "https://rp.example?x",
        "https://[::1%25lo]/",
        "https://" + "a." * 127 + "example/",
        "https://rp.example/" + "a" * 2048,
    ],
)
def test_every_other_url_is_refused(url: str) -> None:
    with pytest.raises(FetchError) as refusal:
        parse_url(url)
    assert refusal.value.code == "fetch.url"
