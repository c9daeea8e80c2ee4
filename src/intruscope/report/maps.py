"""Similarity maps too large for a report, as one NumPy archive beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import IO, TYPE_CHECKING

from intruscope.report.page_data import MAX_MAP_BYTES
from intruscope.weights.matrices import Finding
from intruscope.weights.output import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from intruscope.spectra.records import ScanReport


def move_large_maps(report: ScanReport, path: Path) -> ScanReport:
    """Write all maps into ``path`` if together they are more than a report should carry.

    The archive holds ``names`` ("matrix, side"), and for each name, in order, ``map_0``, ``map_1`` ...:
    |U0ᵀU| in steps of 1/255, rows base, columns tuned. Matrix names are data, never names of entries, for
    an archive is easily unpacked as files.

    Args:
        report: With or without maps.
        path: The ``.npz`` file.

    Returns:
        The report itself when its maps are small; otherwise one without them, and with a finding that says
        where they are.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
    """
    maps = [
        (f"{matrix.name}, {side.side}", side.similarity)
        for matrix in report.matrices
        for side in matrix.sides
        if side.similarity is not None
    ]
    if sum(len(similarity.levels) for _, similarity in maps) <= MAX_MAP_BYTES:
        return report
    import numpy as np

    arrays = {
        f"map_{index}": np.frombuffer(bytes(similarity.levels), dtype=np.uint8).reshape(
            similarity.num_base, similarity.num_tuned
        )
        for index, (_, similarity) in enumerate(maps)
    }

    def write(stream: IO[bytes]) -> None:
        np.savez_compressed(stream, names=np.array([name for name, _ in maps]), **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)
    finding = Finding(
        code="maps-beside",
        severity="info",
        message=f"{len(maps)} similarity maps are too large for a report; they are in {path.name} beside it",
    )
    return replace(
        report,
        findings=(*report.findings, finding),
        matrices=tuple(
            replace(matrix, sides=tuple(replace(side, similarity=None) for side in matrix.sides))
            for matrix in report.matrices
        ),
    )
