"""Every refusal that exists can be explained, and says something that a person can act on."""

from __future__ import annotations

import re

import pytest

from aims.cli.errors import CliError
from aims.cli.explain import explain, reasons


def test_every_code_has_a_sentence_says_what_to_do_and_belongs_to_one_layer() -> None:
    known = reasons()
    assert len(known) > 200
    for code, reason in known.items():
        layer, dot, name = code.partition(".")
        assert dot
        assert layer.isidentifier()
        assert name
        assert reason.sentence.endswith("."), code
        # a citation alone is nothing that a person can do
        assert re.sub(r"RFC \d+[\d ,.]*", "", reason.hint).strip(), code


@pytest.mark.parametrize(
    "what", ["jose.crit", "crit", "JOSE.CRIT", "aims: jose.crit: A critical header, see example.org."]
)
def test_a_code_is_explained_with_or_without_its_layer(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    explain(what)
    assert "jose.crit" in capsys.readouterr().out


def test_an_unknown_code_names_what_is_near() -> None:
    with pytest.raises(CliError) as refused:
        explain("launch_mismach")
    assert refused.value.reason == "unknown"
    assert "launch_mismatch" in refused.value.detail
