"""SQL queries over the records of a study, by DuckDB in memory: read-only, and limited in time and memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.engine.processes import WorkerProcess
from intruscope.errors import ResourceExhausted, UsageError
from intruscope.studies.query_worker import first_lines
from intruscope.studies.tables import COLUMNS, study_tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.studies.records import Record

SCHEMA = "intruscope.study.query/1"
_KINDS = frozenset({"SELECT", "EXPLAIN", "MULTI"})
"""DuckDB's kinds of statements that read (``MULTI``: a ``PIVOT`` without its ``IN``, from DuckDB 2 on). One
that changes something in a clause fails in the read-only transaction."""
_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The result of a query.

    Attributes:
        columns: Names, which may repeat.
        rows: One value per column, plain data; a number that is not finite is None.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def query(sql: str, scale_name: str, records: Mapping[str, Record], *, seconds: float = _SECONDS) -> Answer:
    """Run one query.

    Args:
        sql: One statement that reads the tables of :data:`intruscope.studies.tables.COLUMNS`.
        scale_name: The study's scale.
        records: By key.
        seconds: Time limit.

    Raises:
        UsageError: it is not such a statement, or DuckDB does not run it.
        ResourceExhausted: it needs more time or memory than allowed, or returns more than a million rows.
    """
    _check_reads(sql)
    try:
        worker = WorkerProcess.start("intruscope.studies.query_worker:run_query", os.environ)
    except OSError as error:
        fact = f"a process for the query could not be started ({error.strerror})"
        raise ResourceExhausted(fact, remedy="free some memory") from error
    try:
        worker.receive()  # it is ready
        worker.send((sql, study_tables(scale_name, records), _tables_there()))
        if not worker.has_output(seconds):
            fact = f"the query takes longer than {seconds:g} s"
            raise ResourceExhausted(fact, remedy="select fewer rows, or join fewer tables")
        kind, value = worker.receive()
    except EOFError:
        raise ResourceExhausted(
            f"the query failed: {worker.end()}", remedy="select fewer rows, or join fewer tables"
        ) from None
    finally:
        worker.end()
    if kind == "error":
        raise value
    columns, rows = value
    return Answer(columns=columns, rows=rows)


def query_json(sql: str, answer: Answer) -> dict[str, Any]:
    """The object of the schema ``intruscope.study.query/1``."""
    return {"schema": SCHEMA, "query": sql, "columns": list(answer.columns), "rows": list(answer.rows)}


def _check_reads(sql: str) -> None:
    import duckdb

    try:
        kinds = [statement.type.name for statement in duckdb.extract_statements(sql)]
    except duckdb.Error as error:
        fact = f"DuckDB does not run this query ({first_lines(error)})"
        raise UsageError(fact, remedy=_tables_there()) from None
    if len(kinds) != 1 or kinds[0] not in _KINDS:
        raise UsageError(
            f"the query consists of the statements {' and '.join(kinds) or 'none'}, not of one that reads",
            remedy=_tables_there(),
        )


def _tables_there() -> str:
    return f'the tables are {", ".join(COLUMNS)}; "DESCRIBE runs" shows the columns of one'
