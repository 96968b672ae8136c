"""The status of every error that a listener turns into an answer, and the commands that hints name."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import aims
from aims.audit.errors import AuditError
from aims.cli.main import app
from aims.errors import catalogue
from aims.server.errors import ServerError
from aims.server.http import STATUS, error_answer
from aims.storage.errors import StorageError

COMMAND = re.compile(r"`aims((?: [a-z][a-z-]+)+)")


@pytest.fixture(autouse=True, scope="module")
def _every_reason() -> None:
    """Know every table of reasons, whichever modules other tests have imported."""
    for file in Path(aims.__file__).parent.rglob("*errors.py"):
        importlib.import_module(".".join(("aims", *file.relative_to(Path(aims.__file__).parent).with_suffix("").parts)))


def test_every_status_belongs_to_a_reason_that_exists() -> None:
    assert set(STATUS) <= {code for code, _ in catalogue()}


@pytest.mark.parametrize("reason", ["busy", "unreachable", "full", "io", "read_only", "closed", "unknown", "internal"])
def test_trouble_of_the_store_is_not_the_callers_fault(reason: str) -> None:
    answer = error_answer(StorageError(reason, "secret path"))
    assert answer.status == 503
    assert (b"retry-after", b"1") in answer.headers
    assert b"secret" not in answer.body


def test_a_log_that_cannot_be_written_is_not_the_callers_fault() -> None:
    assert error_answer(AuditError(next(iter(AuditError.reasons)))).status == 503


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StorageError("conflict"), 409),
        (StorageError("replayed"), 409),
        (StorageError("stopped"), 403),
        (ServerError("route"), 404),
        (ServerError("body"), 400),
    ],
)
def test_what_the_caller_can_mend_is_no_503(error: ServerError | StorageError, status: int) -> None:
    answer = error_answer(error)
    assert answer.status == status
    assert not answer.headers


def test_hints_name_commands_that_exist() -> None:
    named = [
        (code, found[1].split())
        for code, entry in catalogue()
        for found in COMMAND.finditer(f"{entry.sentence} {entry.hint}")
    ]
    assert len(named) > 20
    for code, (noun, *verb) in named:
        assert noun in app, f"{code}: aims {noun}"
        verbs = [name for name in app[noun] if not name.startswith("-")]
        if verb and verbs:
            assert verb[0] in verbs, f"{code}: aims {noun} {verb[0]}"
