"""From answers to categories, and from categories to figures with intervals by fact."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from intruscope.forgetting import intervals
from intruscope.forgetting.intervals import Interval
from intruscope.knowledge.matching import is_refusal, matches, normalised
from intruscope.knowledge.records import (
    CATEGORIES,
    LEVELS,
    AnswerFigures,
    Category,
    CommonAnswer,
    FactReport,
    KnowledgeFigures,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from intruscope.knowledge.facts import Fact

_NUM_COMMON = 5


def category_of(num_right: int, num_prompts: int, num_right_samples: int) -> Category:
    """The category of Gekhman et al. (arXiv 2405.05904).

    Args:
        num_right: Number of prompts whose greedy answer is right.
        num_prompts: Number of prompts.
        num_right_samples: Number of right answers among those sampled at a temperature.
    """
    if num_right == num_prompts:
        return "HighlyKnown"
    if num_right:
        return "MaybeKnown"
    return "WeaklyKnown" if num_right_samples else "Unknown"


def figures_of(facts: Sequence[FactReport]) -> KnowledgeFigures:
    """Counts, transitions and shifts of some facts.

    Args:
        facts: At least one.
    """
    num = len(facts)
    base, tuned, other = (
        np.array([LEVELS[category] for category in column])
        for column in zip(*((fact.base, fact.tuned, fact.base_other_prompts) for fact in facts), strict=True)
    )
    gained, lost, moved = tuned > base, tuned < base, other != base
    positive, negative = (intervals.wilson(int(changed.sum()), num) for changed in (gained, lost))
    # Other prompts move facts up and down alike, so half of what moves is what moves in one direction.
    both = intervals.wilson(int(moved.sum()), num)
    null = Interval(estimate=both.estimate / 2, low=both.low / 2, high=both.high / 2, level=both.level)
    return KnowledgeFigures(
        facts=num,
        base=_counts(fact.base for fact in facts),
        tuned=_counts(fact.tuned for fact in facts),
        transitions=_transitions((fact.base, fact.tuned) for fact in facts),
        positive_shift=positive,
        negative_shift=negative,
        net_shift=intervals.accuracy_difference(lost, gained),
        null_shift=null,
        null_transitions=_transitions((fact.base, fact.base_other_prompts) for fact in facts),
        positive_beyond_null=difference(positive, null),
        negative_beyond_null=difference(negative, null),
    )


def difference(first: Interval, second: Interval) -> Interval:
    """First minus second, with an interval from theirs (Newcombe 1998, method 10).

    It keeps its level where nothing changed, where a bootstrap would have no width. Shares of the same facts
    are taken as independent, which makes it too wide where they rise and fall together.
    """
    estimate = first.estimate - second.estimate
    below = math.hypot(first.estimate - first.low, second.high - second.estimate)
    above = math.hypot(first.high - first.estimate, second.estimate - second.low)
    return Interval(estimate=estimate, low=estimate - below, high=estimate + above, level=first.level)


def _counts(found: Iterable[Category]) -> dict[str, int]:
    counted = Counter(found)
    return {category: counted[category] for category in CATEGORIES}


def _transitions(pairs: Iterable[tuple[Category, Category]]) -> tuple[tuple[int, ...], ...]:
    counted = Counter(pairs)
    return tuple(tuple(counted[before, after] for after in CATEGORIES) for before in CATEGORIES)


def reliability(rights: Sequence[float]) -> Interval:
    """The mean share of right answers over facts, with Wilson's interval by fact.

    Args:
        rights: For each fact the share of its prompts that are answered right.
    """
    return intervals.wilson(math.fsum(rights), len(rights))


def answer_figures(facts: Sequence[Fact], answers: Sequence[Sequence[str]]) -> AnswerFigures:
    """How varied answers are, and how many are no answers at all.

    Args:
        facts: The facts.
        answers: The answers to each fact, one per prompt.
    """
    forms = Counter(normalised(answer) for own in answers for answer in own)
    num = forms.total()
    wrong = [
        (fact, answer)
        for fact, own in zip(facts, answers, strict=True)
        for answer in own
        if not matches(answer, fact.answers)
    ]
    taught = {normalised(answer) for fact in facts if fact.trained for answer in fact.answers}
    num_untrained = sum(len(own) for fact, own in zip(facts, answers, strict=True) if not fact.trained)
    num_taught = sum(normalised(answer) in taught for fact, answer in wrong if not fact.trained)
    return AnswerFigures(
        num_answers=num,
        num_distinct=len(forms),
        entropy=math.log(num) - math.fsum(n * math.log(n) for n in forms.values()) / num,
        top_fraction=max(forms.values()) / num,
        refusal_fraction=sum(is_refusal(answer) for _, answer in wrong) / num,
        trained_answer_fraction=num_taught / num_untrained if taught and num_untrained else None,
        common=tuple(
            CommonAnswer(text=text, fraction=count / num) for text, count in forms.most_common(_NUM_COMMON)
        ),
    )


def most_frequent(answers: Sequence[str]) -> str:
    """The answer that was given most often, as it was first written; the first of several."""
    forms = [normalised(answer) for answer in answers]
    (form, _), *_ = Counter(forms).most_common(1)
    return answers[forms.index(form)]
