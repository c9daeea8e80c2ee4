"""Skills before and after a fine-tune: the harness's scores of two states, paired item by item."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from intruscope.errors import MalformedInput, UsageError
from intruscope.forgetting import intervals
from intruscope.forgetting.harness import check_paired, pooled_hash
from intruscope.forgetting.records import SkillFigures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.forgetting.harness import ItemScores


def skill_figures(
    before: Sequence[ItemScores], after: Sequence[ItemScores], *, num_resamples: int, seed: int
) -> tuple[SkillFigures, ...]:
    """Pair the scores of two states.

    Args:
        before: Scores of the base.
        after: Scores of the tuned model on the same tasks.
        num_resamples: Number of bootstrap resamples, for scores that are not right or wrong.
        seed: Random seed.

    Returns:
        One record per metric of a task; no p is adjusted yet, see :func:`adjusted`.

    Raises:
        UsageError: no task has a score for single items, or one has fewer than two items.
        MalformedInput: the two states were asked different questions.
    """
    if not before:
        raise UsageError(
            "none of these skills has a score for single items, so there is nothing to pair",
            remedy="choose tasks whose metric is a mean over items, such as accuracy or exact match",
        )
    if [scores.key for scores in before] != [scores.key for scores in after]:
        raise MalformedInput(
            "the harness gave the two models different metrics, so they cannot be paired",
            remedy="run lm_eval on both models to see which task is at fault, and leave it out",
        )
    return tuple(_paired(*both, num_resamples, seed) for both in zip(before, after, strict=True))


def adjusted(models: Sequence[Sequence[SkillFigures]]) -> list[tuple[SkillFigures, ...]]:
    """Adjust every p for all metrics of all tasks and of all models by Holm's method.

    Holm's rather than Benjamini and Hochberg's: a user acts on single rows ("it can no longer do
    arithmetic"), and the same items and the same two models make the tests depend on each other in ways that
    only Holm's method allows for.

    Args:
        models: The figures of each tuned model.
    """
    flat = iter(intervals.holm([each.p for figures in models for each in figures]))
    return [tuple(replace(each, p_adjusted=next(flat)) for each in figures) for figures in models]


def _paired(before: ItemScores, after: ItemScores, num_resamples: int, seed: int) -> SkillFigures:
    check_paired(before, after)
    both = np.stack([before.values_N, after.values_N])
    is_right_or_wrong = bool(np.isin(both, (0.0, 1.0)).all())
    if is_right_or_wrong:
        base, tuned = both.astype(bool)
        estimates = [intervals.wilson(int(right.sum()), len(right)) for right in (base, tuned)]
        difference, p = intervals.accuracy_difference(base, tuned), intervals.mcnemar(base, tuned)
        num_lost, num_won = int((base & ~tuned).sum()), int((tuned & ~base).sum())
    else:
        bootstrap = {"num_resamples": num_resamples, "seed": seed}
        ones = np.ones(both.shape[1])
        estimates = [intervals.loss_per(values, ones, **bootstrap) for values in both]
        difference = intervals.paired_difference(both[0], both[1], ones, **bootstrap)
        p = intervals.sign_flip(both[0], both[1], **bootstrap)
        better = both[1] - both[0] if before.higher_is_better else both[0] - both[1]
        num_lost, num_won = int((better < 0.0).sum()), int((better > 0.0).sum())
    return SkillFigures(
        task=before.task,
        metric=before.metric,
        filter=before.filter,
        higher_is_better=before.higher_is_better,
        num_items=both.shape[1],
        num_fewshot=before.num_fewshot,
        version=before.version,
        base=estimates[0],
        tuned=estimates[1],
        difference=difference,
        num_lost=num_lost,
        num_won=num_won,
        p=p,
        p_adjusted=p,
        sha256=pooled_hash(before.items),
    )
