"""From measurements to the figures of cells: relative to the tuned model, and to the intruder edit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from intruscope.fitting.table import FIXES
from intruscope.sweep.records import SweepCell, SweepCellReport, cell_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.fitting.fit import Fit
    from intruscope.forgetting.intervals import Interval
    from intruscope.sweep.records import Measurement, Metric
    from intruscope.sweep.statistics import Sample


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything that was measured.

    Attributes:
        metric: The metric of the task.
        protocol: How losses on the text are computed.
        base_text: The base on the text; it has no head for the task.
        tuned: The tuned model, strength 1.
        cells: The grid, in order.
        by_key: The measurement of each cell, by its key.
        fits: The fit behind each cell of a fitted fix, by the cell's key.
    """

    metric: Metric
    protocol: str
    base_text: Measurement
    tuned: Measurement
    cells: tuple[SweepCell, ...]
    by_key: Mapping[str, Measurement]
    fits: Mapping[str, Fit] = field(default_factory=dict)

    def edit_beside(self, cell: SweepCell, which: str) -> Measurement | None:
        """The intruder edit at the same strength; None for that edit itself, and for a fit."""
        if cell.strength is None or FIXES[cell.control].role == "edit":
            return None
        return self.by_key.get(cell_key("intruders", which, cell.strength))


def cell_report(measured: Measured, cell: SweepCell, which: str, sample: Sample) -> SweepCellReport:
    """The figures of one cell.

    Args:
        measured: All measurements.
        cell: A cell of the grid.
        which: The selection of intruders whose edit it is compared with, where the cell has none.
        sample: The items to use.
    """
    here = measured.by_key[cell.key]
    losses = sample.losses(here)
    tuned_losses = sample.losses(measured.tuned)
    forgetting = tuned_losses - sample.losses(measured.base_text)
    change = losses - tuned_losses
    edit = measured.edit_beside(cell, cell.which or which)
    return SweepCellReport(
        cell=cell,
        data=sample.data,
        forgetting=sample.interval(change + forgetting),
        forgetting_change=sample.interval(change),
        forgetting_share=sample.share(change, forgetting),
        task=task_score(here, measured.metric, sample),
        task_change=task_difference(here, measured.tuned, measured.metric, sample),
        task_loss_change=sample.interval(sample.task_losses(here) - sample.task_losses(measured.tuned)),
        forgetting_difference=None if edit is None else sample.interval(losses - sample.losses(edit)),
        task_difference=None if edit is None else task_difference(here, edit, measured.metric, sample),
    )


def forgetting_of(measured: Measured, sample: Sample) -> Interval:
    """Loss of the tuned model on the text minus the base's, in nats per token."""
    return sample.interval(sample.losses(measured.tuned) - sample.losses(measured.base_text))


def task_score(measurement: Measurement, metric: Metric, sample: Sample) -> Interval:
    """Score of one model."""
    return (
        sample.accuracy(measurement) if metric == "accuracy" else sample.interval(sample.scores(measurement))
    )


def task_difference(first: Measurement, second: Measurement, metric: Metric, sample: Sample) -> Interval:
    """Score of the first minus that of the second, over the same examples."""
    if metric == "accuracy":
        return sample.accuracy_difference(first, second)
    return sample.interval(sample.scores(first) - sample.scores(second))


def grid_reports(measured: Measured, which: Sequence[str], sample: Sample) -> tuple[SweepCellReport, ...]:
    """The figures of the grid; a control without a selection is compared with the first selection's edit."""
    return tuple(cell_report(measured, cell, which[0], sample) for cell in measured.cells)
