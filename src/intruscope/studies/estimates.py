"""What runs say about a figure: an estimate over seeds, its interval, and what effect it could have missed.

The unit is a run. Tasks are strata that are not drawn from anything: an interval speaks of these tasks and of
seeds that were not tried. Where two arms share a task and a seed they share the order of the data, and their
difference is taken run by run.

Few runs have few degrees of freedom, and every interval here is meant to keep its level with three seeds a
task (tests/studies holds each to simulated data of known truth).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from intruscope.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

LEVEL = 0.95
POWER = 0.8
_ROUNDING = 1e-12
"""Shares and nats are differences of numbers near one; nothing that is measured differs by less."""
_FEWEST_POINTS = 5
"""Of a correlation: with fewer, every interval is nearly (-1, 1)."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure over runs.

    Attributes:
        estimate: Of the figure.
        low: Lower end of the interval.
        high: Upper end.
        level: Of the interval.
        detectable: How far the truth would have to lie from a bound for the interval to clear it in 80% of
            repetitions.
        num_runs: Runs behind it, or pairs of runs; of a correlation, cells.
        num_tasks: They are of.
        freedom: Degrees of freedom of the interval; infinite where it comes from no spread over runs.
    """

    estimate: float
    low: float
    high: float
    level: float
    detectable: float
    num_runs: int
    num_tasks: int
    freedom: float = math.inf

    @property
    def error(self) -> float:
        """Standard error, from the width of the interval."""
        from scipy.special import ndtri, stdtrit

        tail = 0.5 + self.level / 2
        wide = ndtri(tail) if math.isinf(self.freedom) else stdtrit(self.freedom, tail)
        return (self.high - self.low) / (2.0 * float(wide))

    @property
    def size_text(self) -> str:
        """What stands behind it; a task with a single run does not."""
        return f"n = {self.num_runs}, {self.num_tasks} task{'' if self.num_tasks == 1 else 's'}"


@dataclass(frozen=True, kw_only=True)
class Heterogeneity:
    """Whether the figure of several tasks is one figure.

    Attributes:
        q: Cochran's Q, the weighted sum of squared distances from the weighted mean.
        p: Probability of so large a Q if the tasks' figures were equal (Welch 1951, made for few runs).
        num_tasks: Tasks compared.
    """

    q: float
    p: float
    num_tasks: int


def heterogeneity(estimates: Sequence[Estimate]) -> Heterogeneity | None:
    """Test whether estimates differ by more than their standard errors allow.

    Cochran's Q against a chi-square distribution rejects far too often where each task has three runs.
    Welch's test corrects the same Q for the degrees of freedom behind each error, and is Cochran's where
    these are infinite.

    Args:
        estimates: One per task, independent of each other.

    Returns:
        None for fewer than two estimates, or where one has no error.

    Source: Welch, "On the comparison of several mean values: an alternative approach", Biometrika 38, 1951.
    """
    from scipy.special import chdtrc, fdtrc

    errors = np.array([each.error for each in estimates])
    if len(estimates) < 2 or not (errors > 0.0).all():
        return None
    values, weights = np.array([each.estimate for each in estimates]), errors**-2.0
    shares, more = weights / weights.sum(), len(estimates) - 1
    q = float(weights @ (values - shares @ values) ** 2)
    unsure = float((((1.0 - shares) ** 2) / np.array([each.freedom for each in estimates])).sum())
    if unsure == 0.0:
        return Heterogeneity(q=q, p=float(chdtrc(more, q)), num_tasks=len(estimates))
    squares = len(estimates) ** 2 - 1
    ratio = q / more / (1.0 + 2.0 * (len(estimates) - 2) * unsure / squares)
    return Heterogeneity(q=q, p=float(fdtrc(more, squares / (3.0 * unsure), ratio)), num_tasks=len(estimates))


def stratified_mean(
    values: Mapping[str, Sequence[float]],
    *,
    level: float = LEVEL,
    shared: Mapping[str, tuple[float, int]] | None = None,
) -> Estimate | None:
    """Mean over strata of the mean over their runs, with Satterthwaite's t interval.

    Strata count alike, however many runs they have, and each keeps its own variance (Satterthwaite 1946).

    Args:
        values: Per stratum (task) one value per run (seed).
        level: Of the interval.
        shared: Per stratum a variance of its mean that its runs have in common, and its degrees of freedom:
            that of the examples that all of them are scored on, say. It is added to the runs' own, which
            holds a part of it already: the interval is too wide rather than too narrow.

    Returns:
        None where the runs of every stratum agree exactly, as shares of a few hundred examples may: then
        nothing is known of their spread, and the interval would be a point.

    Raises:
        UsageError: no stratum, or one with fewer than two runs.
    """
    _check(values)
    from scipy.special import stdtrit

    # Of a stratum's mean.
    own = [(0.0 if _agree(v) else float(np.var(v, ddof=1)) / len(v), len(v) - 1) for v in values.values()]
    common = [] if shared is None else [shared[stratum] for stratum in values]
    variances, freedoms = np.array([*own, *common]).T
    whole = float(variances.sum())
    if whole == 0.0:
        return None
    freedom = whole**2 / float((variances**2 / freedoms).sum())
    value, error = _mean(values), math.sqrt(whole) / len(values)
    value = 0.0 if abs(value) < _ROUNDING else value  # and not 2e-15 of a point
    wide, more = float(stdtrit(freedom, 0.5 + level / 2)), float(stdtrit(freedom, POWER))
    return Estimate(
        estimate=value,
        low=value - wide * error,
        high=value + wide * error,
        level=level,
        detectable=(wide + more) * error,
        num_runs=sum(map(len, values.values())),
        num_tasks=len(values),
        freedom=freedom,
    )


def _agree(values: Sequence[float]) -> bool:
    """Whether values differ by no more than rounding makes of one number."""
    return float(np.ptp(values)) <= _ROUNDING * max(1.0, float(np.abs(values).max()))


def mean_count(counts: Mapping[str, Sequence[float]], *, level: float = LEVEL) -> Estimate:
    """Mean count per run; at least as uncertain as counts of rare things are.

    Where all counts are equal, as where all are zero, seeds do not differ and there is no t interval. The
    interval is at least Poisson's exact one of the sum (Garwood 1936).

    Args:
        counts: Per stratum one count per run.
        level: Of the interval.

    Raises:
        UsageError: as :func:`stratified_mean`.
    """
    low, mean, high = _per_run(counts, level)
    found = _no_narrower(counts, low, high, reach=high - mean, level=level)
    return replace(found, low=max(0.0, found.low))


def mean_count_difference(
    counts: Mapping[str, Sequence[float]],
    others: Mapping[str, Sequence[float]],
    *,
    times: float = 1.0,
    level: float = LEVEL,
) -> Estimate:
    """Mean per run of one count less another of the same run; at least as uncertain as two rare counts are.

    Three runs without an intruder in either are no certainty that they are equally many. The interval is at
    least that of a difference whose two sides have Poisson's exact intervals (Zou and Donner 2008): too wide
    rather than too narrow where the two counts go together.

    Args:
        counts: Per stratum one count per run.
        others: The other counts, of the same runs.
        times: What the other counts are multiplied by.
        level: Of the interval.

    Raises:
        UsageError: as :func:`stratified_mean`.
    """
    values = {
        stratum: [a - times * b for a, b in zip(each, others[stratum], strict=True)]
        for stratum, each in counts.items()
    }
    low, mean, high = _per_run(counts, level)
    other_low, other_mean, other_high = (times * x for x in _per_run(others, level))
    down, up = (
        math.hypot(mean - low, other_high - other_mean),
        math.hypot(high - mean, other_mean - other_low),
    )
    middle = _mean(values)
    return _no_narrower(values, middle - down, middle + up, reach=max(down, up), level=level)


def _per_run(counts: Mapping[str, Sequence[float]], level: float) -> tuple[float, float, float]:
    """Poisson's exact interval of the sum of counts, and the sum itself, over the number of runs."""
    from scipy.special import chdtri

    _check(counts)
    tail = (1.0 - level) / 2.0
    total, runs = sum(map(sum, counts.values())), sum(map(len, counts.values()))
    low = 0.0 if total == 0.0 else float(chdtri(2.0 * total, 1.0 - tail)) / 2.0
    high = float(chdtri(2.0 * (total + 1.0), tail)) / 2.0
    return low / runs, total / runs, high / runs


