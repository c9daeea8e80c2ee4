"""The weights after a stage against the original base: a scan of the written body, in few figures."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from intruscope.plots.series import measured
from intruscope.sequence.records import MatrixFigures, WeightFigures
from intruscope.spectra.records import ScanReport, ScanSettings, SimilarityMap
from intruscope.spectra.scan import RunOptions, scan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from intruscope.engine.tasks import Progress


def look(
    base: str,
    body: Path,
    settings: ScanSettings,
    *,
    work: Path,
    workers: int | None = None,
    allow_pickle: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Scan a body against the base.

    Args:
        base: The original model.
        body: Of a stage.
        settings: Of the scan.
        work: Folder of the scan's own journal.
        workers: See :class:`intruscope.spectra.scan.RunOptions`.
        allow_pickle: For the base.
        on_progress: Called for every event of the engine.

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
        for matrix in measured(report)
        if matrix.sides[0].similarity is not None
    }
    return found


def summary(report: ScanReport) -> WeightFigures:
    """A scan in few figures, over the matrices of the paper's scope."""
    matrices = measured(report)
    sides = [matrix.sides[0] for matrix in matrices]
    updates = [matrix.update for matrix in matrices]
    norm = math.sqrt(sum(u.frobenius_norm**2 for u in updates if u is not None))
    base_norm = math.sqrt(sum((matrix.base_frobenius_norm or 0.0) ** 2 for matrix in matrices))
    found = tuple(
        MatrixFigures(
            name=matrix.name,
            num_intruders=matrix.sides[0].num_intruders,
            update_norm=update.frobenius_norm if update is not None else 0.0,
            effective_rank=update.effective_rank.value if update and update.effective_rank else None,
        )
        for matrix, update in zip(matrices, updates, strict=True)
    )
    ranks = [each.effective_rank for each in found if each.effective_rank is not None]
    return WeightFigures(
        num_intruders=sum(side.num_intruders for side in sides),
        num_undecided=sum(v in ("borderline", "degenerate") for side in sides for v in side.verdicts),
        num_candidates=sum(len(side.verdicts) for side in sides),
        num_hosts=sum(side.num_intruders > 0 for side in sides),
        update_norm=norm,
        relative_update_norm=norm / base_norm if base_norm > 0.0 else 0.0,
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
