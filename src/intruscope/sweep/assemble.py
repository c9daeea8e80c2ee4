"""Measurements to the whole report: figures, choices, advice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.sweep.choice import choose
from intruscope.sweep.figures import Measured, grid_reports, task_score
from intruscope.sweep.records import SweepReport
from intruscope.sweep.statistics import samples

if TYPE_CHECKING:
    from typing import Any

    from intruscope.sweep.records import Source, SweepSettings


def assemble(
    measured: Measured,
    settings: SweepSettings,
    *,
    base: str,
    tuned: str,
    text: Source,
    task: Source,
    num_intruders: int,
    num_matrices: int,
    environment: dict[str, Any],
) -> SweepReport:
    """Make the report; pure, so that another number of resamples or another cost needs no new measurement.

    Args:
        measured: All measurements.
        settings: Of the sweep.
        base: As the reader knows it.
        tuned: Likewise.
        text: What was read.
        task: What was scored.
        num_intruders: Of the survey.
        num_matrices: Of the survey.
        environment: Versions.

    Raises:
        UsageError: fewer than four sequences or examples, so that a half could not be resampled.
    """
    everything, first, second = samples(
        len(measured.tuned.text_nats), len(measured.tuned.task_scores), settings
    )
    choices, recommendations = choose(measured, settings, (first, second))
    base_losses, tuned_losses = everything.losses(measured.base_text), everything.losses(measured.tuned)
    return SweepReport(
        base=base,
        tuned=tuned,
        settings=settings,
        metric=measured.metric,
        text=text,
        task=task,
        num_intruders=num_intruders,
        num_matrices=num_matrices,
        base_loss=float(base_losses[0]),
        tuned_loss=float(tuned_losses[0]),
        forgetting=everything.interval(tuned_losses - base_losses),
        task_score=task_score(measured.tuned, measured.metric, everything),
        cells=grid_reports(measured, settings.which, everything),
        choices=choices,
        recommendations=recommendations,
        environment=environment,
    )
