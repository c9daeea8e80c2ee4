"""Alignment of tuned singular vectors with all base singular vectors: bounds, and how they are known.

The alignment of a unit vector y is max_i |u_i · y| over the base's counted singular vectors (thin
SVD; values up to max(M, N) ulp of the largest do not count). Upper bounds come from intervals that
cover the base's whole spectrum but the top that is certified to be known; lower bounds, and both bounds
on that top, from converged Ritz vectors whose gap is certified. Where neither decides a threshold the
dense float64 decomposition does.

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
    cover,
)
from intruscope.linalg.dense import counted
from intruscope.linalg.golub_kahan import GolubKahan, RitzSystem
from intruscope.linalg.known import KnownSpectrum, cosines
from intruscope.linalg.topk import (
    RANDOM_COLUMNS,
    Certificate,
    TopTriplets,
    frobenius_norm,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intruscope.linalg.dense import BaseVectors
    from intruscope.linalg.operators import Operator

_FIRST_STEPS = 8
_FIRST_STEPS_ALONE = 14
_MAX_STEPS = 40
_FIRST_INTERVALS = 64
_WIDE = 0.02
"""An undecided interval wider than this is a lack of work, not the closeness of a threshold."""
_CHEAP_SIDE = 1536
"""Up to this smaller side a dense decomposition is worth it for a threshold of the grid alone."""


@dataclass(frozen=True, kw_only=True)
class Alignments:
    """Bounds on the alignment of each tuned vector, for one side.

    Attributes:
        lower, upper: float64 in [0, 1] (K,); the truth lies between.
        degenerate: The truth depends on the choice of basis inside a cluster, which the bounds then
            cover (K,).
        certificates: How the bounds of each vector are known.
        failure_probability: Probability that any probabilistic bound is wrong; 0 for ``dense``.
        best_index: Index of the base vector that attains the alignment, −1 where unknown (K,).
        best_value: Its singular value, 0 where unknown (K,).
        base_norm: Largest singular value of the base.
        outside_fraction: Share of ‖y‖² outside the base's column space (K,), or None where the column
            space is everything. From Krylov an upper bound, tight to the shown digits when converged.
        base_top: The K leading singular vectors of the base, on the side of the tuned vectors (M, K) and on
            the other one (N, K): orthonormal columns by falling singular value, fewer where fewer count; None
            where they are not known well enough.
    """

    lower: Tensor
    upper: Tensor
    degenerate: Tensor
    certificates: tuple[Certificate, ...]
    failure_probability: float
    best_index: Tensor
    best_value: Tensor
    base_norm: float
    outside_fraction: Tensor | None
    base_top: tuple[Tensor, Tensor] | None = None


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
    decompose: Callable[[], BaseVectors],
) -> Alignments:
    """Bound the alignment of every tuned vector with all base vectors.

    Args:
        base: The base matrix (M x N); no update.
        tuned: Whose clusters and degeneracies enter the bounds.
        tuned_left_MK: The vectors, unit columns in float64, on the side of the rows of ``base``.
        error_K: Sine of the angle by which each of them may be off.
        thresholds: Values that the bounds should separate wherever the truth allows.
        deciding: The threshold of the verdict: undecided here always goes to the dense path.
        seed: Random seed of the Gaussian columns.
        dense: Skip the Krylov path.
        decompose: Gives the dense vectors of ``base``, when it comes to that.
    """
    found = None if dense else _krylov(base, tuned, tuned_left_MK, error_K, thresholds, deciding, seed)
    if found is None:
        found = _dense(base, decompose(), tuned, tuned_left_MK, error_K)
    return found


def aligned_with_itself(spectrum: TopTriplets, shape: tuple[int, int]) -> Alignments | None:
    """The alignments of a matrix that equals its base: one, by definition, without any work.

    Args:
        spectrum: Singular values of the matrix.
        shape: (rows, columns), rows on the side of the vectors.

    Returns:
        None where a value does not count, and so has no counterpart in the base either.
    """
    values, count = spectrum.singular_values, len(spectrum.singular_values)
    if counted(values, shape) < count:
        return None
    one = torch.ones(count, dtype=torch.float64)
    certificate: Certificate = "proved"
    return Alignments(
        lower=one,
        upper=one.clone(),
        degenerate=torch.zeros(count, dtype=torch.bool),
        certificates=(certificate,) * count,
        failure_probability=0.0,
        best_index=torch.arange(count),
        best_value=values,
        base_norm=float(values[0]),
        outside_fraction=torch.zeros(count, dtype=torch.float64) if shape[0] > shape[1] else None,
    )


# --- the dense path --------------------------------------------------------------------------------


def _dense(
    base: Operator, vectors: BaseVectors, tuned: TopTriplets, tuned_left_MK: Tensor, error_K: Tensor
) -> Alignments:
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
        failure_probability=0.0,
        best_index=best,
        best_value=vectors.values[best] if len(vectors.values) else torch.zeros(count, dtype=torch.float64),
        base_norm=float(vectors.values[0]) if len(vectors.values) else 0.0,
        outside_fraction=outside,
        base_top=_top_pairs(base, vectors, count),
    )
    return _with_tuned_errors(bounded, tuned, error_K)


def _top_pairs(base: Operator, vectors: BaseVectors, count: int) -> tuple[Tensor, Tensor]:
    """Leading vectors of the side that was decomposed, and of the other, which the base maps them to."""
    left_MK = vectors.left_MR[:, :count]
    return left_MK, base.transposed.times(left_MK.to(base.dtype)).double() / vectors.values[:count]


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
    """Bounds from a growing Krylov space; None when they leave a verdict to the dense path."""
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
    known = KnownSpectrum(work, tuned_left_MK, ceiling=ceiling, tall=tall)
    num_steps, before = _FIRST_STEPS, None
    while True:
        process.extend(num_steps)
        system = process.ritz(generator)
        known.learn(system)
        found = _bounds(system, known, tuned, error_K, thresholds)
        if found is not None and known.learn_more(system, _undecided(found, thresholds)):
            found = _bounds(system, known, tuned, error_K, thresholds)
        if found is not None and not tall and before is None:
            undecided = _undecided(found, thresholds)
            if bool(undecided.any()):
                error = error_K + _start_rounding(system, float(system.values[0]))
                target = clusters.sine_lower(_targets(found.lower, thresholds), error)[undecided]
                start_MF = tuned_left_MK[:, undecided]
                limit = _grown_alone(work, start_MF, target, known.cut, generator)
                known.limit[undecided] = limit.maximum(known.top_upper[undecided])
                found = _bounds(system, known, tuned, error_K, thresholds)
        if found is not None:
            wide, narrow = _undecided(found, thresholds), _narrow_at(found, deciding)
            if not bool((wide | narrow).any()):
                return found
            if bool(narrow.any()) and not bool(wide.any()):
                return None
            if num_steps >= most or _in_vain(before, found, wide):
                # On a large matrix a grid value may stay undecided, and says so; the verdict may not.
                verdicts = narrow | (wide & _straddles(found, [deciding]))
                cheap = min(rows, columns) <= _CHEAP_SIDE
                return None if cheap or bool(verdicts.any()) else found
        elif num_steps >= most:
            return None
        if found is None:
            num_steps += 4
        else:
            num_steps = _next_steps(num_steps, found.upper, _targets(found.lower, thresholds))
        num_steps, before = min(most, num_steps), found


def _straddles(found: Alignments, thresholds: Sequence[float]) -> Tensor:
    straddling = torch.zeros_like(found.degenerate)
    for threshold in thresholds:
        straddling |= (found.lower < threshold) & (found.upper >= threshold)
    return straddling & ~found.degenerate


def _undecided(found: Alignments, thresholds: Sequence[float]) -> Tensor:
    """Vectors whose wide bounds straddle a threshold: for lack of work."""
    return _straddles(found, thresholds) & (found.upper - found.lower > _WIDE)


def _narrow_at(found: Alignments, deciding: float) -> Tensor:
    """Vectors whose narrow bounds straddle the verdict's threshold: no more steps will part them."""
    return _straddles(found, [deciding]) & (found.upper - found.lower <= _WIDE)