def mean_share(shares: Mapping[str, Sequence[float]], *, level: float = LEVEL) -> Estimate:
    """Mean of shares between 0 and 1, one per run; at least as uncertain as so many draws of yes or no.

    The interval is at least the exact binomial one of as many draws as there are runs (Clopper and Pearson
    1934, continued to sums that are not whole), and of Student's what lies between 0 and 1.

    Args:
        shares: Per stratum one share per run.
        level: Of the interval.

    Raises:
        UsageError: as :func:`stratified_mean`.
    """
    from scipy.special import betaincinv

    mean, tail = _mean(shares), (1.0 - level) / 2.0
    total, runs = sum(map(sum, shares.values())), sum(map(len, shares.values()))
    low = 0.0 if total == 0.0 else float(betaincinv(total, runs - total + 1.0, tail))
    high = 1.0 if total == runs else float(betaincinv(total + 1.0, runs - total, 1.0 - tail))
    found = _no_narrower(shares, low, high, reach=max(high - mean, mean - low), level=level)
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def _no_narrower(
    values: Mapping[str, Sequence[float]], low: float, high: float, *, reach: float, level: float
) -> Estimate:
    """The mean, with the wider on each side of an exact interval and the one that the seeds give.

    Args:
        values: Per stratum one value per run.
        low: Of the exact interval.
        high: Of the exact interval.
        reach: The side of it that decides what is detectable.
        level: Of both intervals.
    """
    from scipy.special import ndtri

    spread = stratified_mean(values, level=level)
    detectable, freedom = reach * (1.0 + float(ndtri(POWER) / ndtri(0.5 + level / 2))), math.inf
    if spread is not None:
        if spread.high - spread.low > high - low:
            freedom = spread.freedom
        low, high = min(low, spread.low), max(high, spread.high)
        detectable = max(detectable, spread.detectable)
    return Estimate(
        estimate=_mean(values),
        low=low,
        high=high,
        level=level,
        detectable=detectable,
        num_runs=sum(map(len, values.values())),
        num_tasks=len(values),
        freedom=freedom,
    )


