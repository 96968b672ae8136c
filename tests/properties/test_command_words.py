"""What commands say to a person beyond the refusal itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aims.cli.agent_life import _otherwise
from aims.cli.registry import _profile


def test_a_remedy_that_changed_nothing_names_the_state() -> None:
    assert _otherwise("resume", "already") == "is active already"
    assert _otherwise("suspend", "already") == "is suspended already"
    assert "newer" in _otherwise("resume", "stale")


def test_code_beside_a_script_that_is_not_measured_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "project"
    (folder / "package").mkdir(parents=True)
    for name in ("agent.py", "helper.py", "package/__init__.py"):
        (folder / name).write_text("")
    monkeypatch.chdir(folder)
    command = (str(Path(sys.executable).resolve()), "agent.py")
    assert _profile(command, None, more_arguments=False, unmeasured=False)
    warned = capsys.readouterr().err
    assert "helper.py, package;" in warned
    assert "--root ." in warned
    assert _profile(command, [Path()], more_arguments=False, unmeasured=False)
    assert capsys.readouterr().err == ""
