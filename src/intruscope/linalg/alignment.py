"""Alignment of tuned singular vectors with all base singular vectors: bounds, and how they are known.

The alignment of a unit vector y is max_i |u_i · y| over the base's counted singular vectors (thin
SVD; values up to max(M, N) ulp of the largest do not count). Upper bounds come from intervals that
cover the base's whole spectrum, lower bounds from converged Ritz vectors whose gap is certified.
Where neither decides a threshold the dense float64 decomposition does.

One side is analysed at a time, in the orientation "left": the caller transposes for the right side.

Shape suffixes: M rows (the side of the vectors), N columns, K tuned vectors, F functionals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from intruscope.linalg import clusters
from intruscope.linalg.certificates import (
    IntervalBounds,
    TopAccount,
    account_for_top,
    cover,
    smallest_counted_value,
)
from intruscope.linalg.dense import BaseVectors, dense_base
from intruscope.linalg.golub_kahan import GolubKahan, RitzSystem
from intruscope.linalg.topk import RANDOM_COLUMNS, Certificate, TopTriplets, frobenius_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.linalg.operators import Operator

_FIRST_STEPS = 8
_MAX_STEPS = 40
_FIRST_INTERVALS = 64
_WIDE = 0.02
"""An undecided interval wider than this is a lack of work, not the closeness of a threshold."""


@dataclass(frozen=True, kw_only=True)
class Alignments:
    """Bounds on the alignment of each tuned vector, for one side.

    Attributes:
        lower, upper: float64 in [0, 1] (K,); the truth lies between.
        degenerate: The truth depends on the choice of basis inside a cluster, which the bounds then
            cover (K,).
        certificates: How the bounds of each vector are known.
        best_index: Index of the base vector that attains the alignment, −1 where unknown (K,).
        best_value: Its singular value, 0 where unknown (K,).
        base_norm: Largest singular value of the base.
        outside_fraction: Share of ‖y‖² outside the base's column space (K,), or None where the column
            space is everything. From Krylov an upper bound, tight to the shown digits when converged.
    """

    lower: Tensor
    upper: Tensor
    degenerate: Tensor
    certificates: tuple[Certificate, ...]
    best_index: Tensor
    best_value: Tensor
    base_norm: float
    outside_fraction: Tensor | None


def align(
    base: Operator,
    tuned: TopTriplets,
    tuned_left_MK: Tensor,
    error_K: Tensor,
    *,
    thresholds: Sequence[float],
    deciding: float,
    seed: int,
    dense: bool,
) -> Alignments:
    """Bound the alignment of every tuned vector with all base vectors.

    Args:
        base: The base matrix (M x N); no update.
        tuned: Whose clusters and degeneracies enter the bounds.
        tuned_left_MK: The vectors, unit columns in float64, on the side of the rows of ``base``.
        error_K: Sine of the angle by which each of them may be off.
        thresholds: Values that the bounds should separate wherever the truth allows.
        deciding: The threshold of the verdict: undecided here always goes to the dense path.
        seed: Of the Gaussian columns.
        dense: Skip the Krylov path.
    """
    found = None if dense else _krylov(base, tuned, tuned_left_MK, error_K, thresholds, deciding, seed)
    if found is None:
        found = _dense(base, tuned, tuned_left_MK, error_K)
    return found


# --- the dense path --------------------------------------------------------------------------------


def _dense(base: Operator, tuned: TopTriplets, tuned_left_MK: Tensor, error_K: Tensor) -> Alignments:
    vectors = dense_base(base)
    cosines_RK = vectors.cosines(tuned_left_MK)
    lower, upper, best, ambiguous = _over_clusters(cosines_RK, vectors)
    outside = None
    if base.shape[0] > len(vectors.values):
        outside = (1.0 - cosines_RK.square().sum(dim=0)).clamp(0.0, 1.0)
    count = tuned_left_MK.shape[1]
    certificate: Certificate = "dense"
    bounded = Alignments(
        lower=lower,
        upper=upper,
        degenerate=ambiguous,
        certificates=(certificate,) * count,
        best_index=best,
        best_value=vectors.values[best] if len(vectors.values) else torch.zeros(count, dtype=torch.float64),
        base_norm=float(vectors.values[0]) if len(vectors.values) else 0.0,
        outside_fraction=outside,
    )
    return _with_tuned_errors(bounded, tuned, error_K)


def _over_clusters(cosines_RK: Tensor, vectors: BaseVectors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bounds over base vectors that hold for every basis inside every cluster."""
    count = cosines_RK.shape[1]
    zero = torch.zeros(count, dtype=torch.float64)
    if len(vectors.values) == 0:
        return zero, zero.clone(), torch.full((count,), -1), torch.zeros(count, dtype=torch.bool)
    label = clusters.labels(vectors.groups, len(vectors.values))
    norms = torch.zeros((len(vectors.groups), count), dtype=torch.float64)
    norms.index_add_(0, label, cosines_RK.square())
    norms = norms.sqrt()
    sizes = torch.bincount(label).double().unsqueeze(1)
    errors = torch.zeros(len(vectors.groups), dtype=torch.float64)
    errors = errors.scatter_reduce(0, label, vectors.sine_error, "amax")
    # A vector of one group also lies in the span of that group and all below it, which may be far
    # better known than the group alone.
    above = torch.cat([torch.zeros_like(norms[:1]), norms.square().cumsum(dim=0)[:-1]])
    tails = clusters.sine_upper((1.0 - above).clamp(min=0.0).sqrt(), vectors.tail_error.unsqueeze(1))
    upper_GK = clusters.sine_upper(norms, errors.unsqueeze(1))
    upper_GK = torch.minimum(upper_GK, tails.cummin(dim=0).values)
    lower_GK = clusters.sine_lower(norms, errors.unsqueeze(1)) / sizes.sqrt()
    upper, holder = upper_GK.max(dim=0)
    lower = lower_GK.amax(dim=0)
    best = cosines_RK.abs().argmax(dim=0)
    return lower, upper, best, (sizes[holder, 0] > 1) & (upper - lower > 1e-6)


