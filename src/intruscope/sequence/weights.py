"""The weights after a stage against the original base: a scan of the written body, in few figures."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from intruscope.engine.settings import RunOptions
from intruscope.progress import OnProgress, ignore_progress
from intruscope.sequence.records import MatrixFigures, WeightFigures
from intruscope.spectra.records import ScanReport, ScanSettings, SimilarityMap
from intruscope.spectra.scan import scan

if TYPE_CHECKING:
    from pathlib import Path


def look(
    base: str,
    body: Path,
    settings: ScanSettings,
    *,
    work: Path,
    workers: int | None = None,
    allow_pickle: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, Any]:
    """Scan a body against the base.

    Args:
        base: The original model.
        body: Of a stage.
        settings: Of the scan.
        work: Folder of the scan's own journal.
        workers: See :class:`intruscope.spectra.scan.RunOptions`.
        allow_pickle: For the base.
        on_progress: Called before the first matrix, and whenever one is started or finished.

    Returns:
        Plain data for :func:`figures` and :func:`similarity`.

    Raises:
        IntruscopeError: see :func:`intruscope.spectra.scan.scan`.
    """
    report = scan(
        base,
        str(body),
        settings=settings,
        options=RunOptions(workers=workers, work_dir=work),
        allow_pickle=allow_pickle,
        on_progress=on_progress,
    )
    found = asdict(summary(report))
    found["maps"] = {
        matrix.name: list(matrix.sides[0].similarity.levels)
        for matrix in report.measured
        if matrix.sides[0].similarity is not None
    }
    return found


def summary(report: ScanReport) -> WeightFigures:
    """A scan in few figures, over the matrices of the paper's scope."""
    totals = report.totals
    found = tuple(
        MatrixFigures(
            name=matrix.name,
            num_intruders=matrix.sides[0].num_intruders,
            update_norm=matrix.update.frobenius_norm if matrix.update is not None else 0.0,
            effective_rank=matrix.update.effective_rank.value
            if matrix.update and matrix.update.effective_rank
            else None,
        )
        for matrix in report.measured
    )
    ranks = [each.effective_rank for each in found if each.effective_rank is not None]
    return WeightFigures(
        num_intruders=totals.num_intruders,
        num_undecided=totals.num_undecided,
        num_candidates=totals.num_vectors,
        num_hosts=totals.matrices_with_intruders,
        update_norm=totals.update_norm,
        relative_update_norm=totals.relative_update_norm or 0.0,
        effective_rank=sum(ranks) / len(ranks) if ranks else None,
        complete=report.complete,
        matrices=found,
    )


def figures(record: dict[str, Any]) -> WeightFigures:
    """The figures of a record by :func:`look`."""
    fields = {name: value for name, value in record.items() if name != "maps"}
    return WeightFigures(**{**fields, "matrices": tuple(MatrixFigures(**m) for m in record["matrices"])})


def similarity(record: dict[str, Any], name: str) -> SimilarityMap | None:
    """The map of one matrix of a record by :func:`look`; None where none was made."""
    levels = record["maps"].get(name)
    if levels is None:
        return None
    size = math.isqrt(len(levels))
    return SimilarityMap(num_base=size, num_tuned=size, levels=tuple(levels))
