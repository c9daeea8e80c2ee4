"""Questions to a study in SQL, answered by DuckDB in memory: nothing can be written, no other file read."""

from __future__ import annotations

import datetime
import decimal
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.errors import ResourceExhausted, UsageError, printable
from intruscope.studies.tables import COLUMNS, study_tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.studies.records import Record

SCHEMA = "intruscope.study.query/1"
_QUESTIONS = frozenset({"SELECT", "EXPLAIN", "MULTI"})
"""Kinds of DuckDB's statements that ask (``MULTI``: a ``PIVOT`` without its ``IN``, from DuckDB 2 on)."""
_SETTINGS = (
    "SET enable_external_access = false",
    "SET python_enable_replacements = false",
    "SET enable_progress_bar = false",
    "SET lock_configuration = true",
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a query gives.

    Attributes:
        columns: Names, which need not differ.
        rows: One value for each column, plain data; a figure that is no finite number is None.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def query(sql: str, scale_name: str, records: Mapping[str, Record]) -> Answer:
    """Ask one question.

    Args:
        sql: One statement that reads, over the tables of :data:`intruscope.studies.tables.COLUMNS`.
        scale_name: Of the study.
        records: By key.

    Raises:
        UsageError: it is no such statement, or DuckDB does not understand it.
        ResourceExhausted: it needs more memory than there is.
    """
    import duckdb

    try:
        with duckdb.connect(":memory:") as connection:
            _check_asks(connection, sql)
            for name, table in study_tables(scale_name, records).items():
                connection.register("given", table)
                connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given")  # noqa: S608 - names of ours
                connection.unregister("given")
            for setting in _SETTINGS:
                connection.execute(setting)
            result = connection.execute(sql)
            columns = [column[0] for column in result.description]
            rows = [[_plain(value) for value in row] for row in result.fetchall()]
    except duckdb.OutOfMemoryException as error:
        raise ResourceExhausted(
            f"a query ran out of memory ({_first_lines(error)})", remedy="ask for fewer rows"
        ) from None
    except duckdb.Error as error:
        raise UsageError(
            f"got a query that DuckDB does not run ({_first_lines(error)})", remedy=_tables_there()
        ) from None
    return Answer(columns=columns, rows=rows)


def query_json(sql: str, answer: Answer) -> dict[str, Any]:
    """The object of the schema ``intruscope.study.query/1``."""
    return {"schema": SCHEMA, "query": sql, "columns": list(answer.columns), "rows": list(answer.rows)}


def _check_asks(connection: Any, sql: str) -> None:
    kinds = [statement.type.name for statement in connection.extract_statements(sql)]
    if len(kinds) != 1 or kinds[0] not in _QUESTIONS:
        told = " and ".join(kinds) or "none"
        raise UsageError(
            f"got a query of the statements {told}, expected one that reads, such as SELECT",
            remedy=_tables_there(),
        )


def _tables_there() -> str:
    return f'the tables are {", ".join(COLUMNS)}; "DESCRIBE runs" shows the columns of one'


def _first_lines(error: Exception) -> str:
    """What DuckDB says, without its picture of the place, in one line."""
    return printable(" ".join(str(error).partition("LINE ")[0].split()))


def _plain(value: Any) -> Any:
    """As JSON takes it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if value is None or isinstance(value, bool | int | str):
        return value
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)
