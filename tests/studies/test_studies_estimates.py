"""Intervals over few runs keep their level, find what is there, and say what they could not have seen."""

import math

import numpy as np
import pytest
from scipy import stats

from intruscope.errors import UsageError
from intruscope.studies.estimates import (
    mean_count,
    mean_count_difference,
    mean_share,
    rank_correlation,
    relative_spread,
    stratified_mean,
)

TASKS = ("a", "b", "c")


def draws(rng, means, sds, seeds=3):
    return {t: rng.normal(m, s, seeds).tolist() for t, m, s in zip(TASKS, means, sds, strict=True)}


def share_covering(simulate, truth, repetitions=600):
    hits = [found.low <= truth <= found.high for found in map(simulate, range(repetitions))]
    return np.mean(hits)


def test_a_stratified_mean_is_the_mean_of_means_with_the_textbooks_interval():
    values = {"a": [1.0, 2.0, 3.0], "b": [10.0, 14.0]}
    found = stratified_mean(values)
    variances = np.array([1.0 / 3, 8.0 / 2])
    freedom = variances.sum() ** 2 / (variances**2 / [2, 1]).sum()
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variances.sum()) / 2
    assert (found.estimate, found.num_runs, found.num_tasks) == (7.0, 5, 2)
    assert found.size_text == "n = 5, 2 tasks"
    assert found.high - found.estimate == pytest.approx(half, rel=1e-12)
    assert found.low == pytest.approx(2 * found.estimate - found.high)


def test_one_stratum_is_students_interval():
    values = [0.3, 0.1, 0.4, 0.2]
    found = stratified_mean({"a": values}, level=0.9)
    low, high = stats.t.interval(0.9, 3, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("sds", [(1.0, 1.0, 1.0), (0.1, 1.0, 3.0), (0.0, 0.0, 2.0)], ids=str)
@pytest.mark.parametrize("level", [0.95, 0.9875])
def test_intervals_of_three_seeds_keep_their_level(sds, level):
    means = (5.0, -1.0, 2.0)

    def simulate(number):
        return stratified_mean(draws(np.random.default_rng(number), means, sds), level=level)

    covered = share_covering(simulate, 2.0)
    # Satterthwaite's freedoms are known to be careful, never careless beyond a percent or so.
    error = math.sqrt(level * (1 - level) / 600)
    assert covered > level - 0.012 - 2.5 * error


def test_an_effect_of_the_detectable_size_is_seen_in_about_four_of_five():
    def simulate(number, effect):
        return stratified_mean(draws(np.random.default_rng(number), (effect,) * 3, (1.0,) * 3, seeds=6))

    detectable = np.median([simulate(n, 0.0).detectable for n in range(200)])
    seen = np.mean([simulate(n, detectable).low > 0.0 for n in range(600)])
    assert 0.72 < seen < 0.88
    assert np.mean([simulate(n, 0.0).low > 0.0 for n in range(600)]) < 0.045


@pytest.mark.parametrize("values", [{}, {"a": [1.0]}, {"a": [1.0, 2.0], "b": [3.0]}])
def test_one_run_is_refused(values):
    with pytest.raises(UsageError, match="more seeds"):
        stratified_mean(values)


def test_runs_that_agree_exactly_say_nothing_of_their_spread():
    assert stratified_mean({"a": [0.25] * 3, "b": [0.5] * 3}) is None
    one_in_two_hundred = [0.79 - 0.795, 0.81 - 0.815, (0.79 - 0.8) + 0.005]
    assert len(set(one_in_two_hundred)) > 1
    assert stratified_mean({"a": one_in_two_hundred}) is None
    assert stratified_mean({"a": [*one_in_two_hundred, -0.005 + 1e-9]}) is not None
    one_varies = stratified_mean({"a": [0.25] * 3, "b": [0.5, 0.5, 0.51]})
    assert one_varies.low < one_varies.estimate < one_varies.high


def test_equal_counts_are_no_certainty():
    zero = mean_count({task: [0.0] * 3 for task in TASKS})
    assert (zero.estimate, zero.low) == (0.0, 0.0)
    assert zero.high == pytest.approx(-math.log(0.025) / 9)  # the exact bound of a sum of nine
    ones = mean_count({task: [1.0] * 3 for task in TASKS})
    assert ones.low < 0.6
    assert ones.high > 1.6


@pytest.mark.parametrize("rate", [0.05, 0.4, 3.0])
def test_intervals_of_rare_counts_keep_their_level(rate):
    def simulate(number):
        rng = np.random.default_rng(number)
        return mean_count({task: rng.poisson(rate, 3).tolist() for task in TASKS})

    assert share_covering(simulate, rate) > 0.94


def test_two_counts_that_agree_in_every_run_are_no_certainty():
    zero = {task: [0.0] * 3 for task in TASKS}
    found = mean_count_difference(zero, zero)
    bound = -math.log(0.025) / 9
    assert (found.low, found.estimate, found.high) == (pytest.approx(-bound), 0.0, pytest.approx(bound))
    sevens = {task: [7.0] * 3 for task in TASKS}
    one, other = mean_count_difference(sevens, zero), mean_count_difference(zero, sevens)
    assert (one.estimate, one.low, one.high) == (7.0, -other.high, -other.low)
    assert 0.0 < one.low < 7.0 < one.high
    # Half of the other counts, not half of the difference; sides as Zou and Donner put them together.
    half = mean_count_difference(sevens, sevens, times=0.5)
    low, high = stats.gamma.ppf([0.025, 0.975], [63, 64]) / 9
    assert half.estimate == 3.5
    assert half.low == pytest.approx(3.5 - math.hypot(7 - low, (high - 7) / 2), rel=1e-9)
    assert half.high == pytest.approx(3.5 + math.hypot(high - 7, (7 - low) / 2), rel=1e-9)


@pytest.mark.parametrize("rates", [(0.05, 0.05), (0.4, 0.05), (3.0, 8.0)], ids=str)
def test_intervals_of_differences_of_counts_keep_their_level(rates):
    def simulate(number):
        rng = np.random.default_rng(number)
        one, other = ({task: rng.poisson(rate, 3).tolist() for task in TASKS} for rate in rates)
        found = mean_count_difference(one, other)
        spread = stratified_mean({task: np.subtract(one[task], other[task]).tolist() for task in TASKS})
        assert spread is None or found.low <= spread.low < spread.high <= found.high
        return found

    assert share_covering(simulate, rates[0] - rates[1]) > 0.94


def test_an_interval_of_a_share_is_one_of_shares():
    """Student's would reach from -.5 to 1.7 here."""
    found = mean_share({"a": [0.2, 1.0, 0.6]})
    assert (found.low, found.high) == (0.0, 1.0)
    assert stratified_mean({"a": [0.2, 1.0, 0.6]}).high > 1.5


def test_shares_are_as_uncertain_as_so_many_draws():
    whole = mean_share({task: [1.0] * 3 for task in TASKS})
    assert (whole.estimate, whole.high) == (1.0, 1.0)
    assert whole.low == pytest.approx(stats.binomtest(9, 9).proportion_ci(0.95, "exact").low)
    none = mean_share({task: [0.0] * 3 for task in TASKS})
    assert (none.low, none.high) == (0.0, pytest.approx(1.0 - whole.low))

    def simulate(number):
        rng = np.random.default_rng(number)
        return mean_share({task: (rng.binomial(12, 0.8, 3) / 12).tolist() for task in TASKS})

    assert share_covering(simulate, 0.8) > 0.94


def test_counts_that_vary_more_than_poissons_are_as_wide_as_they_vary():
    values = {"a": [0.0, 40.0, 80.0], "b": [10.0, 60.0, 90.0]}
    assert mean_count(values).high >= stratified_mean(values).high


def test_the_spread_over_seeds_is_a_share_of_the_mean():
    rng = np.random.default_rng(0)
    found = relative_spread({task: rng.normal(100.0, 10.0, 400).tolist() for task in TASKS})
    assert found.low < 0.1 < found.high
    assert found.high - found.low < 0.02
    assert relative_spread({"a": [0.0, 0.0, 0.0]}) is None

    def simulate(number):
        rng = np.random.default_rng(number)
        return relative_spread({task: rng.normal(100.0, 10.0, 5).tolist() for task in TASKS})

    assert share_covering(simulate, 0.1) > 0.92


def related(rng, rho, num, strata=("a",)):
    """Points of which each stratum has its own level; rho is Pearson's of the normals behind."""
    first, second, names = [], [], []
    for number, name in enumerate(strata):
        x = rng.normal(size=num)
        y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=num)
        first += (x + 50.0 * number).tolist()
        second += (y - 70.0 * number).tolist()
        names += [name] * num
    return first, second, names


