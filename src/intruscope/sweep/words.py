"""A sweep in plain sentences: no more than it measured, always beside its controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.fitting.table import FIXES, GUIDANCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.fitting.records import DirectionTest
    from intruscope.forgetting.intervals import Interval
    from intruscope.sweep.records import AdviceOutcome, ChosenStrength, Metric, Specialness, SweepCellReport

_CONCLUSIONS = {
    "special": "the intruders are special here, beyond their size",
    "not-special": "the intruders are not special here",
    "worse": "the intruders are not special here, and merely shrinking the update does better",
}


def series_name(control: str, which: str | None, *, is_several: bool = False) -> str:
    """The title of a series; it names the selection of intruders where the sweep has several."""
    name = FIXES[control].title
    return f"{name} ({which})" if is_several and which is not None else name


def recommendation_sentence(
    *,
    which: str,
    outcome: AdviceOutcome,
    report: SweepCellReport | None,
    matched: Sequence[SweepCellReport],
    intruders: Specialness | None,
    shrink: SweepCellReport | None,
    metric: Metric,
    max_task_cost: float,
    forgetting: Interval,
    too_few: int | None = None,
) -> str:
    """Say what a sweep advises.

    Args:
        which: ``top``, ``all`` or a selection.
        outcome: See :class:`intruscope.sweep.records.Recommendation`, as for the other arguments.
        report: Figures of the chosen strength, on the evaluation half.
        matched: Figures of the shrinks of the same size.
        intruders: The verdict on the intruders.
        shrink: What the same rule chooses for shrinking the whole update; mentioned where that does better.
        metric: The metric of the task.
        max_task_cost: Largest acceptable cost.
        forgetting: Forgetting of the tuned model, on all the data.
        too_few: Number of sequences in the evaluation half, where they are too few for a verdict.
    """
    them = {"top": "the top intruders", "all": "all intruders"}.get(which, "the selected vectors")
    if outcome == "nothing-to-edit":
        return "No matrix has an intruder, so there is nothing to turn down."
    if outcome == "no-forgetting":
        return (
            f"The tuned model did not measurably forget: {nats(forgetting)} on all the data. There is "
            "nothing for a repair to win back."
        )
    if report is None:
        return (
            f"No strength of {them} is worth it: on the choosing half of the data, none lowers forgetting at "
            f"a cost of at most {_limit(max_task_cost, metric)}."
        )
    strength = f"{report.cell.strength:g}"
    if too_few is not None:
        return (
            f"No strength of {them} can be recommended: {strength} looks best on the choosing half of the "
            f"data, but the evaluation half has only {too_few} sequences, too few to tell an effect from "
            "chance. Give more text."
        )
    control = _control(matched, intruders, metric)
    if outcome == "recommended":
        said = (
            f"On the evaluation half of the data, turning {them} to {strength} {effect(report, metric)}"
            f"{'; ' + control if control else ''}."
        )
        if intruders != "worse" or shrink is None:
            return said
        instead = f"{FIXES[shrink.cell.control].action} to {shrink.cell.strength:g}"
        return f"{said} By the same rule, {instead} {effect(shrink, metric)}."
    return (
        f"No strength of {them} is worth it: {strength} looks best on the choosing half of the data, but on "
        f"the evaluation half it {effect(report, metric)}{'; ' + control if control else ''}."
    )


def best_sentence(
    best: ChosenStrength | None,
    seconds: float | None,
    comparison: tuple[str, str] | None,
    metric: Metric,
    max_task_cost: float,
    *,
    too_few: bool = False,
) -> str:
    """Say which fix is best, and what it takes.

    Args:
        best: What the rule chose for the best fix; None where it chose nothing for any.
        seconds: How long its fit took; None for an intervention.
        comparison: Whether replay ``beats``, ``loses`` to or ``equals`` the best edit, and that edit's title;
            ``alone`` where no edit lowers forgetting at that cost.
        metric: The metric of the task.
        max_task_cost: Largest acceptable cost.
        too_few: The evaluation half has too few sequences for a verdict.
    """
    limit = _limit(max_task_cost, metric)
    if best is None or best.report is None:
        return (
            "No fix is worth it: on the choosing half of the data, none lowers forgetting at a cost of at "
            f"most {limit}."
        )
    setting = f"weight {best.weight:g}" if best.strength is None else f"strength {best.strength:g}"
    takes = "needs no fit" if seconds is None else f"takes {duration(seconds)} to fit"
    if best.control == GUIDANCE.name:
        setting, takes = f"gamma {best.strength:g}", "needs both models for every token"
    said = (
        f"The best fix at a cost of at most {limit} is {FIXES[best.control].action} ({setting}): on the "
        f"evaluation half of the data it {effect(best.report, metric)}, and {takes}."
    )
    if too_few:
        said += " The evaluation half has too few sequences to tell this from chance."
    if comparison is None or too_few:
        return said
    verdict, title = comparison
    return (
        said
        + {
            "alone": " No edit lowers forgetting at that cost.",
            "beats": f" Replay beats every edit, the best of which is: {title}.",
            "loses": f" Training the adapter on (replay) forgets more than the best edit: {title}.",
            "equals": f" Replay and the best edit ({title}) cannot be told apart.",
        }[verdict]
    )


def direction_sentence(test: DirectionTest) -> str:
    """Say whether a fit turns intruders down more than other directions of the same size.

    Args:
        test: Of one fit.
    """
    fit = f"The fit at weight {test.weight:g}"
    if test.correlation is None or test.difference is None or test.p_value is None:
        if test.answer == "too few directions":
            return f"{fit} has {len(test.directions)} directions, too few to compare intruders with others."
        return f"{fit} does not tell intruders from other directions: neither factors nor shares vary."
    p_value = "p < 0.001" if test.p_value < 0.001 else f"p = {test.p_value:.3f}"
    answer = {
        "more": "turns intruders down more than other directions of the same size",
        "less": "turns intruders down less than other directions of the same size",
    }.get(test.answer, "does not treat intruders differently from other directions of the same size")
    return (
        f"{fit} {answer}: factors differ by {interval_text(test.difference, 3, is_signed=True)}, rank "
        f"correlation {_number(test.correlation, 2)} within {test.num_strata} strata of equal size, "
        f"{p_value} by permutation ({len(test.directions)} directions)."
    )


def duration(seconds: float) -> str:
    """A time in seconds or minutes."""
    if seconds < 90.0:
        return f"{max(1.0, seconds):.0f} seconds"
    return f"{seconds / 60.0:.1f} minutes"


def effect(report: SweepCellReport, metric: Metric) -> str:
    """What a cell does, as a predicate: "removes 23% (15 to 31) of the forgetting and costs ..."."""
    share = report.forgetting_share
    if share is None:
        change = report.forgetting_change
        removes = f"lowers forgetting by {_range(-change.estimate, -change.high, -change.low, 3)} nats/token"
    else:
        figures = _range(-100 * share.estimate, -100 * share.high, -100 * share.low, 0, unit="%")
        removes = f"removes {figures} of the forgetting"
    return f"{removes} and {_cost(report.task_change, metric)}"


def nats(value: Interval) -> str:
    """A difference of losses with its sign and interval."""
    return interval_text(value, 3, unit=" nats/token", is_signed=True)


def score_text(value: Interval, metric: Metric) -> str:
    """A task's score with its interval."""
    if metric == "accuracy":
        return interval_text(value, 1, scale=100.0, unit="%")
    return interval_text(value, 3, unit=" nats/token")


