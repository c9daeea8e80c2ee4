"""One row per tuned vector, as CSV for spreadsheets and Parquet for data frames."""

from __future__ import annotations

import csv
import io
from typing import IO, TYPE_CHECKING

from intruscope.report.words import printable_text
from intruscope.weights.output import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from intruscope.spectra.records import MatrixReport, ScanReport, SideReport

Cell = str | int | float | None

COLUMNS: dict[str, str] = {
    "matrix": "string",
    "kind": "string",
    "layer": "int64",
    "scope": "string",
    "side": "string",
    "rank": "int64",
    "singular_value": "float64",
    "alignment_lower": "float64",
    "alignment_upper": "float64",
    "verdict": "string",
    "certificate": "string",
    "alignment_certificate": "string",
    "outside_column_space": "float64",
    "base_index": "int64",
    "base_singular_value": "float64",
    "relative_change": "float64",
}
"""Column names in order, with their Arrow types. ``rank`` counts from 1; ``base_index`` from 0."""

_FORMULA_STARTS = ("=", "+", "-", "@")


def rows(report: ScanReport) -> Iterator[tuple[Cell, ...]]:
    """Yield one row per matrix, side and tuned vector, in the order of :data:`COLUMNS`.

    Matrices without a result have no rows; the JSON report and the ledger name them.
    """
    for matrix in report.matrices:
        for side in matrix.sides:
            for index in range(len(side.verdicts)):
                yield _row(matrix, side, index)


def write_csv(report: ScanReport, path: Path) -> None:
    """Write the rows as UTF-8 CSV that no spreadsheet runs or breaks in two.

    Text that would be a formula gets a leading quote; control and bidirectional characters are escaped.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
    """

    def write(stream: IO[bytes]) -> None:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_defused(cell) for cell in row] for row in rows(report))
        text.flush()
        text.detach()

    write_atomically(path, write)


def write_parquet(report: ScanReport, path: Path) -> None:
    """Write the rows as Parquet, names as they are; an empty scan gives an empty table with its columns.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
    """
    write_rows(COLUMNS, rows(report), path)


def write_rows(columns: Mapping[str, str], table_rows: Iterable[tuple[Cell, ...]], path: Path) -> None:
    """Write rows as Parquet.

    Args:
        columns: Names in order, with their Arrow types.
        table_rows: A cell for each column.
        path: The file.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    cells = list(zip(*table_rows, strict=True)) or [()] * len(columns)
    arrays = [
        pa.array([_encodable(cell) for cell in column], type=field.type)
        for column, field in zip(cells, schema, strict=True)
    ]
    table = pa.Table.from_arrays(arrays, schema=schema)
    write_atomically(path, lambda stream: pq.write_table(table, stream))


def _row(matrix: MatrixReport, side: SideReport, index: int) -> tuple[Cell, ...]:
    match = side.matches[index]
    outside = side.outside_column_space
    return (
        matrix.name,
        matrix.kind,
        matrix.layer,
        matrix.scope,
        side.side,
        index + 1,
        matrix.singular_values[index],
        side.alignment_lower[index],
        side.alignment_upper[index],
        side.verdicts[index],
        side.certificates[index],
        side.alignment_certificates[index],
        None if outside is None else outside[index],
        None if match is None else match.base_index,
        None if match is None else match.base_singular_value,
        None if match is None else match.relative_change,
    )


def _encodable(cell: Cell) -> Cell:
    """Names from JSON headers may hold lone surrogates, which UTF-8 has no bytes for."""
    return cell.encode("utf-8", "backslashreplace").decode() if isinstance(cell, str) else cell


def _defused(cell: Cell) -> Cell:
    if not isinstance(cell, str):
        return cell
    cell = printable_text(cell)
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell
