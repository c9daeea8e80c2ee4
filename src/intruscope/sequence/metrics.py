"""The accuracy matrix of a chain to its figures, every difference over the same examples.

``right[k][j]`` says which held-out examples of task j a head on the body of stage k got right; stage 0 is the
base, and stage j + 1 is the one that trained task j.

Sources: average accuracy, backward and forward transfer: Lopez-Paz & Ranzato, "Gradient Episodic Memory for
Continual Learning", NeurIPS 2017 (arXiv 1706.08840), equations 2 to 4. Forgetting: Chaudhry et al.,
"Riemannian Walk for Incremental Learning", ECCV 2018 (arXiv 1801.10112), section 3.1. They differ from ours
in one thing: there a task is scored by the head that was trained with it, here by one fitted anew.

Shape suffixes: N examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from intruscope.forgetting.intervals import (
    accuracy_difference,
    mcnemar,
    percentile_interval,
    resampled_sums,
    wilson,
)
from intruscope.sequence.records import Comparison, HeadFigures, StageScore, Transfer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from intruscope.forgetting.intervals import Interval

    Right = NDArray[np.bool_]
    Outcomes = Sequence[Sequence[Right]]


def cells(
    tasks: Sequence[str], right: Outcomes, heads: Sequence[Sequence[HeadFigures]]
) -> tuple[StageScore, ...]:
    """Every task after every stage.

    Args:
        tasks: Names, in the order of training.
        right: By stage, then by task.
        heads: Likewise.
    """
    return tuple(
        StageScore(
            stage=stage,
            task=name,
            accuracy=wilson(int(row[place].sum()), len(row[place])),
            head=heads[stage][place],
            against_baseline=_against(right, stage, place, 0) if stage > 0 else None,
            against_own=_against(right, stage, place, place + 1) if stage > place + 1 else None,
            against_best=_against(right, stage, place, _best(right, stage, place)) if stage > 1 else None,
        )
        for stage, row in enumerate(right)
        for place, name in enumerate(tasks)
    )


def transfer(right: Outcomes, stage: int, *, seed: int = 0) -> Transfer:
    """The figures after a stage.

    Args:
        right: By stage (at least up to this one), then by task in the order of training.
        stage: From 1.
        seed: Of the bootstrap, which draws the examples of each task by themselves.
    """
    now = right[stage]
    seen = range(min(stage, len(now)))
    earlier = range(min(stage, len(now)) - 1)
    backward = [now[j].astype(float) - right[j + 1][j] for j in earlier]
    forward = [right[j][j].astype(float) - right[0][j] for j in seen if j > 0]
    lost = [float(right[_best(right, stage, j)][j].mean() - now[j].mean()) for j in earlier]
    return Transfer(
        average_accuracy=_mean_over_tasks([now[j].astype(float) for j in seen], seed),
        backward_transfer=_mean_over_tasks(backward, seed) if backward else None,
        forgetting=float(np.mean(lost)) if lost else None,
        forward_transfer=_mean_over_tasks(forward, seed) if forward else None,
    )


def _best(right: Outcomes, stage: int, place: int) -> int:
    """The trained stage before this one with the highest accuracy on a task; the first of equal ones."""
    return max(range(1, stage), key=lambda k: float(right[k][place].mean()))


def _against(right: Outcomes, stage: int, place: int, earlier: int) -> Comparison:
    before_N, after_N = right[earlier][place], right[stage][place]
    return Comparison(
        stage=earlier,
        difference=accuracy_difference(before_N, after_N),
        mcnemar_p=mcnemar(before_N, after_N),
    )


def _mean_over_tasks(scores: Sequence[NDArray[np.float64]], seed: int) -> Interval:
    """Mean over tasks of their means over examples, with a percentile interval of the bootstrap."""
    resampled = [
        resampled_sums(score_N, seed=seed + number)[:, 0] / len(score_N)
        for number, score_N in enumerate(scores)
    ]
    return percentile_interval(
        np.mean(resampled, axis=0), float(np.mean([score_N.mean() for score_N in scores]))
    )
