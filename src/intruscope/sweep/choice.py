"""Which strength is worth it: chosen on one half of the data, evaluated on the other.

Reporting the best of several strengths on the data that chose it would flatter it. So one rule chooses on the
first half, for the intruder edit and for every control alike, and every figure of the recommendation is of
the second half, which had no part in the choice. Whether the tuned model forgot at all depends on no choice,
so that is decided on all the data.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from intruscope.fitting.table import FIXES, GUIDANCE
from intruscope.sweep.figures import Measured, cell_report, forgetting_of
from intruscope.sweep.records import ChosenStrength, Recommendation, SweepCell, SweepCellReport, SweepSettings
from intruscope.sweep.statistics import gain
from intruscope.sweep.words import recommendation_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.forgetting.intervals import Interval
    from intruscope.sweep.records import AdviceOutcome, Metric, Specialness
    from intruscope.sweep.statistics import Sample


FEWEST_SEQUENCES = 6
"""Sequences that the evaluation half needs for a verdict. With five, all fall on one side by chance in 3% of
cases, more than the 2.5% per side that a 95% interval allows, and their bootstrap would call it certain."""


def choose(
    measured: Measured,
    settings: SweepSettings,
    *,
    everything: Sample,
    choosing: Sample,
    evaluation: Sample,
    models: Sequence[str] = (),
) -> tuple[tuple[ChosenStrength, ...], tuple[Recommendation, ...]]:
    """Apply the rule to every series of the grid, and say what follows for the intruders.

    The rule: of the strengths below 1 whose task costs at most ``max_task_cost`` on the choosing half, take
        the
    one with the least forgetting there, if that is less than the tuned model's; of equals, the weakest edit.

    Args:
        measured: All measurements.
        settings: Settings of the sweep.
        everything: All the data.
        choosing: The half to choose on.
        evaluation: The half to report on.
        models: The models as a command names them; empty where no command can.

    Returns:
        The choice for every series, in the order of the grid, and a recommendation for each selection of
        intruders.
    """
    series = list(dict.fromkeys((cell.control, cell.which) for cell in measured.cells))
    choices = tuple(
        _choice(measured, settings, choosing, evaluation, control, which) for control, which in series
    )
    shrink = next((choice for choice in choices if FIXES[choice.control].role == "shrink"), None)
    forgetting = forgetting_of(measured, everything)
    recommendations = tuple(
        _recommendation(measured, settings, evaluation, choice, shrink, forgetting, models)
        for choice in choices
        if FIXES[choice.control].role == "edit"
    )
    return choices, recommendations


def _choice(
    measured: Measured,
    settings: SweepSettings,
    choosing: Sample,
    evaluation: Sample,
    control: str,
    which: str | None,
) -> ChosenStrength:
    cells = [cell for cell in measured.cells if (cell.control, cell.which) == (control, which)]
    beside = which or settings.which[0]
    best: tuple[float, float] | None = None
    taken: SweepCell | None = None
    for cell in cells:
        if cell.strength is not None and cell.strength >= 1.0:
            continue
        if not cell.change_norm and control != GUIDANCE.name:
            continue
        found = cell_report(measured, cell, beside, choosing)
        change = found.forgetting_change.estimate
        if change < 0.0 and _cost(found.task_change, measured.metric) <= settings.max_task_cost:
            rank = (change, cell.change_norm)
            if best is None or rank < best:
                best, taken = rank, cell
    return ChosenStrength(
        control=control,
        which=which,
        strength=None if taken is None else taken.strength,
        report=None if taken is None else cell_report(measured, taken, beside, evaluation),
        weight=None if taken is None else taken.weight,
        chosen_by=None if best is None else best[0],
    )


def _recommendation(
    measured: Measured,
    settings: SweepSettings,
    evaluation: Sample,
    choice: ChosenStrength,
    shrink: ChosenStrength | None,
    forgetting: Interval,
    models: Sequence[str],
) -> Recommendation:
    assert choice.which is not None
    num_sequences = len(evaluation.text_items)
    matched: tuple[SweepCellReport, ...] = ()
    intruders: Specialness | None = None
    if choice.report is not None:
        strength = choice.report.cell.strength
        matched = tuple(
            cell_report(measured, cell, choice.which, evaluation)
            for cell in measured.cells
            if FIXES[cell.control].role == "matched"
            and cell.which == choice.which
            and cell.strength == strength
        )
        if matched:
            enough = num_sequences >= FEWEST_SEQUENCES
            intruders = specialness(matched, measured.metric) if enough else "not-special"
    outcome = _outcome(measured, settings, choice, forgetting, num_sequences)
    is_outdone = outcome == "recommended" and intruders == "worse" and shrink is not None
    return Recommendation(
        which=choice.which,
        outcome=outcome,
        strength=choice.strength,
        report=choice.report,
        matched=matched,
        intruders=intruders,
        sentence=recommendation_sentence(
            which=choice.which,
            outcome=outcome,
            report=choice.report,
            matched=matched,
            intruders=intruders,
            shrink=None if shrink is None else shrink.report,
            metric=measured.metric,
            max_task_cost=settings.max_task_cost,
            too_few=num_sequences if num_sequences < FEWEST_SEQUENCES else None,
            forgetting=forgetting,
        ),
        command=repair_command(models, choice, settings) if outcome == "recommended" else None,
        shrink_command=repair_command(models, shrink, settings) if is_outdone and shrink else None,
    )


def repair_command(models: Sequence[str], choice: ChosenStrength, settings: SweepSettings) -> str | None:
    """The shell command that writes the model of a choice, with every option that is not a default.

    Args:
        models: As the user named them: base and tuned model, or an adapter alone.
        choice: The intervention and its strength.
        settings: Settings of the sweep.

    Returns:
        None where there is nothing to name or to apply.
    """
    if not models or choice.strength is None:
        return None
    defaults = SweepSettings()
    options: list[tuple[str, object, object]] = [
        ("--control", choice.control, "intruders"),
        ("--which", choice.which or "top", "top"),
        ("--k", settings.k, defaults.k),
        ("--epsilon", settings.epsilon, defaults.epsilon),
        ("--seed", settings.seed, defaults.seed),
    ]
    ending = "repaired" if FIXES[choice.control].role == "edit" else choice.control
    words = ["intruscope", "repair", *models, "-o", f"{model_stem(models)}-{ending}"]
    words += ["--strength", f"{choice.strength:g}"]
    for option, value, default in options:
        words += [option, str(value)] if value != default else []
    return shlex.join(words)


def model_stem(models: Sequence[str]) -> str:
    """The last part of the tuned model's name, such as org/name@revision or base+adapter.

    Args:
        models: As the user named them.
    """
    return models[-1].rpartition("+")[2].rstrip("/").rpartition("/")[2].partition("@")[0] or "model"


def _outcome(
    measured: Measured,
    settings: SweepSettings,
    choice: ChosenStrength,
    forgetting: Interval,
    num_sequences: int,
) -> AdviceOutcome:
    if not any(
        cell.change_norm
        for cell in measured.cells
        if (cell.control, cell.which) == (choice.control, choice.which)
    ):
        return "nothing-to-edit"
    if forgetting.low <= 0.0:
        return "no-forgetting"
    if choice.report is None:
        return "no-gain"
    is_cheap = _cost(choice.report.task_change, measured.metric) <= settings.max_task_cost
    is_less = choice.report.forgetting_change.high < 0.0 and num_sequences >= FEWEST_SEQUENCES
    return "recommended" if is_cheap and is_less else "not-confirmed"


def specialness(matched: Sequence[SweepCellReport], metric: Metric) -> Specialness:
    """Whether the intruder edit does what no mere shrink of its size does, by interval.

    Args:
        matched: The shrinks, with their differences from the edit (shrink minus edit).
        metric: The metric of the task.
    """
    better = [
        _is_above(control.forgetting_difference) and not _is_better(control.task_difference, metric)
        for control in matched
    ]
    worse = [
        _is_below(control.forgetting_difference) and not _is_worse(control.task_difference, metric)
        for control in matched
    ]
    if all(better):
        return "special"
    return "worse" if any(worse) else "not-special"


def _cost(change: Interval, metric: Metric) -> float:
    return -gain(metric)(change.estimate)


def _is_above(interval: Interval | None) -> bool:
    return interval is not None and interval.low > 0.0


def _is_below(interval: Interval | None) -> bool:
    return interval is not None and interval.high < 0.0


def _is_better(task: Interval | None, metric: Metric) -> bool:
    """Whether the control's task is better than the edit's."""
    return _is_above(task) if metric == "accuracy" else _is_below(task)


def _is_worse(task: Interval | None, metric: Metric) -> bool:
    return _is_below(task) if metric == "accuracy" else _is_above(task)
