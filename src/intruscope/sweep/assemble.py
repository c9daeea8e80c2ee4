"""From measurements to the whole report: figures, choices, advice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.sweep.best import best_fix
from intruscope.sweep.choice import choose
from intruscope.sweep.figures import Measured, forgetting_of, grid_reports, task_score
from intruscope.sweep.records import DataHalf, FitSummary, Fitting, SweepReport
from intruscope.sweep.statistics import samples

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from intruscope.fitting.records import DirectionTest
    from intruscope.fitting.settings import FitSettings
    from intruscope.sweep.records import ChosenStrength, DataSource, SweepSettings
    from intruscope.sweep.statistics import Sample


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What the fitted fixes of a sweep were fitted on, and what they say.

    Attributes:
        text: Text to fit on.
        task: Examples to fit on.
        settings: How they were fitted.
        directions: Tests of the fits of one factor per direction.
    """

    text: DataSource
    task: DataSource
    settings: FitSettings
    directions: tuple[DirectionTest, ...]


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
    fitted: Fitted | None = None,
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
        fitted: What fitted fixes were fitted on; None where the sweep has none.

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
        fitting=None if fitted is None else _fitting(measured, settings, fitted, choices, evaluation, models),
    )


def _fitting(
    measured: Measured,
    settings: SweepSettings,
    fitted: Fitted,
    choices: Sequence[ChosenStrength],
    evaluation: Sample,
    models: Sequence[str],
) -> Fitting:
    summaries = tuple(
        FitSummary(
            fix=fit.fix,
            weight=fit.weight,
            num_trained=fit.num_trained,
            stopped_at=fit.stopped_at,
            seconds=fit.seconds,
        )
        for fit in measured.fits.values()
    )
    return Fitting(
        text=fitted.text,
        task=fitted.task,
        steps=fitted.settings.fit_steps,
        tokens=fitted.settings.fit_tokens,
        general=fitted.settings.general,
        fits=summaries,
        best=best_fix(measured, settings, choices, summaries, evaluation, fitted, models),
        directions=fitted.directions,
    )


def _half(measured: Measured, half: Sample) -> DataHalf:
    return DataHalf(
        data=half.data,
        num_sequences=len(half.text_items),
        num_examples=len(half.task_items),
        forgetting=forgetting_of(measured, half),
        task_score=task_score(measured.tuned, measured.metric, half),
    )