def _in_vain(before: Alignments | None, found: Alignments, undecided: Tensor) -> bool:
    """Whether the last steps hardly moved what is undecided."""
    if before is None:
        return False
    moved = (before.upper - found.upper) + (found.lower - before.lower)
    return float(moved[undecided].max()) < 0.1 * float((found.upper - found.lower)[undecided].max())


def _next_steps(num_steps: int, upper: Tensor, target: Tensor) -> int:
    """The squared bounds fall like one over the number of steps: aim straight at what is missing."""
    ratio = float((upper / target).clamp(min=1.0).square().max())
    return num_steps + max(3, min(math.ceil(num_steps * (ratio - 1.0) * 1.05), 12))


def _targets(lower: Tensor, thresholds: Sequence[float]) -> Tensor:
    """For each vector the lowest threshold above its lower bound, 1 where there is none."""
    grid = torch.tensor([*sorted(thresholds), 1.0], dtype=torch.float64)
    return grid[torch.searchsorted(grid, lower, right=True).clamp(max=len(grid) - 1)]


def _bounds(
    system: RitzSystem,
    known: KnownSpectrum,
    tuned: TopTriplets,
    error_K: Tensor,
    thresholds: Sequence[float],
) -> Alignments | None:
    """Both bounds from one Krylov space; None while a tall base's floor is not yet certified."""
    tall, floor = known.tall, known.floor
    if known.top is None or (tall and floor == 0.0):
        return None
    count = len(tuned.singular_values)
    functionals_KF = system.start_coordinates()[:, :count]
    lower, best = known.top_lower, known.best_index
    rounding = _start_rounding(system, floor if tall else float(system.values[0]))
    error = error_K + rounding
    target = clusters.sine_lower(_targets(clusters.sine_lower(lower, error), thresholds), error)
    below = _upper(system, functionals_KF, target, floor, known.cut, tall=tall)
    upper = torch.maximum(known.top_upper, below).minimum(known.limit)
    values = torch.cat([known.top.values, torch.zeros(1, dtype=torch.float64)])  # −1: none, value 0
    outside = None
    certificate: Certificate = "probabilistic"
    if tall:
        outside = (1.0 - cosines(system, count, tall=True).square().sum(dim=0)).clamp(0.0, 1.0)
    bounded = Alignments(
        lower=lower,
        upper=torch.maximum(upper, lower),
        degenerate=torch.zeros(count, dtype=torch.bool),
        certificates=(certificate,) * count,
        failure_probability=known.failure_probability,
        best_index=best,
        best_value=values[best],
        base_norm=float(system.values[0]),
        outside_fraction=outside,
        base_top=known.leading(count),
    )
    return _with_tuned_errors(bounded, tuned, error)


