"""Every bundle that differs from a given one by a single missing rule or table row.

A policy in which something can be taken away unnoticed holds something that nobody uses. Whoever runs the whole system
with each of these bundles must see a step fail.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

import cedarpy

from aims.policy.bundle import TABLES, Bundle

REFERENCES = {"resources": "resource", "postures": "posture"}
"""Tables whose rows others name, and the column in which they do."""


def mutations(bundle: Bundle) -> Iterator[tuple[str, Bundle]]:
    """Yield ``(name, bundle without that rule or row)``: ``rule ID`` and ``TABLE.ROW``.

    Rows that name a removed row go with it, so that the rest still loads. A rule that is the only one of the bundle is
    not yielded, because a bundle without rules cannot exist. The comments of a changed file are lost.
    """
    for file, content in bundle.files.items():
        if file.endswith(".cedar"):
            for rule, rest in _without_each_rule(content.decode()):
                if len(bundle.rules.effects) > 1:
                    yield f"rule {rule}", Bundle.from_files({**bundle.files, file: rest.encode()})
    tables: dict[str, list[dict[str, Any]]] = tomllib.loads(bundle.files[TABLES].decode())
    for table, rows in tables.items():
        for row in rows:
            rest = write_tables(_without_row(tables, table, row["name"]))
            yield f"{table}.{row['name']}", Bundle.from_files({**bundle.files, TABLES: rest.encode()})


def _without_each_rule(text: str) -> Iterator[tuple[str, str]]:
    document = json.loads(cedarpy.policies_to_json_str(text))
    for key, rule in document["staticPolicies"].items():
        rest = {other: value for other, value in document["staticPolicies"].items() if other != key}
        yield (
            rule["annotations"]["id"],
            cedarpy.policies_from_json_str(json.dumps({**document, "staticPolicies": rest})),
        )


def _without_row(tables: dict[str, list[dict[str, Any]]], table: str, name: str) -> dict[str, list[dict[str, Any]]]:
    column = REFERENCES.get(table)
    return {
        other: [
            row
            for row in rows
            if not (other == table and row["name"] == name)
            and not (column and other != table and row.get(column) == name)
        ]
        for other, rows in tables.items()
    }


def write_tables(tables: dict[str, list[dict[str, Any]]]) -> str:
    """Write tables as TOML, one block for each row, as people write them."""
    blocks = [
        "\n".join([f"[[{table}]]", *(f"{_key(column)} = {_value(value)}" for column, value in row.items()), ""])
        for table, rows in tables.items()
        for row in rows
    ]
    empty = [f"{_key(table)} = []\n" for table, rows in tables.items() if not rows]
    return "\n".join([*empty, *blocks])


def _key(column: str) -> str:
    return column if column.replace("_", "").isalnum() and column.isascii() else json.dumps(column)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(member)}" for key, member in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool | int | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    raise TypeError(f"tables hold no {type(value).__name__}")
