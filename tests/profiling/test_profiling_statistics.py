"""Intervals against simulated times whose ratios are known."""

import itertools
import math

import numpy as np
import pytest

from intruscope.profiling.statistics import (
    half_width,
    level_of_each,
    median_interval,
    ratio_interval,
    rounds_needed,
)


def skewed(generator, num, noise=0.05, outliers=0.05):
    """Times as machines give them: never below their floor, a long tail, now and then something else ran."""
    usual = 1.0 + noise * generator.exponential(size=num)
    return usual * np.where(generator.random(num) < outliers, generator.uniform(2.0, 10.0, num), 1.0)


def naive_interval(values, level):
    """Every symmetric pair of order statistics, and its chance by counting: the narrowest that suffices."""
    ordered, num = sorted(values), len(values)
    found = None
    for cut in range(num // 2):
        # The median lies between them unless at most `cut` values are below it, or at most `cut` above.
        missed = 2 * sum(math.comb(num, below) for below in range(cut + 1)) / 2**num
        if 1 - missed >= level:
            found = (ordered[cut], ordered[num - 1 - cut])
    return found


@pytest.mark.parametrize(("num", "level"), [*itertools.product((6, 9, 10, 17, 30, 101), (0.9, 0.95, 0.995))])
def test_the_interval_is_the_pair_that_counting_gives(num, level):
    values = np.random.default_rng(num).normal(size=num)
    found, expected = median_interval(values, level=level), naive_interval(values, level)
    if expected is None:
        assert num < rounds_needed(level)
        assert (found.low, found.high) == (values.min(), values.max())
        assert found.level == pytest.approx(1 - 2.0 ** (1 - num)) and found.level < level
    else:
        assert num >= rounds_needed(level)
        assert (found.low, found.high, found.level) == (*expected, level)
    assert found.estimate == np.median(values)


def test_a_single_value_promises_nothing():
    found = median_interval([3.0])
    assert (found.estimate, found.low, found.high, found.level) == (3.0, 3.0, 3.0, 0.0)


@pytest.mark.parametrize(("num", "least", "most"), [(6, 0.95, 0.985), (12, 0.95, 0.98), (40, 0.95, 0.975)])
def test_it_covers_as_often_as_it_says(num, least, most):
    """And not much more often: an interval of everything would also cover."""
    generator = np.random.default_rng(1)
    true = 1.0 + 0.05 * math.log(2.0)  # the median of the floor plus an exponential
    hits = 0
    for _ in range(3000):
        interval = median_interval(skewed(generator, num, outliers=0.0))
        hits += interval.low <= true <= interval.high
    assert least - 0.012 <= hits / 3000 <= most + 0.012


def test_rounds_that_are_added_until_it_is_narrow_cost_little_of_the_level():
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        full, lora = (generator.lognormal(0.0, 0.02, 50) for _ in range(2))
        num = 10
        while num < 50 and half_width(ratio_interval(lora[:num], full[:num])) > 0.02:
            num += 1
        interval = ratio_interval(lora[:num], full[:num])
        hits += interval.low <= 1.0 <= interval.high
    assert hits / 400 >= 0.91


def test_drift_that_hits_both_does_not_make_a_difference():
    """A machine that slows to a third: the times have doubled intervals, the ratios none of it."""
    generator = np.random.default_rng(3)
    drift = np.linspace(1.0, 3.0, 30) * (1 + 0.3 * np.sin(np.arange(30)))
    full, same = (drift * generator.lognormal(0.0, 0.01, 30) for _ in range(2))
    interval = ratio_interval(same, full)
    assert interval.low <= 1.0 <= interval.high and half_width(interval) < 0.01
    assert half_width(median_interval(full)) > 0.1
    tenth = ratio_interval(0.9 * same, full)
    assert tenth.low < 0.9 < tenth.high < 0.92  # not its inverse, 1.11


def test_a_few_wild_rounds_change_nothing():
    generator = np.random.default_rng(4)
    full, lora = generator.lognormal(0.0, 0.01, (2, 25))
    wild = lora.copy()
    wild[[3, 11, 19]] *= 50.0
    clean, hit = ratio_interval(lora, full), ratio_interval(wild, full)
    assert abs(hit.estimate - clean.estimate) < 0.01 and hit.high < 1.03
    assert np.mean(wild / full) > 5  # what a mean would have said


def test_several_intervals_hold_together():
    """Nine settings that are all alike: at their own level one in three profiles would lie about one."""
    generator = np.random.default_rng(5)
    level = level_of_each(9)
    assert level == pytest.approx(1 - 0.05 / 9)
    together = apart = 0
    for _ in range(400):
        times = generator.lognormal(0.0, 0.02, (10, 20))
        for rate, name in ((level, "together"), (0.95, "apart")):
            missed = any(
                not i.low <= 1.0 <= i.high
                for i in (ratio_interval(t, times[0], level=rate) for t in times[1:])
            )
            together += missed and name == "together"
            apart += missed and name == "apart"
    assert together / 400 <= 0.07
    assert apart / 400 >= 0.1