def _grown_alone(
    work: Operator, start_MF: Tensor, target: Tensor, cut: float, generator: torch.Generator
) -> Tensor:
    """Upper bounds on alignments with base vectors below a cut, from a space of a few vectors alone (F,).

    Its bounds need no Gaussian columns and none of the other vectors, only many steps, and every cost
    but that of the products grows with the square of the block.

    Args:
        work: A base that is not tall, from the side of the vectors.
        start_MF: The vectors.
        target: What the bounds should reach.
        cut: Singular values above it are not meant.
        generator: Draws the rows on which the error is measured.
    """
    most = min(_MAX_STEPS, int(0.8 * min(work.shape)) // start_MF.shape[1])
    process = GolubKahan(work, start_MF, max_steps=most)
    upper, num_steps = torch.ones_like(target), min(_FIRST_STEPS_ALONE, most)
    while True:
        process.extend(num_steps)
        system = process.ritz(generator)
        before, functionals_KF = upper, system.start_coordinates()
        upper = _upper(system, functionals_KF, target, 0.0, cut, tall=False).minimum(before)
        missing = upper > target
        vain = bool((before - upper < 0.1 * (upper - target))[missing].all())
        if num_steps == most or vain:
            return upper
        num_steps = min(most, _next_steps(num_steps, upper, target))


def _start_rounding(system: RitzSystem, smallest: float) -> float:
    """Sine of the angle that storing the start block in working precision can cost a functional."""
    ulp = torch.finfo(system.right_NK.dtype).eps
    return 4.0 * ulp * math.sqrt(system.start_BB.shape[0]) * float(system.values[0]) / smallest


def _upper(
    system: RitzSystem, functionals_KF: Tensor, target: Tensor, floor: float, cut: float, *, tall: bool
) -> Tensor:
    """Upper bounds over every counted singular vector of the base with a value up to ``cut``."""
    if cut <= floor:
        return torch.zeros_like(target)
    bounds = IntervalBounds(system, functionals_KF)
    largest = float(system.values[0])

    def evaluate(centre_Q: Tensor, half_Q: Tensor) -> Tensor:
        squares = bounds.squares(centre_Q, half_Q)
        return squares / (centre_Q - half_Q).square().unsqueeze(1) if tall else squares

    edges = torch.linspace(floor, min(cut, largest), _FIRST_INTERVALS + 1, dtype=torch.float64)
    if cut > largest:
        edges = torch.cat([edges, torch.tensor([cut], dtype=torch.float64)])
    return cover(edges, evaluate, target.square(), resolution=system.recurrence_error).sqrt().clamp(max=1.0)
