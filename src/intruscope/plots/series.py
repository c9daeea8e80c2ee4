"""The sums that pictures show: over the matrices of the paper's scope, first side."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.spectra.kinds import in_order

if TYPE_CHECKING:
    from intruscope.spectra.records import Estimate, ScanReport, SideReport


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """All matrices together at one threshold."""

    epsilon: float
    num_intruders: int
    num_undecided: int
    num_candidates: int


@dataclass(frozen=True, kw_only=True)
class LayerRank:
    """Effective rank of one kind in one layer: the median of its matrices, and the range they span."""

    layer: int
    value: float
    low: float
    high: float


def kinds_in_order(reports: list[ScanReport]) -> list[str]:
    """The kinds that any of the reports has measured."""
    return in_order(matrix.kind for report in reports for matrix in report.measured)


def cell_counts(report: ScanReport) -> dict[tuple[str, int | None], int]:
    """Intruders by kind and layer; a layer with several matrices of a kind (experts) counts them together."""
    counts: dict[tuple[str, int | None], int] = {}
    for matrix in report.measured:
        place = (matrix.kind, matrix.layer)
        counts[place] = counts.get(place, 0) + matrix.sides[0].num_intruders
    return counts


def effective_ranks(report: ScanReport, kind: str) -> list[LayerRank]:
    """Effective ranks of a kind over the layers; one matrix gives its interval, several (experts) theirs."""
    layers: dict[int, list[Estimate]] = {}
    for matrix in report.measured:
        if matrix.kind == kind and matrix.layer is not None and matrix.update is not None:
            rank = matrix.update.effective_rank
            if rank is not None:
                layers.setdefault(matrix.layer, []).append(rank)
    return [
        LayerRank(
            layer=layer,
            value=statistics.median_low([rank.value for rank in ranks]),
            low=min(rank.low for rank in ranks),
            high=max(rank.high for rank in ranks),
        )
        for layer, ranks in sorted(layers.items())
    ]


def curves(report: ScanReport) -> dict[int, list[CurvePoint]]:
    """Intruders over epsilon for every k of the grid; matrices with fewer vectors count all theirs."""
    sides = [matrix.sides[0] for matrix in report.measured]
    cuts = sorted({count.k for side in sides for count in side.grid})
    return {cut: _curve(sides, cut) for cut in cuts}


def _curve(sides: list[SideReport], cut: int) -> list[CurvePoint]:
    points = []
    for epsilon in sorted({count.epsilon for side in sides for count in side.grid}):
        counts = []
        for side in sides:
            fitting = [count for count in side.grid if count.epsilon == epsilon and count.k <= cut]
            if fitting:
                counts.append(max(fitting, key=lambda count: count.k))
        points.append(
            CurvePoint(
                epsilon=epsilon,
                num_intruders=sum(count.num_intruders for count in counts),
                num_undecided=sum(count.num_undecided for count in counts),
                num_candidates=sum(count.k for count in counts),
            )
        )
    return points
