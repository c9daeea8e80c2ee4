"""Which strength is worth it: chosen on one half of the data, told by the other.

Taking the best of several strengths and reporting its figure on the same items flatters it. So one rule
chooses on the first half, for the intruder edit and for every control alike, and every figure of the
recommendation is of the second half, which had no part in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.repair.interventions import INTERVENTIONS
from intruscope.sweep.figures import Measured, cell_report
from intruscope.sweep.records import Cell, CellReport, Choice, Recommendation
from intruscope.sweep.statistics import gain
from intruscope.sweep.words import recommendation_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.forgetting.intervals import Interval
    from intruscope.sweep.records import Metric, Outcome, Specialness, SweepSettings
    from intruscope.sweep.statistics import Sample


FEWEST_TO_TELL = 6
"""Sequences of a half. Five all fall to one side by chance in 3% of cases, more than the 2.5% that a side of
a 95% interval allows, and their bootstrap would call it sure."""


def choose(
    measured: Measured, settings: SweepSettings, halves: tuple[Sample, Sample]
) -> tuple[tuple[Choice, ...], tuple[Recommendation, ...]]:
    """Apply the rule to every series of the grid, and say what follows for the intruders.

    The rule: of the strengths below 1 whose task costs at most ``max_task_cost`` on the first half, the one
    with the least forgetting there, if that is less than the tuned model's; of equals, the weakest edit.

    Args:
        measured: All measurements.
        settings: Of the sweep.
        halves: To choose on, and to report on.

    Returns:
        The choice for every series, in the order of the grid, and a recommendation for each choice of
        intruders.
    """
    series = list(dict.fromkeys((cell.control, cell.which) for cell in measured.cells))
    choices = tuple(_choice(measured, settings, halves, control, which) for control, which in series)
    shrink = next((choice for choice in choices if INTERVENTIONS[choice.control].role == "shrink"), None)
    recommendations = tuple(
        _recommendation(measured, settings, halves[1], choice, shrink)
        for choice in choices
        if choice.control == "intruders"
    )
    return choices, recommendations


def _choice(
    measured: Measured,
    settings: SweepSettings,
    halves: tuple[Sample, Sample],
    control: str,
    which: str | None,
) -> Choice:
    first, second = halves
    cells = [cell for cell in measured.cells if (cell.control, cell.which) == (control, which)]
    beside = which or settings.which[0]
    best: tuple[float, float] | None = None
    taken: Cell | None = None
    for cell in cells:
        if cell.strength >= 1.0 or not cell.change_norm:
            continue
        found = cell_report(measured, cell, beside, first)
        change = found.forgetting_change.estimate
        if change < 0.0 and _cost(found.task_change, measured.metric) <= settings.max_task_cost:
            rank = (change, -cell.strength)
            if best is None or rank < best:
                best, taken = rank, cell
    return Choice(
        control=control,
        which=which,
        strength=None if taken is None else taken.strength,
        report=None if taken is None else cell_report(measured, taken, beside, second),
    )


def _recommendation(
    measured: Measured, settings: SweepSettings, half: Sample, choice: Choice, shrink: Choice | None
) -> Recommendation:
    assert choice.which is not None
    edited = [
        cell
        for cell in measured.cells
        if (cell.control, cell.which) == ("intruders", choice.which) and cell.change_norm
    ]
    matched: tuple[CellReport, ...] = ()
    intruders: Specialness | None = None
    if choice.report is not None:
        strength = choice.report.cell.strength
        matched = tuple(
            cell_report(measured, cell, choice.which, half)
            for cell in measured.cells
            if INTERVENTIONS[cell.control].role == "matched"
            and cell.which == choice.which
            and cell.strength == strength
        )
        if matched:
            enough = len(half.text_items) >= FEWEST_TO_TELL
            intruders = specialness(matched, measured.metric) if enough else "not-special"
    outcome = _outcome(measured, settings, half, choice, is_anything_edited=bool(edited))
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
            too_few=len(half.text_items) if len(half.text_items) < FEWEST_TO_TELL else None,
            forgetting=half.interval(half.losses(measured.tuned) - half.losses(measured.base_text)),
        ),
    )


def _outcome(
    measured: Measured, settings: SweepSettings, half: Sample, choice: Choice, *, is_anything_edited: bool
) -> Outcome:
    if not is_anything_edited:
        return "nothing-to-edit"
    if half.interval(half.losses(measured.tuned) - half.losses(measured.base_text)).low <= 0.0:
        return "no-forgetting"
    if choice.report is None:
        return "no-gain"
    is_cheap = _cost(choice.report.task_change, measured.metric) <= settings.max_task_cost
    is_less = choice.report.forgetting_change.high < 0.0 and len(half.text_items) >= FEWEST_TO_TELL
    return "recommended" if is_cheap and is_less else "not-confirmed"


def specialness(matched: Sequence[CellReport], metric: Metric) -> Specialness:
    """Whether the intruder edit does what no mere shrink of its size does, by interval.

    Args:
        matched: The shrinks, with their differences from the edit (shrink less edit).
        metric: Of the task.
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
    """The control's task is better than the edit's."""
    return _is_above(task) if metric == "accuracy" else _is_below(task)


def _is_worse(task: Interval | None, metric: Metric) -> bool:
    return _is_below(task) if metric == "accuracy" else _is_above(task)
