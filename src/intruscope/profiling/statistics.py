"""Intervals for times that are taken in rounds.

Times of a machine are skewed, have outliers and drift together, so that means and their errors mislead. Here
everything is a median with the interval that two of the ordered values make (exact for independent rounds,
whatever the distribution), and settings are compared by their ratio within a round, which drift leaves alone.

Shape suffix: N rounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from intruscope.forgetting.intervals import LEVEL, Interval

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def median_interval(values_N: ArrayLike, *, level: float = LEVEL) -> Interval:
    """The median, between two of the values themselves.

    The narrowest pair of order statistics, alike from both ends, that holds the median with at least the
    level. Exact by the binomial distribution, and never below the level for independent values.

    Args:
        values_N: At least one, in any order.
        level: At least so often the interval holds the median.

    Returns:
        The interval with the level that was asked for; from too few values (:func:`rounds_needed`) the
        smallest to the largest, with the level that these have.

    Source: H. A. David and H. N. Nagaraja, Order Statistics, 3rd edition 2003, section 7.1.
    """
    from scipy.special import bdtr

    ordered = np.sort(np.asarray(values_N, dtype=np.float64))
    num = len(ordered)
    outside = [2.0 * float(bdtr(cut, num, 0.5)) for cut in range(num // 2)] or [1.0]
    cut = max((cut for cut, share in enumerate(outside) if share <= 1.0 - level), default=0)
    return Interval(
        estimate=float(np.median(ordered)),
        low=float(ordered[cut]),
        high=float(ordered[num - 1 - cut]),
        level=min(level, 1.0 - outside[0]),
    )


def rounds_needed(level: float) -> int:
    """The fewest values whose smallest and largest hold the median with the level."""
    num = 1
    while 2.0 ** (1 - num) > 1.0 - level:
        num += 1
    return num


def ratio_interval(seconds_N: ArrayLike, reference_N: ArrayLike, *, level: float = LEVEL) -> Interval:
    """The median over rounds of one time over another of the same round.

    Args:
        seconds_N: Of a setting, by round.
        reference_N: Of what it is compared with, by the same rounds.
        level: Of the interval.
    """
    ratios = np.asarray(seconds_N, dtype=np.float64) / np.asarray(reference_N, dtype=np.float64)
    return median_interval(ratios, level=level)


def level_of_each(num_compared: int, *, level: float = LEVEL) -> float:
    """The level of each of several intervals that makes all hold together with ``level`` (Bonferroni)."""
    return 1.0 - (1.0 - level) / max(1, num_compared)


def half_width(interval: Interval) -> float:
    """How far the interval reaches to its wider side, as a share of the estimate."""
    return max(interval.high - interval.estimate, interval.estimate - interval.low) / interval.estimate
