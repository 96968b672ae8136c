"""Peer rules: whole identifiers, and a map that joins them to URLs."""

from __future__ import annotations

import pytest

from aims.authentication.errors import AuthenticationError
from aims.authentication.peer import PeerRule, ResourceMap
from aims.identifiers import SpiffeId, TrustDomain

TD = TrustDomain("a.test")
NOTES, ADMIN = SpiffeId.service(TD, "notes"), SpiffeId.service(TD, "admin")


def test_a_rule_that_expects_nobody_or_a_whole_domain_does_not_exist() -> None:
    for expected in (frozenset[SpiffeId](), frozenset({SpiffeId.parse("spiffe://a.test")})):
        with pytest.raises(ValueError, match="workload"):
            PeerRule(expected)


def test_the_longest_url_that_covers_the_target_by_whole_segments_decides() -> None:
    notes, admin = PeerRule.of(NOTES), PeerRule.of(ADMIN)
    found = ResourceMap({"https://tool.test/mcp": notes, "https://tool.test/mcp/admin": admin})
    for target, rule in (
        ("https://tool.test/mcp", notes),
        ("https://tool.test/mcp/x?y=1", notes),
        ("https://tool.test/mcp/admin2", notes),
        ("HTTPS://TOOL.test:443/mcp/%61dmin", admin),
        ("https://tool.test/mcp/admin/x", admin),
    ):
        assert found.rule(target) is rule, target
    for target in (
        "https://tool.test/",
        "https://tool.test/mcp2",
        "https://tool.test/mcp/../mcp",
        "http://tool.test/mcp",
        "https://tool.test:8443/mcp",
        "https://notes.a.test/mcp",
        "https://tool.test.evil.example/mcp",
        "https://tool.test@evil.example/mcp",
        "nonsense",
    ):
        with pytest.raises(AuthenticationError, match="peer_unmapped"):
            found.rule(target)
    for wrong in ({"https://tool.test/a/..": notes}, {"https://t.test": notes, "https://t.test:443/": admin}):
        with pytest.raises(ValueError, match="resource map"):
            ResourceMap(wrong)
    with pytest.raises(AuthenticationError, match="peer_unmapped"):
        ResourceMap({}).rule("https://tool.test/mcp")