def relative_spread(values: Mapping[str, Sequence[float]], *, level: float = LEVEL) -> Estimate | None:
    """Standard deviation over seeds, pooled over strata, as a share of the mean.

    The interval is that of the deviation (chi-square); the mean is taken as known. None where the mean is
    zero.

    Raises:
        UsageError: as :func:`stratified_mean`.
    """
    from scipy.special import chdtri

    _check(values)
    mean = _mean(values)
    if mean <= 0.0:
        return None
    freedom = sum(len(v) - 1 for v in values.values())
    squares = sum(float(np.var(v, ddof=1)) * (len(v) - 1) for v in values.values())
    tail = (1.0 - level) / 2.0
    spread, low, high = (
        math.sqrt(squares / divisor) / mean
        for divisor in (freedom, float(chdtri(freedom, tail)), float(chdtri(freedom, 1.0 - tail)))
    )
    return Estimate(
        estimate=spread,
        low=low,
        high=high,
        level=level,
        detectable=high - spread,
        num_runs=sum(map(len, values.values())),
        num_tasks=len(values),
    )


def reliability(
    values: Mapping[str, Mapping[str, Sequence[float]]], *, level: float = LEVEL
) -> Estimate | None:
    """The share of a figure's variance that lies between models, not between the seeds of one model.

    The intraclass correlation of a one-way analysis of variance within tasks, with its exact interval for
    normal figures (Shrout and Fleiss 1979; the harmonic mean stands for unequal numbers of seeds).

    Args:
        values: Per task, per model, one value per seed. A model with one seed says nothing and is left out.
        level: Of the interval.

    Returns:
        None with fewer than two models, or where nothing varies.
    """
    from scipy.stats import f as f_distribution

    groups = [
        [np.asarray(seeds, dtype=np.float64) for seeds in models.values() if len(seeds) > 1]
        for models in values.values()
    ]
    groups = [models for models in groups if len(models) > 1]
    every = [seeds for models in groups for seeds in models]
    if not every:
        return None
    between = inside = 0.0
    for models in groups:
        middle = np.concatenate(models).mean()
        between += sum(len(seeds) * float(seeds.mean() - middle) ** 2 for seeds in models)
        inside += sum(float(((seeds - seeds.mean()) ** 2).sum()) for seeds in models)
    first, second = len(every) - len(groups), sum(len(seeds) - 1 for seeds in every)
    if between == 0.0 and inside == 0.0:
        return None
    size = len(every) / math.fsum(1.0 / len(seeds) for seeds in every)
    ratio = math.inf if inside == 0.0 else between / first / (inside / second)
    tail = 0.5 + level / 2
    low, high = (
        ratio / f_distribution.ppf(tail, first, second),
        ratio * f_distribution.ppf(tail, second, first),
    )
    middle, least, most = (_intraclass(each, size) for each in (ratio, low, high))
    return Estimate(
        estimate=middle,
        low=least,
        high=most,
        level=level,
        detectable=most - middle,
        num_runs=sum(map(len, every)),
        num_tasks=len(groups),
    )


