"""SQL text of Core statements for a raw DBAPI cursor, compiled once for each statement and set of parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Dialect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert, UpdateBase

_MOST = 1_000
_PLAIN_INSERT = re.compile(r"(INSERT INTO [^%]*) VALUES \(%s(?:::[A-Z ]+)?(?:, %s(?:::[A-Z ]+)?)*\)([^%]*)")
_ARRAYS = {
    "boolean": "boolean[]",
    "large_binary": "bytea[]",
    "small_integer": "smallint[]",
    "integer": "integer[]",
    "big_integer": "bigint[]",
    "string": "text[]",
    "text": "text[]",
}


class _Required:
    """Stands for a parameter that the caller must give."""


_REQUIRED = _Required()


@dataclass(frozen=True, slots=True)
class Slot:
    """One placeholder: where its value comes from and how it is turned into the driver's form."""

    name: str
    default: object
    process: Callable[[Any], Any] | None


@dataclass(frozen=True, slots=True)
class Compiled:
    """``sql`` with positional placeholders; ``rows_sql`` takes one array per placeholder instead, or is ""."""

    sql: str
    slots: tuple[Slot, ...]
    rows_sql: str

    def values(self, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        """Order and convert the parameters. Raises ``KeyError`` for a missing one."""
        out = []
        for slot in self.slots:
            value = parameters.get(slot.name, slot.default)
            if value is _REQUIRED:
                raise KeyError(slot.name)
            out.append(value if slot.process is None else slot.process(value))
        return tuple(out)


class Compiler:
    """A bounded cache of compiled statements for one dialect with positional parameters."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        # The statement is kept beside its text: an id is only unique while the object lives.
        self._cache: dict[tuple[int, tuple[str, ...], bool], tuple[UpdateBase, Compiled]] = {}

    def compiled(self, statement: UpdateBase, parameters: Mapping[str, Any], *, must_match: bool = False) -> Compiled:
        """Return the text of a statement for rows with these parameters.

        A plain insert that must match skips existing keys, so that its row count tells. Raises ``ValueError`` for
        what a raw cursor cannot do: values made by Python defaults, lists in ``IN``, ``RETURNING``.
        """
        key = (id(statement), tuple(parameters), must_match)
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) >= _MOST:
                self._cache.clear()
            found = self._cache[key] = (statement, self._compile(statement, key[1], must_match=must_match))
        return found[1]

    def _compile(self, statement: UpdateBase, names: tuple[str, ...], *, must_match: bool) -> Compiled:
        compiled = statement.compile(dialect=self._dialect, column_keys=list(names))
        if not isinstance(compiled, SQLCompiler):
            raise TypeError(f"{type(statement).__name__} is not a statement on rows")
        if compiled.post_compile_params or compiled.literal_execute_params:
            raise ValueError("an effect cannot expand a list; write one effect per element")
        if compiled.effective_returning:
            raise ValueError("an effect returns nothing")
        if compiled.insert_prefetch or compiled.update_prefetch:
            raise ValueError("an effect gives every value itself; Python defaults of columns are not run")
        sql = str(compiled)
        if must_match and isinstance(statement, Insert) and " ON CONFLICT " not in sql:
            sql += " ON CONFLICT DO NOTHING"
        slots = tuple(self._slot(compiled, name) for name in compiled.positiontup or ())
        return Compiled(sql, slots, self._rows_sql(compiled, sql, statement))

    def _slot(self, compiled: SQLCompiler, name: str) -> Slot:
        bind = compiled.binds[name]
        process = bind.type.dialect_impl(self._dialect).bind_processor(self._dialect)
        return Slot(name, _REQUIRED if bind.required else bind.effective_value, process)

    def _rows_sql(self, compiled: SQLCompiler, sql: str, statement: UpdateBase) -> str:
        # An upsert stays row by row: one statement may not touch the same row twice.
        if self._dialect.name != "postgresql" or not isinstance(statement, Insert) or " DO UPDATE " in sql:
            return ""
        parts = _PLAIN_INSERT.fullmatch(sql)
        arrays = [_ARRAYS.get(compiled.binds[name].type.__visit_name__, "") for name in compiled.positiontup or ()]
        if parts is None or "" in arrays:
            return ""
        # All text is SQLAlchemy's own.
        return f"{parts[1]} SELECT * FROM unnest({', '.join('%b::' + array for array in arrays)}){parts[2]}"  # noqa: S608
