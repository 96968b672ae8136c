"""The tables: what a row may say, and that the lowest of all rows that match wins."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.mutations import write_tables

from aims.identifiers import SpiffeId, TrustDomain
from aims.policy.errors import PolicyError
from aims.policy.rows import CREDENTIAL_LIMITS, matches
from aims.policy.tables import Tables, check_details, parse

EXAMPLE = Path(__file__).parents[1] / "vectors" / "policy" / "example"
TEXT = (EXAMPLE / "tables.toml").read_text("utf-8")
RAW: dict[str, list[dict[str, Any]]] = tomllib.loads(TEXT)
TABLES = Tables(parse(TEXT), "local.test")
READER = SpiffeId.parse("spiffe://local.test/agents/reader")
WRITER = SpiffeId.parse("spiffe://local.test/agents/writer")
OWN = TrustDomain("t")
SIGNALS = "https://idp.example/signals"
REVOKED = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"


def parsed(change: Callable[[dict[str, list[dict[str, Any]]]], object]) -> Tables:
    tables = deepcopy(RAW)
    change(tables)
    return Tables(parse(write_tables(tables)), "local.test")


def refused(call: Callable[[], object]) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    ("change", "reason", "word"),
    [
        (lambda t: t["resources"][0].update(colour="red"), "tables_row", "colour"),
        (lambda t: t.update(colours=[]), "tables_row", "colours"),
        (lambda t: t["resources"][0].pop("profile"), "tables_row", "profile"),
        (lambda t: t["resources"][0].update(profile=["wimse", "bearer"]), "tables_row", "profile"),
        (lambda t: t["resources"][0].update(profile="none"), "tables_row", "profile"),
        (lambda t: t["resources"][0].update(audiences=[]), "tables_row", "audiences"),
        (lambda t: t["resources"][0].update(url="http://localhost/mcp"), "tables_row", "url"),
        (lambda t: t["resources"][0].update(url="https://a@localhost/mcp"), "tables_row", "url"),
        (lambda t: t["resources"][0].update(url="https://localhost/mcp\n"), "tables_row", "url"),
        (lambda t: t["resources"][0].update(url="https://localhost:443/mcp"), "tables_row", "url"),
        (lambda t: t["resources"][0].update(url="https://localhost/a/../mcp"), "tables_row", "url"),
        (lambda t: t["resources"][0].update(url="https://localhost//mcp"), "tables_row", "url"),
        (lambda t: t["resources"][0].update(url="https://localhost/%6dcp"), "tables_row", "url"),
        (lambda t: t["resources"][0].update(url="https://LOCALHOST/mcp"), "tables_row", "url"),
        (lambda t: t["resources"][0].update(peer="/services/../x"), "tables_row", "peer"),
        (lambda t: t["resources"][0].update(peer="/services/*"), "tables_row", "peer"),
        (lambda t: t["resources"][1].update(max_stale=11), "tables_row", "max_stale"),
        (lambda t: t["resources"][1].update(max_stale=True), "tables_row", "max_stale"),
        (lambda t: t["resources"][1].update(on_unknown="allow"), "tables_row", "on_unknown"),
        (lambda t: t["resources"][0].update(on_unknown="introspect"), "tables_row", "introspect"),
        (lambda t: t["resources"][1].update(high=["notes:all"]), "tables_row", "high"),
        (lambda t: t["resources"][1].update(scopes=["notes:read notes:write"]), "tables_row", "scopes"),
        (lambda t: t["resources"].append({**t["resources"][0], "profile": "bearer"}), "tables_twice", "notes"),
        (
            lambda t: t["resources"].append({**t["resources"][0], "name": "b", "profile": "bearer"}),
            "tables_twice",
            "notes",
        ),
        (lambda t: t["resources"][0].update(audiences=["urn:example:notes"]), "tables_twice", "urn:example:notes"),
        (lambda t: t["lifetimes"][0].update(seconds=86_401), "tables_row", "86400"),
        (lambda t: t["lifetimes"][0].update(seconds=0), "tables_row", "seconds"),
        (lambda t: t["lifetimes"][0].update(seconds="3600"), "tables_row", "seconds"),
        (lambda t: t["lifetimes"][0].update(credential="password"), "tables_row", "credential"),
        (lambda t: t["lifetimes"].append({**t["lifetimes"][0], "name": "again"}), "tables_twice", "again"),
        (lambda t: t["lifetimes"][2].update(posture="root-uid"), "tables_unknown", "root-uid"),
        (lambda t: t["purposes"][0].update(lifetime=301), "tables_row", "lifetime"),
        (lambda t: t["purposes"][0].update(scopes=[]), "tables_row", "scopes"),
        (lambda t: t["purposes"][0].update(scopes=["notes:all"]), "tables_unknown", "notes:all"),
        (lambda t: t["purposes"][0]["details"][0].pop("max_length"), "tables_row", "max_length"),
        (lambda t: t["purposes"][0]["details"][1].pop("maximum"), "tables_row", "maximum"),
        (lambda t: t["purposes"][0]["details"].append(t["purposes"][0]["details"][0]), "tables_row", "details"),
        (lambda t: t["ceilings"][0].update(posture="shared-uid"), "tables_row", "either"),
        (lambda t: t["ceilings"][0].pop("agent"), "tables_row", "either"),
        (lambda t: t["ceilings"][0].update(agent="/agents/re*"), "tables_row", "agent"),
        (lambda t: t["ceilings"][0].update(scopes=["*"]), "tables_unknown", r"\*"),
        (lambda t: t["ceilings"][0].update(resource="mail"), "tables_unknown", "mail"),
        (lambda t: t["transmitters"][0].update(strongest="delete"), "tables_row", "strongest"),
        (lambda t: t["transmitters"][0].update(people=False, subjects=[]), "tables_row", "nobody"),
        (lambda t: t["operators"][1].update(who="server"), "tables_twice", "server"),
        (lambda t: t["operators"][1].update(who="uid:007"), "tables_row", "who"),
        (lambda t: t["operators"][1].update(roles=[]), "tables_row", "roles"),
        (lambda t: t["operators"][1].update(name="Night\n"), "tables_row", "name"),
    ],
)
def test_a_row_that_says_too_much_or_too_little_is_refused(
    change: Callable[[dict[str, list[dict[str, Any]]]], object], reason: str, word: str
) -> None:
    with pytest.raises(PolicyError, match=word) as caught:
        parsed(change)
    assert caught.value.reason == reason


@pytest.mark.parametrize("text", ["[[operators]", "a = 1\na = 2", "a = " + "[" * 30_000, "x = 1e999999", "\ufeffa = 1"])
def test_what_is_not_toml_is_refused(text: str) -> None:
    assert refused(lambda: parse(text)).reason in {"tables_syntax", "tables_row"}


@pytest.mark.parametrize("credential", sorted(CREDENTIAL_LIMITS))
def test_no_table_outlives_the_limit_of_a_credential(credential: str) -> None:
    limit = CREDENTIAL_LIMITS[credential]
    row = {"name": "x", "credential": credential, "seconds": limit}
    assert Tables(parse(write_tables({"lifetimes": [row]})), "t").rows.lifetimes[0].seconds == limit
    assert refused(lambda: parse(write_tables({"lifetimes": [{**row, "seconds": limit + 1}]}))).reason == "tables_row"


def test_the_shortest_lifetime_wins_and_is_named() -> None:
    assert (TABLES.lifetime("access-token", "node-uid").seconds, TABLES.lifetime("access-token").seconds) == (600, 600)
    capped = TABLES.lifetime("access-token", "shared-uid")
    assert (capped.seconds, capped.row) == (300, "lifetimes.token-shared-uid")
    generous = parsed(lambda t: t["lifetimes"][2].update(seconds=3600)).lifetime("access-token", "shared-uid")
    assert (generous.seconds, generous.row) == (600, "lifetimes.token")


def test_a_credential_without_a_row_has_no_lifetime() -> None:
    assert refused(lambda: TABLES.lifetime("wit", "node-uid")).code == "policy.lifetime"
    assert refused(lambda: TABLES.lifetime("access-token", "root-uid")).code == "policy.posture"
    only_narrow = parsed(lambda t: t["lifetimes"].pop(1))
    assert refused(lambda: only_narrow.lifetime("access-token", "shared-uid")).code == "policy.lifetime"


def test_the_lowest_ceiling_wins_and_says_which_row_cut() -> None:
    writer = TABLES.ceiling(WRITER, "node-uid", "notes-oauth")
    assert writer.scopes == {"notes:read", "notes:write", "notes:purge"}
    reader = TABLES.ceiling(READER, "node-uid", "notes-oauth")
    assert reader.scopes == {"notes:read", "notes:purge"}
    assert reader.cut == {"notes:write": "ceilings.reader-at-notes"}
    shared = TABLES.ceiling(WRITER, "shared-uid", "notes-oauth")
    assert shared.scopes == {"notes:read"}
    assert shared.cut == {"notes:write": "ceilings.shared-at-notes", "notes:purge": "postures.shared-uid"}
    reader.require({"notes:read", "notes:purge"})
    assert "ceilings.reader-at-notes" in refused(lambda: reader.require({"notes:read", "notes:write"})).detail
    assert "resources.notes-oauth" in refused(lambda: reader.require({"notes:read", "mail:read"})).detail


def test_empty_means_nothing() -> None:
    reader = TABLES.ceiling(READER, "node-uid", "notes-oauth")
    assert refused(lambda: reader.require(())).code == "policy.ceiling"
    stranger = TABLES.ceiling(SpiffeId.parse("spiffe://local.test/services/x"), "node-uid", "notes-oauth")
    assert (stranger.scopes, stranger.rows) == (frozenset(), ())
    assert refused(lambda: stranger.require({"notes:read"})).code == "policy.ceiling"
    foreign = TABLES.ceiling(SpiffeId.parse("spiffe://other.test/agents/reader"), "node-uid", "notes-oauth")
    assert foreign.scopes == frozenset()
    emptied = parsed(lambda t: t["ceilings"][1].update(scopes=[])).ceiling(READER, "node-uid", "notes-oauth")
    assert emptied.scopes == frozenset()
    without_agents = parsed(lambda t: t.update(ceilings=t["ceilings"][2:]))
    assert without_agents.ceiling(READER, "shared-uid", "notes-oauth").scopes == frozenset()
    nothing = Tables(parse(""), "local.test")
    assert refused(lambda: nothing.lifetime("x509-svid")).code == "policy.lifetime"
    assert refused(lambda: nothing.identifier("agent", READER)).code == "policy.identifier"
    assert nothing.roles(0, "root", 0) == (frozenset(), ())


SCOPES = ("a", "b", "c", "d")
LISTS = st.lists(st.sampled_from(SCOPES), unique=True)


@given(st.lists(LISTS, max_size=3), st.lists(LISTS, max_size=1), LISTS, st.booleans())
def test_a_ceiling_is_what_all_its_rows_share(
    agents: list[list[str]], postures: list[list[str]], high: list[str], allows_high: bool
) -> None:
    patterns = ("/agents/*", "/agents/reader", "/*/reader")
    resource = {"name": "r", "url": "https://r", "peer": "/r", "profile": "bearer", "audiences": ["r"]}
    tables: dict[str, list[dict[str, Any]]] = {
        "postures": [{"name": "p", "high": allows_high, "delegation": False}],
        "resources": [{**resource, "scopes": list(SCOPES), "high": high}],
        "ceilings": [
            *({"name": f"a{i}", "agent": patterns[i], "resource": "r", "scopes": own} for i, own in enumerate(agents)),
            *({"name": "p", "posture": "p", "resource": "r", "scopes": own} for own in postures),
        ],
    }
    ceiling = Tables(parse(write_tables(tables)), "local.test").ceiling(READER, "p", "r")
    expected = set(SCOPES) if agents else set()
    for row in (*agents, *postures):
        expected &= set(row)
    if not allows_high:
        expected -= set(high)
    assert ceiling.scopes == expected
    assert set(ceiling.cut) == set(SCOPES) - expected


def test_unknown_names_are_refused() -> None:
    assert refused(lambda: TABLES.ceiling(READER, "root-uid", "notes-oauth")).code == "policy.posture"
    assert refused(lambda: TABLES.ceiling(READER, "node-uid", "mail")).code == "policy.resource"
    assert refused(lambda: TABLES.resource("mail")).code == "policy.resource"
    assert refused(lambda: TABLES.resource_for("https://localhost:9443/mcp/")).code == "policy.resource"
    assert refused(lambda: TABLES.require_delegation("root-uid")).code == "policy.posture"


def test_delegation_depends_on_the_posture() -> None:
    TABLES.require_delegation("node-uid")
    error = refused(lambda: TABLES.require_delegation("shared-uid"))
    assert (error.code, error.detail) == ("policy.delegation", "postures.shared-uid")


def test_a_resource_is_found_by_its_audience_and_knows_its_peer() -> None:
    resource = TABLES.resource_for("urn:example:notes")
    assert (resource.name, resource.profile, resource.max_stale) == ("notes-oauth", "oauth-bound", 5)
    assert TABLES.peer(resource) == SpiffeId.parse("spiffe://local.test/services/notes")
    foreign = parsed(lambda t: t["resources"][0].update(peer="spiffe://other.test/services/notes"))
    assert foreign.peer(foreign.resource("notes")) == SpiffeId.parse("spiffe://other.test/services/notes")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("service", "spiffe://local.test/agents/reader"),
        ("agent", "spiffe://other.test/agents/reader"),
        ("agent", "spiffe://local.test/agents/reader/sub/x"),
        ("agent", "spiffe://local.test"),
        ("agent", "spiffe://local.test/agents"),
        ("agent", "spiffe://local.test/Agents/reader"),
        ("node", "spiffe://local.test/nodes/n"),
    ],
)
def test_only_listed_namespaces_can_be_registered(kind: str, name: str) -> None:
    assert TABLES.identifier("agent", READER).name == "agents"
    assert refused(lambda: TABLES.identifier(kind, SpiffeId.parse(name))).code == "policy.identifier"


def test_a_star_is_one_segment() -> None:
    def fits(pattern: str, name: str) -> bool:
        return matches(pattern, SpiffeId.parse(name), OWN)

    assert fits("/a/*/c", "spiffe://t/a/b/c")
    assert not fits("/a/*/c", "spiffe://t/a/b/x/c")
    assert not fits("/a/*", "spiffe://t/a")
    assert not fits("/*", "spiffe://t")
    assert fits("spiffe://u/a", "spiffe://u/a")
    assert fits("spiffe://u/*", "spiffe://u/a")
    assert not fits("spiffe://u/*", "spiffe://t/u")
    assert not fits("/a", "spiffe://u/a")


def test_a_purpose_needs_every_scope_at_its_resource() -> None:
    both = {"notes:read", "notes:write", "other"}
    row = TABLES.purpose("notes:share", "notes-oauth", both)
    assert (row.name, row.lifetime, row.single_use) == ("share-note", 60, True)
    for call in (
        lambda: TABLES.purpose("notes:share", "notes-oauth", {"notes:read"}),
        lambda: TABLES.purpose("notes:share", "notes-oauth", ()),
        lambda: TABLES.purpose("notes:share", "notes", both),
        lambda: TABLES.purpose("notes:erase", "notes-oauth", both),
    ):
        assert refused(call).code == "policy.purpose"


@pytest.mark.parametrize(
    "change",
    [
        {"note": None},
        {"note": ""},
        {"note": "x" * 65},
        {"note": 3},
        {"note": "a\u202eb"},
        {"note": "a\nb"},
        {"note": "\x07"},
        {"note\u202e": "x"},
        {"copies": 0},
        {"copies": 11},
        {"copies": True},
        {"copies": 1.0},
        {"copies": "1"},
        {"access": "admin"},
        {"access": ["read"]},
        {"notify": 1},
        {"notify": "true"},
        {"more": "x"},
        {"Note": "x"},
    ],
)
def test_request_details_fit_their_purpose_member_for_member(change: dict[str, object]) -> None:
    purpose = TABLES.rows.purposes[0]
    good: dict[str, object] = {"note": "n1", "copies": 10, "access": "read", "notify": False}
    check_details(purpose, good)
    check_details(purpose, {"note": "n1", "copies": 1})
    assert refused(lambda: check_details(purpose, {**good, **change})).code == "policy.details"
    assert refused(lambda: check_details(purpose, {"note": "n1"})).code == "policy.details"


def test_a_transmitter_stays_inside_its_authority() -> None:
    assert TABLES.transmitter(SIGNALS, REVOKED, READER, "suspend").per_minute == 60
    assert TABLES.transmitter(SIGNALS, REVOKED, None, "record").name == "partner"
    no_people = parsed(lambda t: t["transmitters"][0].update(people=False))
    for call in (
        lambda: TABLES.transmitter(SIGNALS, REVOKED, READER, "retire"),
        lambda: TABLES.transmitter(SIGNALS, REVOKED, SpiffeId.parse("spiffe://local.test/services/notes"), "record"),
        lambda: TABLES.transmitter(SIGNALS, REVOKED, SpiffeId.parse("spiffe://other.test/agents/reader"), "record"),
        lambda: TABLES.transmitter(SIGNALS, REVOKED + "x", READER, "record"),
        lambda: TABLES.transmitter(SIGNALS + "/", REVOKED, READER, "record"),
        lambda: no_people.transmitter(SIGNALS, REVOKED, None, "record"),
    ):
        assert refused(call).code == "policy.transmitter"


def test_roles_come_from_the_rows_that_name_the_peer() -> None:
    assert TABLES.roles(1000, "carol", 1000) == (frozenset({"operator"}), ("operators.server-user",))
    assert TABLES.roles(1001, "", 1000) == (frozenset({"auditor"}), ("operators.night-shift",))
    assert TABLES.roles(1002, "alice", 1000)[0] == {"auditor", "operator"}
    assert TABLES.roles(1002, "server", 1000) == (frozenset(), ())
    assert TABLES.roles(0, "root", 1000) == (frozenset(), ())
