"""The Cedar side of a bundle: parse the rules, name them by their ``@id``, hold them against the schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cedarpy
import msgspec

from aims.policy.errors import PolicyError
from aims.policy.question import ACTIONS

MAX_RULES = 1024
MAX_DEPTH = 32
MAX_CHAIN = 16
MAX_STATEMENT = 4096
_RULE_ID = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_STRING_OR_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*+"?|//[^\n]*+', re.DOTALL)
_LONG_CHAIN = re.compile(rf"(?:\.[A-Za-z_][A-Za-z0-9_]*){{{MAX_CHAIN + 1}}}")
_BRACKET = re.compile(r"[()\[\]{}<>]")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules that fit their schema, ready to be evaluated, with what an explanation needs."""

    policies: cedarpy.PolicySet
    schema: cedarpy.Schema
    effects: Mapping[str, str]
    """``permit`` or ``forbid`` by rule id."""
    permits: Mapping[str, tuple[str, ...]]
    """Ids of the permits that can speak about an action, by action."""


def check_depth(name: str, text: str) -> None:
    """Refuse (``policy.bundle_size``) text that Cedar's parser could fall over.

    Cedar parses by recursion and without a limit of its own: some thousand brackets or operators in one expression end
    the process, and long chains of members take minutes. Strings and comments do not count, spaces neither.
    """
    bare = _SPACE.sub("", _STRING_OR_COMMENT.sub(lambda found: " " if found[0].startswith("/") else '""', text))
    depth = 0
    for character in _BRACKET.findall(bare if name.endswith("schema") else bare.replace("<", "").replace(">", "")):
        depth = depth + 1 if character in "([{<" else max(0, depth - 1)
        if depth > MAX_DEPTH:
            raise PolicyError("bundle_size", f"{name} nests deeper than {MAX_DEPTH}")
    if max(map(len, bare.split(";"))) > MAX_STATEMENT:
        raise PolicyError("bundle_size", f"{name} has a statement of more than {MAX_STATEMENT} characters")
    if _LONG_CHAIN.search(bare):
        raise PolicyError("bundle_size", f"{name} chains more than {MAX_CHAIN} members")


def load(schema_text: str, files: Mapping[str, str]) -> Rules:
    """Parse and validate; ``files`` are the policy texts by file name.

    1. The schema is read. 2. Each file is parsed; templates are refused. 3. Every rule has an ``@id``, used once.
    4. Every file is held against the schema in Cedar's strict mode. 5. At least one rule is there.

    Raises:
        PolicyError: ``bundle_size``, ``schema``, ``rule_syntax``, ``rule_template``, ``rule_id``, ``rule_invalid`` or
            ``empty``.
    """
    # 1
    check_depth("policy.cedarschema", schema_text)
    try:
        schema = cedarpy.Schema.from_str(schema_text)
    except ValueError as error:
        raise PolicyError("schema", str(error)) from error
    rules: dict[str, dict[str, Any]] = {}
    for name, text in sorted(files.items()):
        # 2, 3
        for rule_id, rule in _parse(name, text):
            if rule_id in rules:
                raise PolicyError("rule_id", f"{name}: @id {rule_id!r} is used twice")
            rules[rule_id] = rule
        # 4
        result = cedarpy.validate_policies(text, schema)
        if not result.validation_passed:
            raise PolicyError(
                "rule_invalid", f"{name}: " + "; ".join(_complaint(result, one) for one in result.errors[:5])
            )
    # 5
    if not rules:
        raise PolicyError("empty")
    if len(rules) > MAX_RULES:
        raise PolicyError("bundle_size", f"more than {MAX_RULES} rules")
    document = {"templates": {}, "staticPolicies": rules, "templateLinks": []}
    try:
        policies = cedarpy.PolicySet.from_json_str(msgspec.json.encode(document).decode())
    except ValueError as error:
        raise PolicyError("rule_syntax", str(error)) from error
    return Rules(
        policies,
        schema,
        {rule_id: str(rule["effect"]) for rule_id, rule in rules.items()},
        {action: tuple(sorted(i for i, rule in rules.items() if _permits(rule, action))) for action in ACTIONS},
    )


def _parse(name: str, text: str) -> list[tuple[str, dict[str, Any]]]:
    check_depth(name, text)
    try:
        document = msgspec.json.decode(cedarpy.policies_to_json_str(text))
    except (ValueError, msgspec.DecodeError) as error:
        raise PolicyError("rule_syntax", f"{name}: {error}") from error
    except RecursionError as error:
        raise PolicyError("bundle_size", f"{name} has an expression that is too deep") from error
    if document["templates"] or document["templateLinks"]:
        raise PolicyError("rule_template", name)
    found = []
    for rule in document["staticPolicies"].values():
        rule_id = rule.get("annotations", {}).get("id")
        if not isinstance(rule_id, str) or not _RULE_ID.fullmatch(rule_id):
            raise PolicyError("rule_id", f"{name}: @id {rule_id!r}")
        found.append((rule_id, rule))
    return found


def _complaint(result: cedarpy.ValidationResult, error: cedarpy.ValidationError) -> str:
    rule = result.id_annotations_by_policy_id.get(error.policy_id, error.policy_id)
    return f"rule {rule}: {error.error}"


def _permits(rule: Mapping[str, Any], action: str) -> bool:
    """Whether a permit's action clause can speak about ``action``; a group of actions is taken to hold every action."""
    if rule["effect"] != "permit":
        return False
    clause = rule["action"]
    if clause["op"] == "All":
        return True
    named = clause["entities"] if "entities" in clause else [clause["entity"]]
    ids = {str(entity["id"]) for entity in named}
    return action in ids or bool(ids - ACTIONS)
