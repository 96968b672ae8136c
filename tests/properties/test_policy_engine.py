"""Decisions: pairs of questions that differ in one named thing, the ways Cedar fails, and hostile names."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cedarpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.mutations import mutations

from aims.policy.bundle import Bundle
from aims.policy.engine import Engine
from aims.policy.errors import PolicyError
from aims.policy.question import Action, Decision, Entity, Fact, Question

EXAMPLE = Path(__file__).parents[1] / "vectors" / "policy" / "example"
FILES = {path.name: path.read_bytes() for path in EXAMPLE.iterdir()}
ENGINE = Engine(Bundle.from_files(FILES))
SHIPPED = Engine(Bundle.shipped())

READER = Entity("Agent", "spiffe://local.test/agents/reader", {"owner": "team-a"})
ORPHAN = Entity("Agent", "spiffe://local.test/agents/orphan")
TOOL = Entity("Resource", "notes-oauth", {"kind": "tool"})
ROUTE = Entity("Resource", "agent.register", {"kind": "admin-route", "writes": True})
LOOK = Entity("Resource", "agent.list", {"kind": "admin-route", "writes": False})
CREDENTIAL = Entity("Resource", "x509-svid", {"kind": "credential"})
PURPOSE = Entity("Resource", "notes:share", {"kind": "purpose"})
ALICE = Entity("Person", "person:alice")
BOB = Entity("Person", "person:bob")
ISSUE: dict[str, Fact] = {"node": "spiffe://local.test/nodes/n", "posture": "node-uid"}
TOKEN: dict[str, Fact] = {
    "grant": "none",
    "posture": "node-uid",
    "scopes": ("notes:read",),
    "bound": True,
}
EXCHANGE: dict[str, Fact] = {"subject": "person:alice", "posture": "node-uid", "scopes": ("notes:read",), "actors": 4}
TRANSACT: dict[str, Fact] = {"subject": "person:alice", "posture": "node-uid", "scopes": ("notes:read",)}
CALL: dict[str, Fact] = {"profile": "wimse", "scopes": (), "actors": 1}


def operator(*roles: str) -> Entity:
    return Entity("Operator", "os:1000", {"roles": roles})


def ask(
    principal: Entity, action: Action, resource: Entity, context: Mapping[str, Fact], engine: Engine = ENGINE
) -> Decision:
    return engine.decide(Question(principal=principal, action=action, resource=resource, context=context))


def with_rule(rule: str) -> Engine:
    return Engine(Bundle.from_files({**FILES, "more.cedar": rule.encode()}))


class Pair(NamedTuple):
    """An allowed question with the rule that allows it, and the one thing that turns the answer."""

    principal: Entity
    action: Action
    resource: Entity
    context: dict[str, Fact]
    rule: str
    other: dict[str, Any]
    code: str = "policy.denied"


BOSS, PARTNER = operator("operator"), operator("transmitter")
SUSPEND: dict[str, Fact] = {"effect": "suspend", "cause": "x"}
FREE: dict[str, Fact] = {"launched": False}
SILENT = Entity("Resource", "agent.list", {"kind": "admin-route"})
PAIRS = [
    Pair(READER, "issue", CREDENTIAL, ISSUE, "issue_listed_posture", {"posture": "unmeasured"}),
    Pair(READER, "issue", CREDENTIAL, ISSUE, "issue_listed_posture", {"resource": TOOL}),
    Pair(READER, "token", TOOL, TOKEN, "token_bound", {"bound": False}),
    Pair(READER, "token", TOOL, TOKEN, "token_bound", {"resource": CREDENTIAL}),
    Pair(READER, "exchange", TOOL, EXCHANGE, "exchange_short_chain", {"actors": 5}),
    Pair(READER, "exchange", TOOL, EXCHANGE, "exchange_short_chain", {"scopes": ()}),
    Pair(READER, "exchange", ORPHAN, EXCHANGE, "exchange_short_chain", {"resource": PURPOSE}),
    Pair(READER, "transact", PURPOSE, TRANSACT, "transact_purpose", {"scopes": ()}),
    Pair(READER, "call", TOOL, CALL, "call_tool", {"resource": ROUTE}),
    Pair(READER, "call", TOOL, {**CALL, "profile": "bearer"}, "call_tool", {"principal": ORPHAN}, "policy.forbidden"),
    Pair(ORPHAN, "call", TOOL, CALL, "call_tool", {"profile": "bearer"}, "policy.forbidden"),
    Pair(BOSS, "stop", READER, {**SUSPEND, "effect": "retire"}, "operator_stops", {"principal": PARTNER}),
    Pair(PARTNER, "stop", READER, SUSPEND, "transmitter_stops", {"effect": "retire"}),
    Pair(ALICE, "stop", ALICE, {**SUSPEND, "effect": "revoke"}, "person_revokes_own", {"principal": BOB}),
    Pair(BOSS, "administer", ROUTE, FREE, "operator_administers", {"launched": True}, "policy.forbidden"),
    Pair(BOSS, "administer", ROUTE, FREE, "operator_administers", {"principal": operator()}),
    Pair(operator("auditor"), "administer", LOOK, FREE, "auditor_reads", {"resource": ROUTE}),
    Pair(operator("auditor"), "administer", LOOK, FREE, "auditor_reads", {"resource": SILENT}),
    Pair(operator("auditor"), "administer", LOOK, FREE, "auditor_reads", {"launched": True}, "policy.forbidden"),
]


@pytest.mark.parametrize("pair", PAIRS)
def test_one_changed_thing_turns_the_answer(pair: Pair) -> None:
    allowed = ask(pair.principal, pair.action, pair.resource, pair.context)
    assert (allowed.allow, allowed.code, allowed.rules) == (True, "policy.allowed", (pair.rule,))
    other = dict(pair.other)
    principal, resource = other.pop("principal", pair.principal), other.pop("resource", pair.resource)
    refused = ask(principal, pair.action, resource, {**pair.context, **other})
    assert (refused.allow, refused.code) == (False, pair.code)
    assert allowed.policy == refused.policy == ENGINE.version
    allowed.require()
    with pytest.raises(PolicyError) as caught:
        refused.require()
    assert caught.value.code == pair.code


def answers(pair: Pair, engine: Engine) -> tuple[bool, bool]:
    other = dict(pair.other)
    principal, resource = other.pop("principal", pair.principal), other.pop("resource", pair.resource)
    return (
        ask(pair.principal, pair.action, pair.resource, pair.context, engine).allow,
        ask(principal, pair.action, resource, {**pair.context, **other}, engine).allow,
    )


def test_without_any_one_rule_a_pair_comes_out_otherwise() -> None:
    assert {answers(pair, ENGINE) for pair in PAIRS} == {(True, False)}
    rules = [mutation for mutation in mutations(Bundle.from_files(FILES)) if mutation[0].startswith("rule ")]
    unnoticed = [name for name, mutant in rules if {answers(pair, Engine(mutant)) for pair in PAIRS} == {(True, False)}]
    assert len(rules) == len(Bundle.from_files(FILES).rules.effects)
    assert not unnoticed


def test_the_shipped_policy_knows_the_operator_and_nobody_else() -> None:
    free: dict[str, Fact] = {"launched": False}
    assert ask(operator("operator"), "administer", ROUTE, free, SHIPPED).rules == ("operator_administers",)
    assert ask(operator("operator"), "administer", LOOK, free, SHIPPED).allow
    assert ask(operator("Operator"), "administer", ROUTE, free, SHIPPED).code == "policy.denied"
    assert ask(operator(), "administer", LOOK, free, SHIPPED).code == "policy.denied"
    assert ask(operator("operator"), "administer", TOOL, free, SHIPPED).code == "policy.denied"
    launched = ask(operator("operator"), "administer", ROUTE, {"launched": True}, SHIPPED)
    assert (launched.code, launched.rules) == ("policy.forbidden", ("admin_from_agent",))
    assert "admin_from_agent" in launched.explanation


def test_an_action_without_a_rule_is_told_apart_from_one_whose_rules_do_not_apply() -> None:
    without_agents = {name: content for name, content in FILES.items() if name != "agents.cedar"}
    missing = ask(READER, "token", TOOL, TOKEN, Engine(Bundle.from_files(without_agents)))
    assert (missing.allow, missing.code, missing.rules) == (False, "policy.no_rule", ())
    assert "token" in missing.explanation
    denied = ask(READER, "token", TOOL, {**TOKEN, "bound": False})
    assert "token_bound" in denied.explanation
    assert "operator_administers" not in denied.explanation


OVERFLOW = (
    '@id("broken") forbid (principal, action == AIMS::Action::"call", resource)'
    " when { context.actors + 9223372036854775807 > 5 };"
)


def test_a_forbid_that_raises_refuses_although_cedar_allows() -> None:
    engine = with_rule(OVERFLOW)
    context = {"profile": "wimse", "scopes": [], "actors": 3}
    raw = cedarpy.is_authorized(
        {
            "principal": {"type": "AIMS::Agent", "id": READER.id},
            "action": {"type": "AIMS::Action", "id": "call"},
            "resource": {"type": "AIMS::Resource", "id": TOOL.id},
            "context": context,
        },
        (FILES["agents.cedar"].decode() + OVERFLOW),
        [
            {"uid": {"type": "AIMS::Agent", "id": READER.id}, "attrs": {"owner": "team-a"}, "parents": []},
            {"uid": {"type": "AIMS::Resource", "id": TOOL.id}, "attrs": {"kind": "tool"}, "parents": []},
        ],
    )
    assert raw.allowed  # what the engine below would say if it were believed
    refused = ask(READER, "call", TOOL, {**CALL, "actors": 3}, engine)
    assert (refused.allow, refused.code, refused.rules) == (False, "policy.evaluation", ("broken",))
    assert "broken" in refused.explanation
    assert "broken" in refused.detail
    assert ask(READER, "call", TOOL, {**CALL, "actors": 0}, engine).code == "policy.forbidden"
    assert ask(READER, "call", TOOL, {**CALL, "actors": -3}, engine).code == "policy.forbidden"


def test_a_permit_that_raises_refuses_even_beside_one_that_allows() -> None:
    engine = with_rule(OVERFLOW.replace("forbid", "permit"))
    assert ask(READER, "call", TOOL, {**CALL, "actors": 3}, engine).code == "policy.evaluation"
    assert ask(READER, "call", TOOL, {**CALL, "actors": 0}, engine).rules == ("broken", "call_tool")


@pytest.mark.parametrize(
    ("principal", "resource", "context"),
    [
        (READER, TOOL, {}),
        (READER, TOOL, {key: value for key, value in TOKEN.items() if key != "bound"}),
        (READER, TOOL, {**TOKEN, "surprise": True}),
        (READER, TOOL, {**TOKEN, "bound": 1}),
        (READER, TOOL, {**TOKEN, "bound": "true"}),
        (READER, TOOL, {**TOKEN, "scopes": "notes:read"}),
        (READER, Entity("Resource", "notes-oauth"), TOKEN),
        (READER, Entity("Resource", "notes-oauth", {"kind": "tool", "more": 1}), TOKEN),
        (Entity("Agent", READER.id, {"owner": 3}), TOOL, TOKEN),
        (Entity("Agent", READER.id, {"owner": ("team-a",)}), TOOL, TOKEN),
        (operator("operator"), TOOL, TOKEN),
        (ALICE, TOOL, TOKEN),
        (READER, ORPHAN, TOKEN),
    ],
)
def test_a_question_that_does_not_fit_the_schema_is_refused(
    principal: Entity, resource: Entity, context: dict[str, Fact]
) -> None:
    assert ask(READER, "token", TOOL, TOKEN).allow
    refused = ask(principal, "token", resource, context)
    assert (refused.allow, refused.code) == (False, "policy.evaluation")
    assert refused.explanation == "The question does not fit the schema of the policy."
    assert "team-a" not in refused.explanation + repr(refused)


def test_one_entity_with_two_descriptions_is_refused() -> None:
    facts: dict[str, Fact] = {**EXCHANGE}
    assert ask(READER, "exchange", READER, facts).allow
    assert ask(READER, "exchange", Entity("Agent", READER.id, {"owner": "b"}), facts).code == "policy.evaluation"


INJECTIONS = [
    'x"',
    "x\ny",
    "x\\",
    'alice", "b": "',
    'x" || true || "',
    'AIMS::Operator::"os:1000"',
    '{"__entity": {"type": "AIMS::Operator", "id": "root"}}',
    '{"type":"AIMS::Operator","id":"root"}',
    "\x00",
    "\u202e\u2028ä",
    "\U0001f512",
    "//",
    "*",
]


@pytest.mark.parametrize("hostile", INJECTIONS)
def test_a_hostile_name_is_only_a_name(hostile: str) -> None:
    engine = with_rule(
        '@id("only_alice") forbid (principal, action == AIMS::Action::"call", resource)'
        ' unless { principal == AIMS::Agent::"alice" };'
    )
    assert ask(Entity("Agent", "alice"), "call", TOOL, CALL, engine).allow
    for refused in (
        ask(Entity("Agent", hostile), "call", TOOL, CALL, engine),
        ask(Entity("Agent", hostile), "call", Entity("Resource", hostile, {"kind": hostile}), CALL, engine),
        ask(Entity("Agent", hostile, {"owner": hostile}), "call", TOOL, {**CALL, "profile": hostile}, engine),
    ):
        assert not refused.allow
        assert "only_alice" in refused.rules
    assert not ask(operator(hostile), "administer", ROUTE, {"launched": False}).allow
    assert not ask(Entity("Operator", hostile, {"roles": ()}), "administer", ROUTE, {"launched": False}).allow


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_any_text_can_be_an_id_and_never_raises(name: str) -> None:
    decision = ask(Entity("Agent", name), "call", Entity("Resource", name, {"kind": "tool"}), CALL)
    assert decision.rules == ("call_tool",)
    administers = ask(Entity("Operator", name, {"roles": (name,)}), "administer", ROUTE, FREE, SHIPPED)
    assert administers.allow == (name == "operator")


ODD: Any = Entity
ODD_ACTION: Any = "fly"


@pytest.mark.parametrize(
    "build",
    [
        lambda: Entity("Agent", ""),
        lambda: Entity("Agent", "x" * 2049),
        lambda: Entity("Agent", "\ud800"),
        lambda: ODD("Robot", "x"),
        lambda: ODD("Agent", "x", {"owner": {"__entity": {"type": "AIMS::Operator", "id": "x"}}}),
        lambda: ODD("Agent", "x", {"owner": None}),
        lambda: ODD("Agent", "x", {"owner": 1.5}),
        lambda: ODD("Agent", "x", {"owner": 2**63}),
        lambda: ODD("Agent", "x", {"owner": "x" * 8193}),
        lambda: ODD("Agent", "x", {"owner": (1,)}),
        lambda: ODD("Agent", "x", {"owner": ("x",) * 513}),
        lambda: ODD("Agent", "x", {f"a{n}": 1 for n in range(65)}),
        lambda: Question(principal=READER, action=ODD_ACTION, resource=TOOL),
        lambda: Question(principal=READER, action="call", resource=TOOL, context={"\ud800": 1}),
    ],
)
def test_a_question_that_is_not_plain_does_not_exist(build: Any) -> None:
    with pytest.raises(PolicyError) as caught:
        build()
    assert caught.value.code == "policy.question"


def test_a_question_cannot_be_changed_after_it_was_made() -> None:
    facts: dict[str, Fact] = {"launched": True}
    question = Question(principal=operator("operator"), action="administer", resource=ROUTE, context=facts)
    facts["launched"] = False
    assert ENGINE.decide(question).code == "policy.forbidden"
    with pytest.raises(TypeError):
        question.context["launched"] = False  # type: ignore[index]  # the attempt is the test


def test_many_threads_get_the_same_answers_kept_or_fresh() -> None:
    questions = [
        Question(principal=READER, action="call", resource=TOOL, context={**CALL, "actors": n % 7, "profile": profile})
        for n in range(40)
        for profile in ("wimse", "bearer", "x" * 5000)
    ]
    expected = [Engine(Bundle.from_files(FILES)).decide(question) for question in questions[:3]] * 40
    engine = Engine(Bundle.from_files(FILES))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(engine.decide, questions))
    assert answers == expected


def test_equal_numbers_and_truth_values_are_not_confused_by_what_is_kept() -> None:
    engine = Engine(Bundle.from_files(FILES))
    assert ask(READER, "token", TOOL, {**TOKEN, "bound": True}, engine).allow
    assert ask(READER, "token", TOOL, {**TOKEN, "bound": 1}, engine).code == "policy.evaluation"
    assert ask(READER, "token", TOOL, {**TOKEN, "bound": True}, engine).allow
