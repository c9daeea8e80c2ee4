"""Paired figures: every model was measured on the same items, so differences are taken item by item.

All intervals of a sweep come from one set of bootstrap resamples of the items (sequences of the text,
examples of the task), drawn once. Two similar cells then have a narrow interval of their difference, however
wide their own intervals are.

Shape suffixes: B resamples, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from intruscope.errors import UsageError
from intruscope.forgetting.intervals import Interval, accuracy_difference, percentile_interval, wilson

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from intruscope.sweep.records import DataPart, Measurement, Metric, SweepSettings

    Array = NDArray[np.float64]

_FEWEST = 4
"""Fewest sequences or examples: two in each half, the least that can be resampled."""
_RATIO_NEEDS = 0.01
"""A share of the forgetting is reported where at most this share of resamples has none."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A part of the data, and the resamples of it that every figure shares.

    Attributes:
        data: Which part.
        text_items: Indices of sequences.
        task_items: Indices of examples.
        text_counts_BN: How often each resample holds each sequence; the first row is the sample itself.
        task_counts_BN: The same for the examples.
        confidence: Level of the intervals.
    """

    data: DataPart
    text_items: NDArray[np.intp]
    task_items: NDArray[np.intp]
    text_counts_BN: Array
    task_counts_BN: Array
    confidence: float

    def losses(self, measured: Measurement) -> Array:
        """Nats per token on the text, for the sample itself and for each resample; shape (1 + B,)."""
        return _means(self.text_counts_BN, self.text_items, measured.text_nats, measured.text_tokens)

    def scores(self, measured: Measurement) -> Array:
        """The task's score, likewise."""
        return _means(self.task_counts_BN, self.task_items, measured.task_scores, measured.task_weights)

    def task_losses(self, measured: Measurement) -> Array:
        """Loss of the right answers, likewise."""
        return _means(self.task_counts_BN, self.task_items, measured.task_nats, measured.task_weights)

    def interval(self, values: Array) -> Interval:
        """Estimate and percentile interval.

        Args:
            values: For the sample itself and for each resample; shape (1 + B,).
        """
        return percentile_interval(values[1:], float(values[0]), level=self.confidence)

    def accuracy(self, measured: Measurement) -> Interval:
        """Share of examples answered right."""
        right = np.asarray(measured.task_scores)[self.task_items]
        return wilson(int(right.sum()), len(right), level=self.confidence)

    def accuracy_difference(self, first: Measurement, second: Measurement) -> Interval:
        """Accuracy of the first minus that of the second, over the same examples."""
        after, before = (np.asarray(each.task_scores)[self.task_items] > 0.5 for each in (first, second))
        return accuracy_difference(before, after, level=self.confidence)

    def share(self, change: Array, forgetting: Array) -> Interval | None:
        """A change as a share of the forgetting, resampled together; None without measurable forgetting."""
        if forgetting[0] <= 0.0 or np.mean(forgetting[1:] <= 0.0) > _RATIO_NEEDS:
            return None
        usable = forgetting > 0.0
        return self.interval(change[usable] / forgetting[usable])


def samples(num_sequences: int, num_examples: int, settings: SweepSettings) -> tuple[Sample, Sample, Sample]:
    """All the data, the half that strengths are chosen on, and the half that they are evaluated on.

    Args:
        num_sequences: Number of sequences of the text.
        num_examples: Number of examples of the task.
        settings: Its seed decides the split and the resamples.

    Raises:
        UsageError: fewer than four of either.
    """
    check_counts(num_sequences, num_examples)
    generator = np.random.default_rng([settings.seed, num_sequences, num_examples])
    (text_first, text_second), (task_first, task_second) = _both_halves(
        num_sequences, num_examples, generator
    )
    return (
        _sample("all", np.arange(num_sequences), np.arange(num_examples), settings, generator),
        _sample("choosing half", text_first, task_first, settings, generator),
        _sample("evaluation half", text_second, task_second, settings, generator),
    )


def choosing_items(
    num_sequences: int, num_examples: int, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the sequences and of the examples in the choosing half, as in :func:`samples`.

    Args:
        num_sequences: Number of sequences of the text.
        num_examples: Number of examples of the task.
        seed: The settings' seed.
    """
    generator = np.random.default_rng([seed, num_sequences, num_examples])
    text, task = _both_halves(num_sequences, num_examples, generator)
    return text[0], task[0]


def check_counts(num_sequences: int, num_examples: int) -> None:
    """Refuse data that cannot be split into halves and resampled.

    Raises:
        UsageError: fewer than four of either.
    """
    for what, num in (("sequences", num_sequences), ("examples", num_examples)):
        if num < _FEWEST:
            raise UsageError(
                f"a sweep needs at least {_FEWEST} {what}, this one has {num}: one half chooses a strength "
                "and the other evaluates it",
                remedy="give more text" if what == "sequences" else "give more examples",
            )


def gain(metric: Metric) -> Callable[[float], float]:
    """Turns a change of the task's score into a gain: more is better, whatever the metric."""
    return (lambda change: change) if metric == "accuracy" else (lambda change: -change)


def _both_halves(
    num_sequences: int, num_examples: int, generator: np.random.Generator
) -> tuple[tuple[NDArray[np.intp], NDArray[np.intp]], tuple[NDArray[np.intp], NDArray[np.intp]]]:
    text = _halves(num_sequences, generator)
    return text, _halves(num_examples, generator)


def _halves(num_items: int, generator: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    order = generator.permutation(num_items)
    return np.sort(order[: num_items // 2]), np.sort(order[num_items // 2 :])


def _sample(
    data: DataPart,
    text: NDArray[np.intp],
    task: NDArray[np.intp],
    settings: SweepSettings,
    generator: np.random.Generator,
) -> Sample:
    return Sample(
        data=data,
        text_items=text,
        task_items=task,
        text_counts_BN=_counts(len(text), settings.num_resamples, generator),
        task_counts_BN=_counts(len(task), settings.num_resamples, generator),
        confidence=settings.confidence,
    )


def _counts(num_items: int, num_resamples: int, generator: np.random.Generator) -> Array:
    drawn = generator.multinomial(num_items, np.full(num_items, 1.0 / num_items), size=num_resamples)
    return np.vstack([np.ones(num_items), drawn])


def _means(
    counts_BN: Array, items: NDArray[np.intp], values: Sequence[float], weights: Sequence[float]
) -> Array:
    sums = counts_BN @ np.asarray(values, dtype=float)[items]
    return np.asarray(sums / (counts_BN @ np.asarray(weights, dtype=float)[items]), dtype=float)