def _intraclass(ratio: float, size: float) -> float:
    return 1.0 if math.isinf(ratio) else float((ratio - 1.0) / (ratio + size - 1.0))


def _check(values: Mapping[str, Sequence[float]]) -> None:
    least = min(map(len, values.values()), default=0)
    if least < 2:
        raise UsageError(
            f"a task has {least} runs; at least 2 are needed to see the variation over seeds",
            remedy="run more seeds",
        )


def _mean(values: Mapping[str, Sequence[float]]) -> float:
    return float(np.mean([np.mean(v) for v in values.values()]))


def rank_correlation(
    first: ArrayLike,
    second: ArrayLike,
    strata: Sequence[str],
    *,
    given: ArrayLike | None = None,
    bound: float = 0.0,
    level: float = LEVEL,
) -> Estimate | None:
    """Spearman's correlation within strata, or its partial one.

    Ranks (ties share theirs) are taken within each stratum and scaled to (-1, 1), so that tasks that differ
    in level do not make a correlation. The interval is Fisher's with the variance of Bonett and Wright
    (2000); each stratum beyond the first, and the variable that is given, costs one degree of freedom.

    What is estimated is the correlation of ranks in strata of this size, which for small ones is a little
    nearer to zero than in a population (Moran 1948: 0.83 instead of 0.89 for eight normal pairs that
    correlate by 0.9).

    Args:
        first: One value per point.
        second: The same.
        strata: The stratum of each point.
        given: What both are freed of, by rank regression.
        bound: That ``detectable`` is reckoned from, outwards.
        level: Of the interval.

    Returns:
        None where fewer than five degrees of freedom are left, or one of the two does not vary.
    """
    from scipy.special import ndtri

    columns = [_ranks(np.asarray(x, dtype=np.float64), strata) for x in (first, second)]
    freedom = len(strata) - (len(set(strata)) - 1)
    if given is not None:
        control = _ranks(np.asarray(given, dtype=np.float64), strata)
        power = float(control @ control)
        freedom -= 1
        if power > 0.0:
            columns = [x - control * (float(x @ control) / power) for x in columns]
    norms = [float(np.linalg.norm(x)) for x in columns]
    if freedom < _FEWEST_POINTS or min(norms) < 1e-9 * max(1.0, len(strata)):
        return None
    rho = min(1.0, max(-1.0, float(columns[0] @ columns[1]) / (norms[0] * norms[1])))
    z = math.atanh(max(-0.999999, min(0.999999, rho)))
    error = math.sqrt((1.0 + rho**2 / 2.0) / (freedom - 3))
    wide, more = float(ndtri(0.5 + level / 2)), float(ndtri(POWER))
    return Estimate(
        estimate=rho,
        low=math.tanh(z - wide * error),
        high=math.tanh(z + wide * error),
        level=level,
        detectable=math.tanh(
            math.atanh(bound) + (wide + more) * math.sqrt((1.0 + bound**2 / 2.0) / (freedom - 3))
        )
        - bound,
        num_runs=len(strata),
        num_tasks=len(set(strata)),
    )


def _ranks(values: Array, strata: Sequence[str]) -> Array:
    """Ranks within each stratum, from -1 to 1; zero in a stratum of one."""
    from scipy.stats import rankdata

    ranks = np.zeros(len(values))
    names = np.asarray(strata)
    for name in dict.fromkeys(strata):
        here = names == name
        count = int(here.sum())
        if count > 1:
            ranks[here] = (2.0 * rankdata(values[here]) - count - 1.0) / (count - 1.0)
    return ranks
