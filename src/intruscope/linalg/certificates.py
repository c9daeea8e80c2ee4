"""Bounds that hold for every singular vector of a matrix, from a Krylov space that saw a few products.

Let (σ, u, v) be *any* singular triplet of A and write a = Uᵀu, w = Vᵀv, f = V₊ᵀv for the bases of a
:class:`~intruscope.linalg.golub_kahan.RitzSystem`. Multiplying the two recurrences by u and v gives,
in Ritz coordinates â = Pᵀa, ŵ = Zᵀw,

    σ ŵ − S â = e₁,      σ â − S ŵ − D f = e₂,      ‖a‖² ≤ 1,  ‖w‖² + ‖f‖² ≤ 1,

with e₁, e₂ no larger than the measured recurrence error η. If σ is only known to lie within h of a
centre c, replacing σ by c adds at most h to either. So (â, ŵ, f) lies in the intersection of two
ellipsoids, and for every 0 < t < 1 in the single ellipsoid

    t (‖â‖² + ‖ŵ‖² + ‖f‖²)/2 + (1 − t) (‖e₁‖² + ‖e₂‖²)/(2 (h + η)²) ≤ 1,

over which a linear functional has a closed-form maximum (the matrix splits into 2 x 2 blocks and one
b x b Schur complement). That is a *proof*, valid for clusters too, of how much of a start vector any
singular vector with σ in [c − h, c + h] can hold. Nothing is evaluated on a grid: intervals cover the
whole range.

The random columns of the start block turn the same bound into an *exclusion*: a singular vector whose
share in b Gaussian columns would have to be below a level that Gaussian columns reach with negligible
probability does not exist, with that probability.

Source: the Christoffel-function argument of Gauss quadrature (Golub & Meurant 2010, ch. 6), here for
blocks, for intervals and with the rounding in the bound; the S-lemma relaxation is the classical one
(Boyd et al. 1994, §2.6.3).

Shape suffixes: K Krylov dimension, B block, F functionals, Q intervals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from intruscope.linalg.golub_kahan import RitzSystem

_MIXES = (0.5, 0.9, 0.99, 0.999)
_CHUNK_ENTRIES = 1 << 20
_MAX_INTERVALS = 6000
_WORTHWHILE = 0.97
_WORTHWHILE_NEAR = 0.997
_NEAR = 1.3
_LEAST_REACH = 2e-7
FAILURE_PROBABILITY = 1e-10


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """What every bound at a batch of intervals is assembled from, for one mix t."""

    alpha_QK: Tensor
    phi_QK: Tensor
    schur_QBB: Tensor


class IntervalBounds:
    """Bounds on functionals of the right singular vectors of A over intervals of singular values.

    Args:
        system: The Krylov space.
        functionals_KF: Coordinates of each functional along the right Ritz vectors.
    """

    def __init__(self, system: RitzSystem, functionals_KF: Tensor) -> None:
        self.system = system
        self.functionals_KF = functionals_KF
        size, block = system.coupling_KB.shape
        outer = system.coupling_KB.unsqueeze(2) * system.coupling_KB.unsqueeze(1)
        self._outer_KBB = outer.reshape(size, block * block)
        count = functionals_KF.shape[1]
        crossed = system.coupling_KB.unsqueeze(2) * functionals_KF.unsqueeze(1)
        self._crossed_KBF = crossed.reshape(size, block * count)

    def _terms(self, centre_Q: Tensor, reach_Q: Tensor, mix: float) -> _Terms:
        s = self.system.values.unsqueeze(0)
        c = centre_Q.unsqueeze(1)
        kappa = ((1.0 - mix) / reach_Q.square()).unsqueeze(1)
        near = kappa * (c - s).square() + mix
        far = kappa * (c + s).square() + mix
        inverse_near, inverse_far = 1.0 / near, 1.0 / far
        alpha = 0.5 * (inverse_near + inverse_far)
        block = self.system.coupling_KB.shape[1]
        schur = ((mix * kappa * alpha) @ self._outer_KBB).reshape(-1, block, block)
        schur.diagonal(dim1=1, dim2=2).add_(mix)
        return _Terms(
            alpha_QK=alpha,
            phi_QK=0.5 * kappa * ((c - s) * inverse_near - (c + s) * inverse_far),
            schur_QBB=schur,
        )

    def _reach(self, half_width_Q: Tensor) -> Tensor:
        """Half-width + η, no less than what keeps the Schur complement well inside float64."""
        floor = _LEAST_REACH * float(self.system.values[0])
        return (half_width_Q + self.system.recurrence_error).clamp(min=floor)

    def _solved(self, terms: _Terms) -> Tensor:
        """L⁻¹ times the cross terms, L Lᵀ the Schur complement: (Q, B, F)."""
        block = terms.schur_QBB.shape[1]
        cross = (terms.phi_QK @ self._crossed_KBF).reshape(len(terms.phi_QK), block, -1)
        factor = torch.linalg.cholesky(terms.schur_QBB)
        solved: Tensor = torch.linalg.solve_triangular(factor, cross, upper=False)
        return solved

    def squares(self, centre_Q: Tensor, half_width_Q: Tensor) -> Tensor:
        """Upper bounds on (g · v)² for each interval and functional: (Q, F)."""
        squared_KF = self.functionals_KF.square()
        size, count = self.functionals_KF.shape
        best = torch.full((len(centre_Q), count), math.inf, dtype=torch.float64)
        for at in _chunks(len(centre_Q), size):
            reach = self._reach(half_width_Q[at])
            for mix in _MIXES:
                terms = self._terms(centre_Q[at], reach, mix)
                solved = self._solved(terms)
                value = terms.alpha_QK @ squared_KF + solved.square().sum(dim=1)
                best[at] = torch.minimum(best[at], value)
        return 2.0 * (1.0 + self.system.orthogonality_error) * best

    def away_as_column(self, centre_Q: Tensor, half_width_Q: Tensor) -> Tensor:
        """:meth:`away_from_ritz_values` as the (Q, 1) array that :func:`cover` takes."""
        return self.away_from_ritz_values(centre_Q, half_width_Q).unsqueeze(1)

    def away_from_ritz_values(
        self, centre_Q: Tensor, half_width_Q: Tensor, *, ignored: slice = slice(0, 0)
    ) -> Tensor:
        """Upper bounds on ‖Gᵀv‖² over intervals that hold no Ritz value but the ignored ones, (Q,).

        Away from the Ritz values the coordinates are explicit, ŵ_j = s_j D_j f / (σ² − s_j²) plus the
        effect of e₁ and e₂, and smooth in σ: value and slope at the centre, a bound on the curvature
        over the interval. Far tighter there than the ellipsoid. Infinite where a Ritz value that is
        not ignored lies in the interval.

        With d Ritz values ignored the bound holds for a unit combination of d + 1 singular vectors
        with values in the interval, chosen orthogonal to the ignored Ritz vectors; their different σ
        and errors then add up to a factor √(d + 1).
        """
        system = self.system
        kept = torch.ones(len(system.values), dtype=torch.bool)
        kept[ignored] = False
        spread = math.sqrt(1.0 + float((~kept).sum()))
        s_K = system.values[kept]
        crossed = self._crossed_KBF[kept]
        low, high = (centre_Q - half_width_Q).unsqueeze(1), (centre_Q + half_width_Q).unsqueeze(1)
        c, h, s = centre_Q.unsqueeze(1), half_width_Q, s_K.unsqueeze(0)
        distance = torch.maximum(low - s, s - high)
        inside = (distance <= 0).any(dim=1)
        distance = distance.clamp_min(torch.finfo(torch.float64).tiny)
        separation = distance * (torch.where(low > s, low, high) + s)
        weight_K = torch.linalg.vector_norm(self.functionals_KF[kept], dim=1)
        leak_K = s_K * torch.linalg.vector_norm(system.coupling_KB[kept], dim=1)
        difference = c.square() - s.square()
        value = torch.linalg.vector_norm((s / difference) @ crossed, dim=1)
        slope = torch.linalg.vector_norm((-2 * c * s / difference.square()) @ crossed, dim=1)
        curvature = (2 / separation.square() + 8 * high.square() / separation.pow(3)) @ (weight_K * leak_K)
        rounding = 2 * system.recurrence_error * (distance.pow(-2) @ weight_K.square()).sqrt()
        bound = value + spread * (h * slope + 0.5 * h.square() * curvature + rounding)
        bound = (1.0 + system.orthogonality_error) * bound.square()
        return torch.where(inside, torch.full_like(bound, math.inf), bound)


def _chunks(count: int, width: int) -> list[slice]:
    step = max(16, _CHUNK_ENTRIES // max(width, 1))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def cover(
    edges: Tensor,
    evaluate: Callable[[Tensor, Tensor], Tensor],
    target: Tensor,
    *,
    resolution: float,
) -> Tensor:
    """Supremum of interval bounds over a range, by halving the intervals that exceed their target.

    The bounds at single points come first: where one of them is above the target already, no halving
    can bring the supremum below it, so the point's value (and a tenth) becomes the target.

    Args:
        edges: Ascending ends of the first intervals (Q + 1,).
        evaluate: (centre_Q, half_width_Q) -> bounds (Q, F), valid on the closed interval.
        target: Bounds at or below it need no further halving (F,).
        resolution: Intervals narrower than this are not halved.

    Returns:
        The maximum over the final intervals (F,): a valid bound on the whole range whatever the
        target and the budget.
    """
    low, high = edges[:-1], edges[1:]
    points = torch.cat([low, (low + high) / 2])
    target = torch.maximum(target, 1.1 * evaluate(points, torch.zeros_like(points)).amax(dim=0))
    worst = torch.zeros_like(target)
    before = torch.full((len(low), len(target)), math.inf, dtype=torch.float64)
    spent = 0
    while len(low):
        centre, half = (low + high) / 2, (high - low) / 2
        bounds = evaluate(centre, half)
        spent += len(low)
        # A bound that halving hardly lowers is at its point value: halving on would be in vain, unless
        # so little is missing that a little will do.
        goal = torch.maximum(target, worst)
        worthwhile = torch.where(bounds > _NEAR * goal, _WORTHWHILE, _WORTHWHILE_NEAR)
        pending = (bounds > goal) & (bounds < worthwhile * before)
        splittable = pending.any(dim=1) & (half > resolution)
        if spent > _MAX_INTERVALS:
            splittable = torch.zeros_like(splittable)
        final = bounds[~splittable]
        if len(final):
            worst = torch.maximum(worst, final.amax(dim=0))
        low, high = (
            torch.cat([low[splittable], centre[splittable]]),
            torch.cat([centre[splittable], high[splittable]]),
        )
        before = bounds[splittable].repeat(2, 1)
    return worst


def gaussian_level(num_columns: int, dimension: int, num_candidates: int) -> float:
    """The squared share in Gaussian columns that no singular direction falls below.

    For a fixed m-dimensional space the smallest singular value of its (b x m) Gaussian coordinates is
    below 1/τ with probability at most (2π q)^(−1/2) (e √b / q)^q τ^(−q), q = b − m + 1 (Halko,
    Martinsson & Tropp 2011, proposition A.3, after Chen & Dongarra 2005). The level makes that
    ``FAILURE_PROBABILITY`` over ``num_candidates`` spaces together.

    Returns:
        1/τ²; 0 when the block is too narrow to say anything (b < m).
    """
    exponent = num_columns - dimension + 1
    if exponent < 1:
        return 0.0
    log_constant = exponent * math.log(math.e * math.sqrt(num_columns) / exponent) - 0.5 * math.log(
        2 * math.pi * exponent
    )
    log_tau = (log_constant + math.log(num_candidates) - math.log(FAILURE_PROBABILITY)) / exponent
    return math.exp(-2 * log_tau)


@dataclass(frozen=True, kw_only=True)
class TopAccount:
    """The Ritz values from the top down that account for every singular value above ``floor``.

    Attributes:
        values: The leading Ritz values that are accounted for, descending (count,).
        floor: No other singular value lies above it (up to the failure probability).
        gap: Distance from each accounted Ritz value to the nearest singular value outside its
            cluster (count,).
        cluster: Index of the cluster each belongs to (count,); vectors of one cluster cannot be told
            apart at this precision.
        failure_probability: Probability that the account is wrong.
    """

    values: Tensor
    floor: float
    gap: Tensor
    cluster: Tensor
    failure_probability: float

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.values)


def account_for_top(
    system: RitzSystem, random_KB: Tensor, *, wanted: int, ceiling: float, num_candidates: int
) -> TopAccount:
    """Certify that the leading Ritz values are all there is near the top of the spectrum.

    Each neighbourhood of a Ritz value (its residual wide) holds a singular value. It holds no more
    than the Ritz values in it, and the stretches between hold none: both by exclusion.

    Args:
        system: The Krylov space.
        random_KB: Ritz coordinates of the Gaussian columns of the start block.
        wanted: How many leading values the caller needs; one more is examined, for the gap.
        ceiling: A number that no singular value exceeds.
        num_candidates: Number of singular vectors of the matrix (the smaller dimension).
    """
    num_columns = random_KB.shape[1]
    plain = gaussian_level(num_columns, 1, num_candidates)
    # A bound can fall to the level only this far (in units of the recurrence error) from a Ritz value
    # that carries its share of b Gaussian columns, so a neighbourhood must reach that far.
    clearance = 4.0 * math.sqrt(num_columns / plain) * system.recurrence_error
    values, residuals = system.values, 2.0 * system.residuals + clearance
    size = min(wanted + 1, len(values))
    groups = _group(values[:size], residuals[:size])
    bounds = IntervalBounds(system, random_KB)
    dimensions: set[int] = set()
    accounted, upper_edge, floor = 0, ceiling, ceiling
    edges_of: list[tuple[float, float]] = []
    for first, last in groups:
        low = float((values[first : last + 1] - residuals[first : last + 1]).min())
        high = float((values[first : last + 1] + residuals[first : last + 1]).max())
        dimension = last - first + 2
        level = gaussian_level(num_columns, dimension, num_candidates)
        if not _excluded_inside(bounds, low, high, first, last, level):
            break
        if high < upper_edge and not _excluded_between(bounds, high, upper_edge, plain):
            break
        dimensions |= {1, dimension}
        edges_of.append((low, high))
        accounted, upper_edge, floor = last + 1, low, low
    gap, cluster = _gaps(groups, edges_of, values, accounted)
    return TopAccount(
        values=values[:accounted],
        floor=floor,
        gap=gap,
        cluster=cluster,
        failure_probability=FAILURE_PROBABILITY * max(1, len(dimensions)),
    )


def _group(values: Tensor, residuals: Tensor) -> list[tuple[int, int]]:
    """Runs of Ritz values whose neighbourhoods overlap, or whose gap is below ten times their error."""
    groups: list[tuple[int, int]] = []
    for index in range(len(values)):
        error = float(torch.maximum(residuals[index], residuals[index - 1])) if index else 0.0
        if groups and float(values[index - 1] - values[index]) <= 2.0 * error:
            groups[-1] = (groups[-1][0], index)
        else:
            groups.append((index, index))
    return groups


def _excluded_inside(
    bounds: IntervalBounds, low: float, high: float, first: int, last: int, level: float
) -> bool:
    """No further singular direction hides among the Ritz values ``first..last``."""
    centre = torch.tensor([(low + high) / 2], dtype=torch.float64)
    half = torch.tensor([(high - low) / 2], dtype=torch.float64)
    return bool(bounds.away_from_ritz_values(centre, half, ignored=slice(first, last + 1))[0] <= level)


def _excluded_between(bounds: IntervalBounds, low: float, high: float, level: float) -> bool:
    """No singular value lies in [low, high]."""
    target = torch.tensor([level], dtype=torch.float64)
    edges = torch.tensor([low, high], dtype=torch.float64)
    if high > 2 * low > 0:
        edges = torch.logspace(math.log10(low), math.log10(high), 9, dtype=torch.float64)
        edges[0], edges[-1] = low, high

    resolution = bounds.system.recurrence_error
    return bool(cover(edges, bounds.away_as_column, target, resolution=resolution)[0] <= level)


def _gaps(
    groups: list[tuple[int, int]], edges: list[tuple[float, float]], values: Tensor, accounted: int
) -> tuple[Tensor, Tensor]:
    """Distance of each accounted value to the nearest one outside its cluster, and the clusters.

    The last accounted group knows nothing below its own floor, so it serves only as the lower
    neighbour of the others: its own gap is zero.
    """
    gap = torch.zeros(accounted, dtype=torch.float64)
    cluster = torch.zeros(accounted, dtype=torch.int64)
    for number, (first, last) in enumerate(groups[: len(edges)]):
        above = edges[number - 1][0] if number else math.inf
        below = edges[number + 1][1] if number + 1 < len(edges) else None
        for index in range(first, last + 1):
            value = float(values[index])
            gap[index] = 0.0 if below is None else max(0.0, min(above - value, value - below))
            cluster[index] = number
    return gap, cluster


def smallest_counted_value(system: RitzSystem, random_KB: Tensor, *, num_candidates: int) -> float:
    """A number below which A has no singular value at all, or 0.

    Right singular vectors with values in [0, l] (null vectors included) are excluded by the random
    columns. The largest such l is sought downward from the smallest Ritz value.
    """
    level = gaussian_level(random_KB.shape[1], 1, num_candidates)
    bounds = IntervalBounds(system, random_KB)
    candidate = 0.9 * float(system.values[-1])
    for _ in range(6):
        edges = torch.linspace(0.0, candidate, 9, dtype=torch.float64)
        target = torch.tensor([level], dtype=torch.float64)
        if candidate <= 10 * system.recurrence_error:
            return 0.0
        if bool(cover(edges, bounds.away_as_column, target, resolution=candidate / 512)[0] <= level):
            return candidate
        candidate *= 0.7
    return 0.0
