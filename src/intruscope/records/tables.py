"""Rows of plain cells as Arrow, pandas, CSV and Parquet."""

from __future__ import annotations

import csv
import io
from typing import IO, TYPE_CHECKING, Any

from intruscope.errors import UsageError, printable_text
from intruscope.weights.output import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import pyarrow as pa

Cell = str | int | float | bool | None

_FORMULA_STARTS = ("=", "+", "-", "@")


def arrow_table(columns: Mapping[str, str], rows: Iterable[tuple[Cell, ...]]) -> pa.Table:
    """Rows as an Arrow table; without rows an empty one with its columns.

    Args:
        columns: Names in order, with their Arrow types.
        rows: A cell for each column.
    """
    import pyarrow as pa

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    cells = list(zip(*rows, strict=True)) or [()] * len(columns)
    arrays = [
        pa.array([_encodable(cell) for cell in column], type=field.type)
        for column, field in zip(cells, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def data_frame(columns: Mapping[str, str], rows: Iterable[tuple[Cell, ...]]) -> Any:
    """The same as a ``pandas.DataFrame``.

    Raises:
        UsageError: pandas is not installed.
    """
    try:
        import pandas as pd  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise UsageError(
            "to_pandas() needs pandas, which is not installed",
            remedy="run pip install pandas, or use to_arrow(), which needs nothing more",
        ) from None
    table = arrow_table(columns, rows)
    return pd.DataFrame({name: table.column(name).to_pandas() for name in table.column_names})


def write_parquet(columns: Mapping[str, str], rows: Iterable[tuple[Cell, ...]], path: Path) -> None:
    """Write rows as Parquet, names as they are.

    Args:
        columns: Names in order, with their Arrow types.
        rows: A cell for each column.
        path: The file.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
    """
    import pyarrow.parquet as pq

    table = arrow_table(columns, rows)
    write_atomically(path, lambda stream: pq.write_table(table, stream))


def write_csv(columns: Mapping[str, str], rows: Iterable[tuple[Cell, ...]], path: Path) -> None:
    """Write rows as UTF-8 CSV that no spreadsheet runs as a formula or breaks in two.

    Text that would be a formula gets a leading quote; control and bidirectional characters are escaped.

    Args:
        columns: Names in order.
        rows: A cell for each column.
        path: The file.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
    """

    def write(stream: IO[bytes]) -> None:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_defused(cell) for cell in row] for row in rows)
        text.flush()
        text.detach()

    write_atomically(path, write)


def _encodable(cell: Cell) -> Cell:
    """Names from JSON headers may hold lone surrogates, which UTF-8 has no bytes for."""
    return cell.encode("utf-8", "backslashreplace").decode() if isinstance(cell, str) else cell


def _defused(cell: Cell) -> Cell:
    if not isinstance(cell, str):
        return cell
    cell = printable_text(cell)
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell
