"""A person in the audit: a commitment that says nothing once its row is gone."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from tests.flows.audit_log import opened, record

from aims.audit.errors import AuditError
from aims.audit.people import Pseudonym, agent_principal, erased, person, pseudonym

SUB = "person:" + "a" * 26


def test_a_commitment_is_the_hash_of_salt_and_subject() -> None:
    made = Pseudonym.make(SUB, b"s" * 16)
    expected = base64.urlsafe_b64encode(hashlib.sha256(b"s" * 16 + SUB.encode()).digest()).decode().rstrip("=")
    assert made.commitment == expected
    assert made != Pseudonym.make(SUB, b"t" * 16)
    assert SUB not in repr(made)
    assert made.principal == {"format": "commitment", "commitment": expected}
    assert agent_principal("spiffe://local.test/agents/a") == {"format": "uri", "uri": "spiffe://local.test/agents/a"}
    for sub, salt in ((SUB, b"short"), ("", b"s" * 16), ("x" * 256, b"s" * 16), ("\ud800", b"s" * 16)):
        with pytest.raises(AuditError, match="record_malformed"):
            Pseudonym.make(sub, salt)


def test_an_erased_person_cannot_be_traced_and_the_log_stays_valid(database_url: str, tmp_path: Path) -> None:
    made = Pseudonym.make(SUB, b"s" * 16)
    with opened(database_url, tmp_path / "log") as log:
        stored = made.stored()
        with log.engine.begin() as connection:
            connection.execute(stored.statement, dict(stored.parameters))
        log.commit("a" * 26, [record(1, principal=made.principal)])
        log.sequencer().step()
        with log.engine.begin() as connection:
            assert pseudonym(connection, SUB) == made
            assert person(connection, made.commitment) == SUB
            forgotten = erased(SUB)
            assert forgotten.must_match
            assert connection.execute(forgotten.statement, dict(forgotten.parameters)).rowcount == 1
        with log.engine.begin() as connection:
            assert person(connection, made.commitment) is None
            with pytest.raises(AuditError, match="person_unknown"):
                pseudonym(connection, SUB)
        entries = b"".join(log.entries())
        assert made.commitment.encode() in entries
        assert SUB.encode() not in entries
        assert log.verify().exit == 0
