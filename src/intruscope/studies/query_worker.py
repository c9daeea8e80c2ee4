"""One SQL query in a process of its own, which can be killed: DuckDB does not interrupt every function.

Imports nothing of the studies, so that the process starts quickly.
"""

from __future__ import annotations

import datetime
import decimal
import math
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.errors import ResourceExhausted, UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

MEMORY_BYTES = 1 << 30
MAX_ROWS = 1_000_000
_SETTINGS = (
    f"SET memory_limit = '{MEMORY_BYTES >> 20}MiB'",
    "SET temp_directory = ''",
    "SET enable_external_access = false",
    "SET python_enable_replacements = false",
    "SET enable_progress_bar = false",
    "SET lock_configuration = true",
    "BEGIN TRANSACTION READ ONLY",
)


def run_query(payload: tuple[str, Mapping[str, pa.Table], str]) -> tuple[list[str], list[list[Any]]]:
    """Run one query over tables; call it in a worker process, whose memory it limits for good.

    Args:
        payload: The query, the tables by name, and a remedy for queries that DuckDB does not run.

    Returns:
        Column names, and rows of plain data.

    Raises:
        UsageError: DuckDB does not run the query, for instance because it would change a table.
        ResourceExhausted: it needs too much memory, or has too many rows.
    """
    import duckdb

    sql, tables, remedy = payload
    with duckdb.connect(":memory:") as connection:
        for name, table in tables.items():
            connection.register("given", table)
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given")  # noqa: S608 - our own names
            connection.unregister("given")
        for setting in _SETTINGS:
            connection.execute(setting)
        _limit_memory()
        try:
            result = connection.execute(sql)
            columns = [column[0] for column in result.description]
            rows: list[list[Any]] = []
            while found := result.fetchmany(10_000):
                rows += [[_plain(value) for value in row] for row in found]
                if len(rows) > MAX_ROWS:
                    fact = f"the query returns more than {MAX_ROWS:,} rows"
                    raise ResourceExhausted(fact, remedy="add a LIMIT, or aggregate")
        except (duckdb.OutOfMemoryException, MemoryError) as error:
            fact = f"the query needs more than {MEMORY_BYTES / 2**30:g} GiB of memory ({first_lines(error)})"
            raise ResourceExhausted(fact, remedy="select fewer rows") from None
        except duckdb.Error as error:
            raise UsageError(
                f"DuckDB does not run this query ({first_lines(error)})", remedy=remedy
            ) from None
    return columns, rows


def _limit_memory() -> None:
    """Also for what DuckDB does not count: the values of one function, and the rows in Python."""
    pages = Path("/proc/self/statm")
    if pages.exists():  # Linux
        now = int(pages.read_text().split()[0]) * resource.getpagesize()
        limit = now + 3 * MEMORY_BYTES
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


def first_lines(error: Exception) -> str:
    """DuckDB's message without its picture of the place, in one line."""
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
