"""The table of a scan: one row per tuned singular vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from intruscope.records.tables import Cell
    from intruscope.spectra.records import MatrixReport, SideReport

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
    "base_rank": "int64",
    "base_singular_value": "float64",
    "relative_change": "float64",
    "update_top_fraction": "float64",
    "update_top_chance": "float64",
}
"""Column names in order, with their Arrow types.

``rank`` and ``base_rank`` count from 1: the largest singular value has rank 1. ``base_index`` is
``base_rank`` - 1, as in the JSON; the three ``base_`` columns and
``relative_change`` are null where no base vector matches. ``update_top_fraction`` (OPLoRA's ρ_k) and
``update_top_chance`` are the matrix's, the same in each of its rows.
"""


def vector_rows(matrices: Iterable[MatrixReport]) -> Iterator[tuple[Cell, ...]]:
    """One row per matrix, side and tuned vector, in the order of :data:`COLUMNS`."""
    for matrix in matrices:
        for side in matrix.sides:
            for index in range(len(side.verdicts)):
                yield _row(matrix, side, index)


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
        None if match is None else match.base_index + 1,
        None if match is None else match.base_singular_value,
        None if match is None else match.relative_change,
        None if matrix.update is None else matrix.update.top_energy_fraction,
        None if matrix.update is None else matrix.update.top_energy_chance,
    )