def test_one_stratum_is_spearmans_own_coefficient_also_with_ties():
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 5, 20), rng.integers(0, 4, 20)
    found = rank_correlation(x, y, ["a"] * 20)
    assert found.estimate == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_levels_of_strata_make_no_correlation():
    first, second, names = related(np.random.default_rng(0), 0.0, 40, TASKS)
    assert stats.spearmanr(first, second).statistic < -0.8  # what a careless study would report
    found = rank_correlation(first, second, names)
    assert abs(found.estimate) < 0.2
    assert found.low < 0.0 < found.high


@pytest.mark.parametrize(("rho", "num"), [(0.0, 8), (0.5, 8), (0.9, 8), (0.0, 15)])
def test_intervals_of_correlations_keep_their_level(rho, num):
    # The expectation of Spearman's coefficient for so many normal pairs (Moran 1948).
    truth = 6.0 / (math.pi * (num + 1)) * (math.asin(rho) + (num - 2) * math.asin(rho / 2.0))

    def simulate(number):
        return rank_correlation(*related(np.random.default_rng(number), rho, num, TASKS))

    assert share_covering(simulate, truth) > 0.92


@pytest.mark.parametrize("bound", [0.0, 0.5])
def test_a_correlation_as_far_from_its_bound_as_told_is_seen_in_about_four_of_five(bound):
    def simulate(number, rho):
        return rank_correlation(*related(np.random.default_rng(number), rho, 60, ("a",)), bound=bound)

    truth = bound + simulate(0, 0.0).detectable
    assert truth < 0.85
    rho = 2.0 * math.sin(math.pi * truth / 6.0)  # of normal pairs with that Spearman's coefficient
    assert 0.7 < np.mean([simulate(number, rho).low > bound for number in range(400)]) < 0.9


def test_a_correlation_through_a_third_is_gone_when_that_is_given():
    rng = np.random.default_rng(1)
    size = rng.normal(size=60)
    first, second = size + 0.3 * rng.normal(size=60), size + 0.3 * rng.normal(size=60)
    names = ["a"] * 60
    assert rank_correlation(first, second, names).low > 0.7
    partial = rank_correlation(first, second, names, given=size)
    assert partial.low < 0.0 < partial.high
    # And one beyond it stays.
    third = first + 0.3 * rng.normal(size=60)
    assert rank_correlation(first, third, names, given=size).low > 0.2


def test_what_cannot_be_correlated_is_none():
    assert rank_correlation([1, 2, 3, 4], [1, 2, 3, 4], ["a"] * 4) is None
    assert rank_correlation([5.0] * 9, list(range(9)), ["a"] * 9) is None
    assert rank_correlation(list(range(6)), list(range(6)), ["a", "b", "c", "d", "e", "f"]) is None