def _with_tuned_errors(bounded: Alignments, tuned: TopTriplets, error_K: Tensor) -> Alignments:
    """Widen bounds on the computed vectors to bounds on the exact ones, clusters as whole subspaces."""
    lower, upper = bounded.lower.clone(), bounded.upper.clone()
    for number in torch.unique(tuned.cluster[tuned.degenerate]).tolist():
        members = (tuned.cluster == number) & tuned.degenerate
        # Any unit vector of the span: its share in u is at most the norm over the members' shares,
        # and anything at all when further members were not kept.
        joint = 1.0 if number == tuned.open_cluster else float(upper[members].square().sum().sqrt())
        upper[members] = min(joint, 1.0)
        lower[members] = 0.0
    # Which vector of a cluster was computed matters only where some alignment is there to be split.
    ambiguous = (tuned.degenerate & (upper > 1e-6)) | (error_K >= 1.0)
    return replace(
        bounded,
        lower=clusters.sine_lower(lower, error_K),
        upper=clusters.sine_upper(upper, error_K),
        degenerate=bounded.degenerate | ambiguous,
    )


# --- the Krylov path -------------------------------------------------------------------------------


def _krylov(
    base: Operator,
    tuned: TopTriplets,
    tuned_left_MK: Tensor,
    error_K: Tensor,
    thresholds: Sequence[float],
    deciding: float,
    seed: int,
) -> Alignments | None:
    """Bounds from a growing Krylov space; None when they leave something to the dense path."""
    rows, columns = base.shape
    tall = rows > columns
    generator = torch.Generator().manual_seed(seed)
    count = tuned_left_MK.shape[1]
    block = count + RANDOM_COLUMNS
    work = base if tall else base.transposed
    # A tall base has a null space on the side of the vectors, which thin SVD does not count: start on
    # the other side, from z = Aᵀy, where u·y = (v·z)/σ and no null space exists.
    functionals = base.transposed.times(tuned_left_MK.to(base.dtype)).double() if tall else tuned_left_MK
    random = torch.randn((work.shape[1], RANDOM_COLUMNS), generator=generator, dtype=torch.float64)
    most = min(_MAX_STEPS, int(0.8 * min(rows, columns)) // block)
    ceiling = 1.001 * frobenius_norm(base)
    if most < _FIRST_STEPS or ceiling == 0.0:
        return None
    process = GolubKahan(work, torch.cat([functionals, random], dim=1), max_steps=most)
    num_steps = _FIRST_STEPS
    account: TopAccount | None = None
    while True:
        process.extend(num_steps)
        system = process.ritz(generator)
        if account is None or account.count <= count:
            # What a complete account says of the spectrum stays true as the space grows.
            account = account_for_top(
                system,
                system.start_coordinates()[:, count:],
                wanted=count + 2,
                ceiling=ceiling,
                num_candidates=min(rows, columns),
            )
        found = _bounds(system, account, tuned, error_K, thresholds, ceiling, tall=tall)
        if found is not None:
            wide, tight = _undecided(found, thresholds, deciding)
            if not bool((wide | tight).any()):
                return found
            if bool(tight.any()) and not bool(wide.any()):
                return None
        if num_steps >= most:
            return None
        num_steps = min(most, _next_steps(num_steps, found, thresholds))


def _undecided(found: Alignments, thresholds: Sequence[float], deciding: float) -> tuple[Tensor, Tensor]:
    """Vectors that lack work (wide straddles), and vectors at the verdict's threshold within the error."""
    straddles = torch.zeros_like(found.degenerate)
    for threshold in thresholds:
        straddles |= (found.lower < threshold) & (found.upper >= threshold)
    width = found.upper - found.lower
    at_verdict = (found.lower < deciding) & (found.upper >= deciding) & ~found.degenerate
    return straddles & (width > _WIDE) & ~found.degenerate, at_verdict & (width <= _WIDE)


def _next_steps(num_steps: int, found: Alignments | None, thresholds: Sequence[float]) -> int:
    """The squared bounds fall like one over the number of steps: aim straight at what is missing."""
    if found is None:
        return num_steps + 4
    target = _targets(found.lower, thresholds)
    ratio = float((found.upper / target).clamp(min=1.0).square().max())
    return num_steps + max(3, min(math.ceil(num_steps * (ratio - 1.0) * 1.05), 12))


def _targets(lower: Tensor, thresholds: Sequence[float]) -> Tensor:
    """For each vector the lowest threshold above its lower bound, 1 where there is none."""
    grid = torch.tensor([*sorted(thresholds), 1.0], dtype=torch.float64)
    return grid[torch.searchsorted(grid, lower, right=True).clamp(max=len(grid) - 1)]


def _bounds(
    system: RitzSystem,
    account: TopAccount,
    tuned: TopTriplets,
    error_K: Tensor,
    thresholds: Sequence[float],
    ceiling: float,
    *,
    tall: bool,
) -> Alignments | None:
    """Both bounds from one Krylov space; None while a tall base's floor is not yet certified."""
    count = len(tuned.singular_values)
    coordinates = system.start_coordinates()
    functionals_KF, random_KB = coordinates[:, :count], coordinates[:, count:]
    candidates = min(system.left_MK.shape[0], system.right_NK.shape[0])
    floor = smallest_counted_value(system, random_KB, num_candidates=candidates) if tall else 0.0
    if tall and floor == 0.0:
        return None
    cosines_KF = functionals_KF / system.values.unsqueeze(1) if tall else functionals_KF
    lower, best = _lower(system, account.count, account.gap, account.cluster, cosines_KF)
    rounding = _start_rounding(system, floor if tall else float(system.values[0]))
    error = error_K + rounding
    target = clusters.sine_lower(_targets(clusters.sine_lower(lower, error), thresholds), error)
    upper = _upper(system, functionals_KF, target, floor, ceiling, tall=tall)
    known = best >= 0
    bounded = Alignments(
        lower=lower,
        upper=torch.maximum(upper, lower),
        degenerate=torch.zeros(count, dtype=torch.bool),
        certificates=tuple("probabilistic" if tall or float(low) > 0.0 else "proved" for low in lower),
        best_index=best,
        best_value=torch.where(known, system.values[best.clamp(min=0)], torch.zeros_like(lower)),
        base_norm=float(system.values[0]),
        outside_fraction=(1.0 - cosines_KF.square().sum(dim=0)).clamp(0.0, 1.0) if tall else None,
    )
    return _with_tuned_errors(bounded, tuned, error)


def _start_rounding(system: RitzSystem, smallest: float) -> float:
    """Sine of the angle that storing the start block in working precision can cost a functional."""
    ulp = torch.finfo(system.right_NK.dtype).eps
    return 4.0 * ulp * math.sqrt(system.start_BB.shape[0]) * float(system.values[0]) / smallest


def _lower(
    system: RitzSystem, accounted: int, gap: Tensor, cluster: Tensor, cosines_KF: Tensor
) -> tuple[Tensor, Tensor]:
    """Lower bounds from accounted Ritz vectors, and the index of the best one (−1: none)."""
    count = cosines_KF.shape[1]
    lower = torch.zeros(count, dtype=torch.float64)
    best = torch.full((count,), -1)
    usable = gap[:accounted] > 0
    if not bool(usable.any()):
        return lower, best
    sine = math.sqrt(2.0) * system.residuals[:accounted] / gap[:accounted].clamp_min(1e-300)
    size = int(cluster[:accounted].max()) + 1
    squares = torch.zeros((size, count), dtype=torch.float64)
    squares.index_add_(0, cluster[:accounted], cosines_KF[:accounted].square())
    members = torch.bincount(cluster[:accounted], minlength=size).double().unsqueeze(1)
    sine = torch.where(usable, sine, torch.ones_like(sine))
    errors = torch.zeros(size, dtype=torch.float64)
    errors = errors.scatter_reduce(0, cluster[:accounted], sine, "amax")
    # A cluster of d values attains at least 1/√d of its joint share, whatever its basis.
    values_CF = clusters.sine_lower(squares.sqrt(), errors.unsqueeze(1)) / members.sqrt()
    lower = values_CF.amax(dim=0)
    strongest = cosines_KF[:accounted].abs().argmax(dim=0)
    alone = (members[cluster[strongest], 0] == 1) & usable[strongest] & (lower > 0)
    # Named only when no other vector can hold more: it has over half of the squared length.
    alone &= lower.square() > 0.5
    return lower, torch.where(alone, strongest, best)


def _upper(
    system: RitzSystem, functionals_KF: Tensor, target: Tensor, floor: float, ceiling: float, *, tall: bool
) -> Tensor:
    """Upper bounds over every counted singular vector of the base."""
    bounds = IntervalBounds(system, functionals_KF)
    largest = float(system.values[0])

    def evaluate(centre_Q: Tensor, half_Q: Tensor) -> Tensor:
        squares = bounds.squares(centre_Q, half_Q)
        return squares / (centre_Q - half_Q).square().unsqueeze(1) if tall else squares

    below = torch.linspace(floor, largest, _FIRST_INTERVALS + 1, dtype=torch.float64)
    edges = torch.cat([below, torch.tensor([max(ceiling, 1.001 * largest)], dtype=torch.float64)])
    return cover(edges, evaluate, target.square(), resolution=system.recurrence_error).sqrt().clamp(max=1.0)