def interval_text(
    value: Interval, digits: int, *, scale: float = 1.0, unit: str = "", is_signed: bool = False
) -> str:
    """Estimate and interval, rounded alike: "+23.1% (15.2 to 31.0)"."""
    sign = "+" if is_signed and float(f"{scale * value.estimate:.{digits}f}") > 0.0 else ""
    return sign + _range(scale * value.estimate, scale * value.low, scale * value.high, digits, unit=unit)


def _cost(change: Interval, metric: Metric) -> str:
    """The task's change; a cost is positive where the task got worse."""
    digits, scale = (1, 100.0) if metric == "accuracy" else (3, 1.0)
    value, low, high = (scale * each for each in (change.estimate, change.low, change.high))
    is_lower = value < 0.0 and _number(value, digits) != _number(0.0, digits)
    fall = _range(-value, -high, -low, digits, unit=" points" if metric == "accuracy" else " nats/token")
    rise = _range(value, low, high, digits, unit=" points" if metric == "accuracy" else " nats/token")
    if metric == "loss":
        return f"lowers the task's loss by {fall}" if is_lower else f"raises the task's loss by {rise}"
    is_higher = value > 0.0 and _number(value, digits) != _number(0.0, digits)
    return f"gains {rise} of accuracy" if is_higher else f"costs {fall} of accuracy"


def _control(matched: Sequence[SweepCellReport], intruders: Specialness | None, metric: Metric) -> str:
    """The shrink of the same size that forgets least, and what follows."""
    if intruders is None:
        return ""
    best = min(matched, key=lambda report: report.forgetting_change.estimate)
    action = FIXES[best.cell.control].action
    return f"{action} {effect(best, metric)}: {_CONCLUSIONS[intruders]}"


def _limit(max_task_cost: float, metric: Metric) -> str:
    if metric == "accuracy":
        return f"{100 * max_task_cost:g} points of accuracy"
    return f"{max_task_cost:g} nats/token of the task's loss"


def _range(value: float, low: float, high: float, digits: int, *, unit: str = "") -> str:
    return f"{_number(value, digits)}{unit} ({_number(low, digits)} to {_number(high, digits)})"


def _number(value: float, digits: int) -> str:
    """Rounded, without a minus sign before zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0.0 else text.replace("-", "−")
