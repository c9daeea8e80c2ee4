"""The pictures of a sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.fitting.table import FIXES
from intruscope.plots.figures import write_figures
from intruscope.plots.tradeoff import TradePoint, TradeSeries, tradeoff_figure
from intruscope.sweep.words import series_name

if TYPE_CHECKING:
    from pathlib import Path

    from intruscope.forgetting.intervals import Interval
    from intruscope.plots.tradeoff import Three
    from intruscope.sweep.records import SweepCellReport, SweepReport


def write_sweep_plots(report: SweepReport, folder: Path) -> tuple[str, ...]:
    """Write the trade-off as ``tradeoff.png`` and ``tradeoff.svg``.

    Args:
        report: The sweep.
        folder: Created if it does not exist.

    Returns:
        The names of the files.

    Raises:
        OutputConflict, ResourceExhausted: nothing new is left in the folder.
    """
    is_accuracy = report.metric == "accuracy"
    has_share = any(each.forgetting_share is not None for each in report.cells)
    is_several = len(report.settings.which) > 1
    by_series: dict[str, list[SweepCellReport]] = {}
    for each in report.cells:
        name = series_name(each.cell.control, each.cell.which, is_several=is_several)
        by_series.setdefault(name, []).append(each)
    series = [
        TradeSeries(
            label=name,
            is_edit=FIXES[cells[0].cell.control].role == "edit",
            is_fit=FIXES[cells[0].cell.control].role == "fit",
            points=tuple(_point(each, is_accuracy=is_accuracy, has_share=has_share) for each in cells),
        )
        for name, cells in by_series.items()
    ]

    def draw() -> list[tuple[str, object]]:
        figure = tradeoff_figure(
            series,
            title=report.tuned,
            task_title="accuracy gained, points" if is_accuracy else "task loss reduced, nats/token",
            forgetting_title="forgetting won back, %" if has_share else "forgetting won back, nats/token",
        )
        return [("tradeoff", figure)]

    return write_figures(draw, folder)


def _point(report: SweepCellReport, *, is_accuracy: bool, has_share: bool) -> TradePoint:
    forgetting = report.forgetting_share if has_share else report.forgetting_change
    assert forgetting is not None  # all cells have a share, or none: it is of the same forgetting
    return TradePoint(
        setting=report.cell.setting,
        task=_scaled(report.task_change, 100.0 if is_accuracy else -1.0),
        forgetting=_scaled(forgetting, -100.0 if has_share else -1.0),
    )


def _scaled(interval: Interval, factor: float) -> Three:
    low, high = sorted((factor * interval.low, factor * interval.high))
    return (factor * interval.estimate, low, high)
