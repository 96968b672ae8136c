"""The rows of ``aims resource``: who may stand behind one, and how one is taken out of text that people wrote."""

from __future__ import annotations

from typing import Any

import pytest

from aims.cli import resource
from aims.cli.errors import CliError

TABLES = """# the head
[[resources]]
name = "one"
url = "https://localhost:1/mcp"  # where

# about two
[[resources]]
name = "two"
url = "https://localhost:2/mcp"

# the end
[[remedies]]
name = "other"
"""
WORKLOADS = [
    {"name": "tool", "kind": "service", "state": "active"},
    {"name": "robot", "kind": "agent", "state": "active"},
    {"name": "gone", "kind": "service", "state": "retired"},
]


def test_one_resource_is_taken_out_and_all_else_stays() -> None:
    assert "https://localhost:1/mcp" not in resource.without(TABLES, "one")
    assert [row["name"] for row in resource.rows(resource.without(TABLES, "one"))] == ["two"]
    neither = resource.without(resource.without(TABLES, "two"), "one")
    assert resource.rows(neither) == []
    assert all(line in neither for line in ("# the head", "# about two", "# the end", 'name = "other"'))
    with pytest.raises(CliError) as refused:
        resource.without(TABLES, "other")
    assert refused.value.code == "cli.unknown"
    with pytest.raises(CliError) as refused:
        resource.without('resources = [{name = "one"}, {name = "two"}]\n', "one")
    assert refused.value.code == "cli.argument"


@pytest.mark.parametrize(
    ("name", "said"),
    [("nobody", "aims agent list"), ("gone", "aims agent list"), ("robot", "--service")],
)
def test_only_a_registered_service_stands_behind_a_resource(name: str, said: str) -> None:
    resource.require_service(WORKLOADS, "tool")
    with pytest.raises(CliError) as refused:
        resource.require_service(WORKLOADS, name)
    assert said in refused.value.detail


@pytest.mark.parametrize(
    ("name", "url", "said"),
    [("one", "http://localhost:9/mcp", "https://"), ("one", "https://localhost:9/mcp", "aims resource remove one")],
)
def test_a_resource_that_cannot_be_added_changes_nothing(
    name: str, url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(_: object, __: str, method: str, path: str, ___: object = None) -> Any:
        assert method == "GET"
        return WORKLOADS if path.endswith("agents") else {"files": {"tables.toml": TABLES}, "version": "v"}

    monkeypatch.setattr(resource, "call", call)
    with pytest.raises(CliError) as refused:
        resource.add(name, url=url, service="tool")
    assert said in refused.value.detail
