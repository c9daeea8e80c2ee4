"""Intervals for figures that are paired by sequence or by example.

Losses per token are ratios of sums over sequences of unequal length, so the bootstrap resamples whole
sequences: both models' losses and the tokens of a sequence stay together.

Shape suffixes: C columns, N sequences or examples, R resamples.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from intruscope.errors import UsageError
from intruscope.forgetting.settings import NUM_RESAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    Outcomes = Sequence[bool] | NDArray[np.bool_]

LEVEL = 0.95
_MAX_CELLS = 1 << 22
_KEPT_CELLS = 1 << 20
_MAX_EXACT_FLIPS = 12


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its bounds at a nominal level."""

    estimate: float
    low: float
    high: float
    level: float = LEVEL


def resampled_sums(
    columns_CN: ArrayLike, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Sums of each column over sequences drawn with replacement; the same draws for all columns.

    Any ratio of these sums is then a bootstrap sample of that ratio.

    Args:
        columns_CN: One row per figure, one column per sequence.
        num_resamples: Number of resamples, R.
        seed: Random seed.

    Returns:
        (R, C).

    Raises:
        UsageError: fewer than two sequences.
    """
    columns = np.atleast_2d(np.asarray(columns_CN, dtype=np.float64))
    num = columns.shape[1]
    if num < 2:
        raise UsageError(
            f"an interval needs at least 2 sequences, this text has {num}",
            remedy="give more text, or a smaller context",
        )
    draw = _kept_draws if num * num_resamples <= _KEPT_CELLS else _draws
    return np.concatenate([part_RN @ columns.T for part_RN in draw(num, num_resamples, seed)])


def _draws(num: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each of ``num`` sequences is in each resample, in parts of limited size."""
    generator = np.random.default_rng(seed)
    shares = np.full(num, 1.0 / num)
    step = max(1, _MAX_CELLS // num)
    for first in range(0, num_resamples, step):
        yield generator.multinomial(num, shares, size=min(step, num_resamples - first))


@functools.lru_cache(maxsize=4)
def _kept_draws(num: int, num_resamples: int, seed: int) -> tuple[NDArray[np.int64], ...]:
    """The same, kept: several figures of the same sequences share their draws, which take all the time."""
    return tuple(_draws(num, num_resamples, seed))


def percentile_interval(samples_R: ArrayLike, estimate: float, *, level: float = LEVEL) -> Interval:
    """The middle ``level`` of bootstrap samples around an estimate."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(np.asarray(samples_R, dtype=np.float64), [tail, 1.0 - tail])
    return Interval(estimate=float(estimate), low=float(low), high=float(high), level=level)


def loss_per(
    nats_N: ArrayLike, units_N: ArrayLike, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """Sum of nats over sum of units (tokens or bytes), with its bootstrap interval."""
    return _ratio(np.asarray(nats_N, dtype=np.float64), units_N, num_resamples, seed)


def paired_difference(
    before_N: ArrayLike,
    after_N: ArrayLike,
    units_N: ArrayLike,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Unit-weighted mean of after minus before, with its paired bootstrap interval.

    Args:
        before_N: Nats of each sequence.
        after_N: Nats of the same sequences.
        units_N: Tokens (or bytes) of the same sequences.
        num_resamples: Number of resamples, R.
        seed: Random seed.

    Raises:
        UsageError: fewer than two sequences.
    """
    difference = np.asarray(after_N, dtype=np.float64) - np.asarray(before_N, dtype=np.float64)
    return _ratio(difference, units_N, num_resamples, seed)


def _ratio(top_N: NDArray[np.float64], units_N: ArrayLike, num_resamples: int, seed: int) -> Interval:
    units = np.asarray(units_N, dtype=np.float64)
    sums = resampled_sums(np.stack([top_N, units]), num_resamples=num_resamples, seed=seed)
    return percentile_interval(sums[:, 0] / sums[:, 1], top_N.sum() / units.sum())


def wilson(num_right: float, num: int, *, level: float = LEVEL) -> Interval:
    """A share with Wilson's score interval (Wilson 1927).

    Args:
        num_right: How many are right. May be a sum of shares between 0 and 1: their variance is never larger
            than that of outcomes with the same mean, so the interval is then conservative.
        num: Of how many.
        level: Nominal level.
    """
    from scipy.special import ndtri

    z2 = float(ndtri(0.5 + level / 2)) ** 2
    centre = (num_right + z2 / 2) / (num + z2)
    half = math.sqrt(z2 * (num_right * (num - num_right) / num + z2 / 4)) / (num + z2)
    low = 0.0 if num_right == 0 else max(0.0, centre - half)
    high = 1.0 if num_right == num else min(1.0, centre + half)
    return Interval(estimate=num_right / num, low=low, high=high, level=level)


def mcnemar(
    before_N: Sequence[bool] | NDArray[np.bool_], after_N: Sequence[bool] | NDArray[np.bool_]
) -> float:
    """Exact two-sided p of McNemar's test that as many examples are lost as won; 1 when none changed."""
    from scipy.stats import binomtest

    lost, won = _changes(before_N, after_N)
    return 1.0 if lost + won == 0 else float(binomtest(lost, lost + won, 0.5).pvalue)


def sign_flip(
    before_N: ArrayLike, after_N: ArrayLike, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> float:
    """Two-sided p that the mean of after minus before is 0, by flipping the signs of the differences.

    The test for scores that are no plain right or wrong, such as F1. Fisher's randomisation test for pairs;
    all flips of up to twelve differences, and ``num_resamples`` random ones of more, with one added to both
    counts so that p is never 0.

    Args:
        before_N: Score of each item.
        after_N: Score of the same items.
        num_resamples: Number of random flips.
        seed: Random seed.
    """
    differences = np.asarray(after_N, dtype=np.float64) - np.asarray(before_N, dtype=np.float64)
    changed = differences[differences != 0.0]
    if changed.size == 0:
        return 1.0
    if changed.size <= _MAX_EXACT_FLIPS:
        bits = np.arange(1 << changed.size)[:, None] >> np.arange(changed.size) & 1
        sums, extra = (1.0 - 2.0 * bits) @ changed, 0
    else:
        generator = np.random.default_rng(seed)
        step = max(1, _MAX_CELLS // changed.size)
        parts = [
            generator.choice((-1.0, 1.0), size=(min(step, num_resamples - first), changed.size)) @ changed
            for first in range(0, num_resamples, step)
        ]
        sums, extra = np.concatenate(parts), 1
    # Equal sums in another order of additions must count as equal.
    reached = np.abs(sums) >= abs(changed.sum()) * (1.0 - 1e-9)
    return float((reached.sum() + extra) / (sums.size + extra))


def holm(ps: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p of several tests: below 0.05, so is the chance that any such finding is false (Holm 1979).

    It holds however the tests depend on each other, as tasks answered by the same two models do.

    Args:
        ps: p of each test.

    Returns:
        Adjusted p, in the same order.
    """
    order = sorted(range(len(ps)), key=lambda index: ps[index])
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def accuracy_difference(
    before_N: Outcomes,
    after_N: Outcomes,
    *,
    level: float = LEVEL,
) -> Interval:
    """Accuracy after minus before on the same examples, with the interval of Bonett and Price (2012).

    This is Wald's interval for paired proportions with one example added to each kind of change, so that it
    keeps its level where few or no examples changed.

    Args:
        before_N: Which examples were answered right before.
        after_N: Which are answered right after.
        level: Nominal level.

    Raises:
        UsageError: the two differ in length, or are empty.
    """
    from scipy.special import ndtri

    lost, won = _changes(before_N, after_N)
    num = len(before_N)
    share_lost, share_won = (lost + 1) / (num + 2), (won + 1) / (num + 2)
    centre = share_won - share_lost
    half = float(ndtri(0.5 + level / 2)) * math.sqrt((share_won + share_lost - centre**2) / (num + 2))
    return Interval(
        estimate=(won - lost) / num, low=max(-1.0, centre - half), high=min(1.0, centre + half), level=level
    )


def _changes(
    before_N: Sequence[bool] | NDArray[np.bool_], after_N: Sequence[bool] | NDArray[np.bool_]
) -> tuple[int, int]:
    before, after = np.asarray(before_N, dtype=bool), np.asarray(after_N, dtype=bool)
    if before.shape != after.shape or before.size == 0:
        raise UsageError(
            f"{before.size} examples before and {after.size} after cannot be paired",
            remedy="score both models on the same examples",
        )
    return int((before & ~after).sum()), int((after & ~before).sum())
