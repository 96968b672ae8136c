"""Peer rules: the whole identifier of a validated certificate, and nothing that a URL or a header field says."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.properties.x509_material import HOUR, NOW, Domain, serial

from aims.authentication.errors import AuthenticationError
from aims.authentication.peer import PeerRule, ResourceMap, expected_of
from aims.credentials.x509_svid import X509Svid, issue
from aims.identifiers import SpiffeId, TrustDomain
from aims.identifiers.errors import IdentifierError
from aims.policy.rows import Resource

TD = TrustDomain("a.test")
NOTES, ADMIN = SpiffeId.service(TD, "notes"), SpiffeId.service(TD, "admin")


def _svid(who: SpiffeId) -> X509Svid:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    domain = Domain(who.trust_domain.name)
    return issue(domain.issuer, who, public_key=key, serial=serial(), now=NOW, lifetime=HOUR, fence=None)


@pytest.mark.parametrize(
    "other",
    [
        "spiffe://a.test/services/notes2",
        "spiffe://a.test/services/Notes",
        "spiffe://a.test/services/notes/x",
        "spiffe://a.test/services",
        "spiffe://b.test/services/notes",
    ],
)
def test_a_peer_is_admitted_by_its_whole_identifier(other: str) -> None:
    rule = PeerRule.of(NOTES, ADMIN)
    assert rule.admit(_svid(NOTES)) == NOTES
    assert rule.admit(_svid(ADMIN)) == ADMIN
    with pytest.raises(AuthenticationError, match="peer_unexpected"):
        rule.admit(_svid(SpiffeId.parse(other)))
    with pytest.raises(AuthenticationError, match="peer_unexpected"):
        PeerRule.of(ADMIN).admit(_svid(NOTES))


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


def _row(peer: str) -> Resource:
    return Resource(
        name="notes", url="https://tool.test/mcp", peer=peer, profile="wimse", audiences=("urn:notes",), scopes=()
    )


def test_policy_names_who_stands_behind_a_url() -> None:
    assert expected_of(_row("/services/notes"), TD) == NOTES
    foreign = SpiffeId.parse("spiffe://b.test/services/notes")
    assert expected_of(_row(str(foreign)), TD) == foreign
    found = ResourceMap.of_policy([_row("/services/notes")], TD)
    assert found.rule("https://tool.test/mcp/x") == PeerRule.of(NOTES)
    for wrong in ("spiffe://b.test", "services/notes", "/../x"):
        with pytest.raises(IdentifierError):
            expected_of(_row(wrong), TD)
