"""From measurements to the whole report: figures, choices, advice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.sweep.choice import choose
from intruscope.sweep.figures import Measured, forgetting_of, grid_reports, task_score
from intruscope.sweep.records import DataHalf, SweepReport
from intruscope.sweep.statistics import samples

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from intruscope.sweep.records import DataSource, SweepSettings
    from intruscope.sweep.statistics import Sample


def assemble(
    measured: Measured,
    settings: SweepSettings,
    *,
    base: str,
    tuned: str,
    text: DataSource,
    task: DataSource,
    num_intruders: int,
    num_matrices: int,
    environment: dict[str, Any],
    models: Sequence[str] = (),
) -> SweepReport:
    """Make the report. Pure: another number of resamples or another cost needs no new measurement.

    Args:
        measured: All measurements.
        settings: Settings of the sweep.
        base: Name of the base model, for readers.
        tuned: Name of the tuned model, for readers.
        text: The text that was measured.
        task: The task that was scored.
        num_intruders: From the survey.
        num_matrices: From the survey.
        environment: Versions.
        models: The models as a command names them; empty where no command can.

    Raises:
        UsageError: fewer than four sequences or examples, so that a half could not be resampled.
    """
    everything, choosing, evaluation = samples(
        len(measured.tuned.text_nats), len(measured.tuned.task_scores), settings
    )
    choices, recommendations = choose(
        measured,
        settings,
        everything=everything,
        choosing=choosing,
        evaluation=evaluation,
        models=models,
    )
    return SweepReport(
        base=base,
        tuned=tuned,
        settings=settings,
        metric=measured.metric,
        text=text,
        task=task,
        num_intruders=num_intruders,
        num_matrices=num_matrices,
        base_loss=float(everything.losses(measured.base_text)[0]),
        tuned_loss=float(everything.losses(measured.tuned)[0]),
        forgetting=forgetting_of(measured, everything),
        task_score=task_score(measured.tuned, measured.metric, everything),
        halves=(_half(measured, choosing), _half(measured, evaluation)),
        cells=grid_reports(measured, settings.which, everything),
        choices=choices,
        recommendations=recommendations,
        environment=environment,
    )


def _half(measured: Measured, half: Sample) -> DataHalf:
    return DataHalf(
        data=half.data,
        num_sequences=len(half.text_items),
        num_examples=len(half.task_items),
        forgetting=forgetting_of(measured, half),
        task_score=task_score(measured.tuned, measured.metric, half),
    )
