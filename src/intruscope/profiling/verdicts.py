"""What the intervals allow to be said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.profiling.records import FULL, NULL, ShapeRecommendation
from intruscope.profiling.statistics import ratio_interval
from intruscope.profiling.words import reason_of, recommendation_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.forgetting.intervals import Interval
    from intruscope.profiling.records import Outcome, SettingReport, Shape, ShapeReport, StepVerdict

ALIKE = 0.05
"""Two settings are called alike where the interval of their ratio lies within this share of one."""
NULL_OFFSET = 0.01
"""Two processes that do the same may differ by so much for good, through where their memory came to lie
(Mytkowicz et al., "Producing Wrong Data Without Doing Anything Obviously Wrong!", ASPLOS 2009): full
fine-tuning's ratio to itself must hold 1 up to this."""
MAX_RESOLUTION = 0.10
"""Nothing is recommended where full fine-tuning's ratio to itself may be further from 1 than this."""


def resolution(null: Interval) -> float:
    """How far from 1 the ratio of a setting to itself may be: a smaller difference may be none."""
    return max(null.high - 1.0, 1.0 - null.low, 0.0)


def is_quiet(null: Interval) -> bool:
    """Whether a setting measured twice gives the same, as closely as it takes to compare others."""
    holds_one = null.low <= 1.0 + NULL_OFFSET and null.high >= 1.0 - NULL_OFFSET
    return holds_one and resolution(null) <= MAX_RESOLUTION


def verdict_of(ratio: Interval, level: float, *, unresolved: float) -> StepVerdict:
    """What a ratio of times says.

    Args:
        ratio: Over the reference.
        level: That its interval must have.
        unresolved: By :func:`resolution`: the interval must be clear of 1 by more.
    """
    if ratio.level < level:
        return "undecided"
    if ratio.high * (1.0 + unresolved) < 1.0:
        return "faster"
    if ratio.low > 1.0 + unresolved:
        return "slower"
    if max(ratio.high - 1.0, 1.0 - ratio.low) <= ALIKE:
        return "alike"
    return "undecided"


def recommend(
    results: Sequence[SettingReport], shape: Shape, *, reference: str, level: float
) -> ShapeRecommendation:
    """What follows for one shape.

    Args:
        results: All settings.
        shape: Of the batch.
        reference: What ratios are over.
        level: Of each interval.
    """
    cells = {
        r.candidate.name: cell for r in results for cell in r.cells if (cell.batch, cell.length) == shape
    }
    labels = {r.candidate.name: r.candidate.label for r in results}
    null = _step(cells.get(NULL)) if reference == FULL else None
    judged = {name: cell for name, cell in cells.items() if cell.verdict is not None}
    faster = sorted(
        (name for name, cell in judged.items() if cell.verdict == "faster"),
        key=lambda name: _estimate(judged[name]),
    )
    outcome = _outcome(judged, reference, null, level)
    best = faster[0] if outcome == "faster" else None
    equals: tuple[str, ...] = ()
    if best is not None:
        assert null is not None
        unresolved = resolution(null)
        equals = tuple(
            name
            for name, cell in judged.items()
            if name != best
            and verdict_of(_between(cell, judged[best], level), level, unresolved=unresolved) != "slower"
        )
    failures = {r.candidate.name: r.failure for r in results if r.failure is not None}
    return ShapeRecommendation(
        batch=shape.batch,
        length=shape.length,
        outcome=outcome,
        setting=best,
        not_told_apart=equals,
        null=null,
        resolution=None if null is None else resolution(null),
        sentence=recommendation_sentence(outcome, best, equals, judged, labels, null),
        reason=reason_of(outcome, judged, null, failures.get(FULL) or failures.get(NULL)),
    )


def _outcome(judged: dict[str, ShapeReport], reference: str, null: Interval | None, level: float) -> Outcome:
    if reference != FULL:
        return "no-full"
    if null is None or null.level < level:
        return "too-few-rounds"
    if not is_quiet(null):
        return "noisy"
    verdicts = {cell.verdict for cell in judged.values()}
    if "faster" in verdicts:
        return "faster"
    return "undecided" if "undecided" in verdicts or not verdicts else "not-faster"


def _between(cell: ShapeReport, other: ShapeReport, level: float) -> Interval:
    rounds = min(len(cell.rounds), len(other.rounds))
    return ratio_interval(
        [phases.step for phases in cell.rounds[:rounds]],
        [phases.step for phases in other.rounds[:rounds]],
        level=level,
    )


def _step(cell: ShapeReport | None) -> Interval | None:
    return None if cell is None or cell.ratios is None else cell.ratios["step"]


def _estimate(cell: ShapeReport) -> float:
    assert cell.ratios is not None
    return cell.ratios["step"].estimate
