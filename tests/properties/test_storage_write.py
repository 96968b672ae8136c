"""The values that are handed to the store."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.sql.dml import UpdateBase

from aims.storage.engine import Location
from aims.storage.errors import StorageError
from aims.storage.schema import once, stop
from aims.storage.statement import Compiler
from aims.storage.write import Change, Claim, Consume, Effect, Outcome, Verdict, Write

_TEXT = st.text(max_size=8)
_CLAIMS = st.builds(Claim, space=_TEXT, holder=_TEXT, id=_TEXT, expires=st.integers(0, 2**40 - 1))


@given(_CLAIMS, _CLAIMS)
def test_claims_share_a_key_only_if_they_are_equal(one: Claim, other: Claim) -> None:
    assert (one.key == other.key) == (one == other)
    if one.expires < other.expires:
        assert one.key < other.key
    # Moving a character over the border between two parts makes another claim.
    assert Claim("ab", "c", "d", 1).key != Claim("a", "bc", "d", 1).key


def _record(_: Outcome) -> bytes:
    return b"{}"


def test_only_a_consume_can_be_lost_and_its_loss_decides_nothing_more() -> None:
    effect = Effect(delete(once), {})
    with pytest.raises(ValueError, match="only a consume"):
        Write(record=_record, lost=(effect,))
    with pytest.raises(ValueError, match="only a consume"):
        Write(record=_record, lost_changes=(Change("k", "i", b"{}"),))
    with pytest.raises(ValueError, match="refused again"):
        Write(record=_record, consume=Consume("code", b"h"), lost=(Effect(delete(once), {}, must_match=True),))


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        (delete(stop).where(stop.c.id.in_(bindparam("ids", expanding=True))), {"ids": ["a"]}),
        (insert(once).returning(once.c.kind), {"kind": "a", "id_hash": b"", "expires": 1}),
    ],
)
def test_an_effect_that_a_raw_cursor_cannot_run_is_refused(
    statement: UpdateBase, parameters: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="effect"):
        Compiler(SQLiteDialect_pysqlite(paramstyle="qmark")).compiled(statement, parameters)


def test_only_plain_inserts_become_one_statement_over_arrays() -> None:
    compiler = Compiler(PGDialect_psycopg(paramstyle="format"))  # type: ignore[no-untyped-call] # bare in SQLAlchemy
    row = {"kind": "agent", "id": "x", "seq": 1, "blocked": True}
    plain = compiler.compiled(insert(stop), row)
    assert plain.rows_sql.startswith("INSERT INTO stop (kind, id, seq, blocked) SELECT * FROM unnest(%b::text[], ")
    upsert = postgresql.insert(stop)
    upsert = upsert.on_conflict_do_update(index_elements=["kind", "id"], set_={"seq": upsert.excluded.seq})
    # The same row twice in one statement is an error there.
    assert compiler.compiled(upsert, row).rows_sql == ""
    assert compiler.compiled(insert(stop).from_select(["kind"], select(once.c.kind)), {}).rows_sql == ""
    fixed = compiler.compiled(insert(stop).values(seq=7, blocked=False), {"kind": "agent", "id": "x"})
    assert set(fixed.values({"kind": "agent", "id": "x"})) == {"agent", "x", 7, False}
    with pytest.raises(KeyError):
        fixed.values({"kind": "agent"})
    moved = update(stop).where(stop.c.id == bindparam("who")).values(blocked=True)
    assert compiler.compiled(moved, {"who": "x"}).rows_sql == ""


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///a?mode=ro",
        "sqlite:///file:a",
        "mysql://h/d",
        "postgresql://h",
        "x",
    ],
)
def test_an_address_that_is_not_a_durable_database_is_refused(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        Location.parse(url)
    assert caught.value.code == "storage.url"


def test_a_password_does_not_show() -> None:
    assert "secret" not in repr(Location.parse("postgresql://aims:secret@127.0.0.1/aims"))


def test_a_guarded_write_is_one_that_can_be_refused() -> None:
    assert not Write(record=_record, effects=(Effect(delete(once), {}),)).guarded
    assert Write(record=_record, effects=(Effect(delete(once), {}, must_match=True),)).guarded
    assert Outcome(Verdict.COMMITTED).seq == 0
