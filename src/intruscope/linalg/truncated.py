"""The closest matrix of a rank (Eckart & Young 1936), with bounds on what it leaves out.

However the leading vectors were found, they are polished by one Rayleigh-Ritz step in float64, and its
residual is measured in float64. The error of the result is then known from the result itself:

- ‖A − A V Vᵀ‖_F² = ‖A‖_F² − Σ σ̂², exactly, for any orthonormal V;
- in the bases of the found vectors and of what is orthogonal to them, A is [[Σ̂, Rᵀ], [0, M]], R = Aᵀ U − V
Σ̂.
  By Weyl, singular values move by at most ‖R‖ from those of diag(Σ̂, M), so that the spectral norm of what is
  left lies between σ̂_{r+1} (interlacing) and hypot(‖R_r‖, σ̂_{r+1} + ‖R_{r+1}‖ + ‖R_r‖).

The second needs that no singular value was missed, which ``certificate`` states, as everywhere in this
package.

Shape suffixes: M rows, N columns, R rank of given factors, K known triplets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from intruscope.linalg.dense import svd
from intruscope.linalg.limits import DENSE_LIMIT
from intruscope.linalg.lowrank import low_rank_svd
from intruscope.linalg.operators import Operator
from intruscope.linalg.topk import top_triplets

if TYPE_CHECKING:
    from torch import Tensor

    from intruscope.linalg.topk import Certificate

_FACTOR_OF_DENSE = 32
"""A Krylov space for more than this share of the smaller side costs as much as a dense decomposition."""
_FIRST_TRY = 17


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """Leading singular triplets of a matrix A, and what is known of the rest.

    Attributes:
        values_K: Descending, float64.
        left_MK, right_NK: Unit columns, float64.
        residuals_K: ‖Aᵀ u − σ v‖ of each triplet, measured in float64 (A v = σ u holds to rounding).
        total_square: ‖A‖_F².
        complete: A has no further singular value but zero.
        certificate: How it is known that none above the last was missed.
        failure_probability: Probability that one was missed.
    """

    values_K: Tensor
    left_MK: Tensor
    right_NK: Tensor
    residuals_K: Tensor
    total_square: float
    complete: bool
    certificate: Certificate
    failure_probability: float

    def cut(self, count: int) -> Truncation:
        """The leading triplets only."""
        return replace(
            self,
            values_K=self.values_K[:count],
            left_MK=self.left_MK[:, :count],
            right_NK=self.right_NK[:, :count],
            residuals_K=self.residuals_K[:count],
            complete=self.complete and count >= len(self.values_K),
        )

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(M, R) and (R, N) whose product is the closest matrix of a rank; each has half of every value."""
        root = self.values_K[:rank].sqrt()
        return self.left_MK[:, :rank].double() * root, (self.right_NK[:, :rank].double() * root).T


def left_squares(values_K: Tensor, total_square: float, *, complete: bool) -> Tensor:
    """‖A − A_r‖_F² for r = 0 .. K, (K + 1,), float64.

    Where all values are known it is the sum of the small ones, so that nothing cancels; elsewhere the total
    less what is kept, good to 1e-16 of the total.
    """
    squares = values_K.double().square()
    if complete:
        tail = squares.flip(0).cumsum(0).flip(0)
        return torch.cat([tail, tail.new_zeros(1)])
    kept = torch.cat([squares.new_zeros(1), squares.cumsum(0)])
    return (total_square - kept).clamp(min=0.0)


def smallest_rank(values_K: Tensor, total_square: float, fraction: float, *, complete: bool) -> int | None:
    """The smallest r with ‖A − A_r‖_F² ≤ fraction · ‖A‖_F².

    Args:
        values_K: Known singular values, descending.
        total_square: ‖A‖_F².
        fraction: Share of the squared norm that may be left out, in [0, 1]. For 0 it is the numerical rank:
            values below K ulp (float64) of the largest count as zero.
        complete: There are no further values.

    Returns:
        The rank; None where the known values do not reach that far.
    """
    left = left_squares(values_K, total_square, complete=complete)
    ulp = torch.finfo(torch.float64).eps * len(values_K)
    floor = float(values_K[0]) ** 2 * ulp**2 * len(values_K) if len(values_K) else 0.0
    enough = torch.nonzero(left <= max(fraction * total_square, floor))
    return int(enough[0]) if len(enough) else None


def leading(
    matrix: Tensor | tuple[Tensor, Tensor], count: int, *, seed: int, dense: bool = False
) -> Truncation:
    """At least the first ``count`` triplets (all there are where that costs no more).

    Args:
        matrix: A (M, N), float32 or float64, finite; or two factors (M, R), (R, N) of it.
        count: How many; more than the smaller side means all.
        seed: Random seed of the blocks.
        dense: Decompose in float64 outright.

    Numerics: float64 for factors, for small matrices and for everything that the error is computed from;
        float32 Krylov products for large float32 matrices, polished.
    Cost: about 20 products with count + 22 columns, or one dense decomposition where that does not suffice.
    """
    if isinstance(matrix, tuple):
        left, values, right = low_rank_svd(*matrix)
        return Truncation(
            values_K=values,
            left_MK=left,
            right_NK=right,
            residuals_K=values.new_full(values.shape, _rounding(values, max(len(left), len(right)))),
            total_square=float(values.square().sum()),
            complete=True,
            certificate="dense",
            failure_probability=0.0,
        )
    smaller = min(matrix.shape)
    count = min(count, smaller)
    total = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
    if dense or smaller <= DENSE_LIMIT:
        exact = matrix.double()
        return _with_residual(Operator.viewing(exact), *svd(exact), total, complete=True)
    if 0 < _FACTOR_OF_DENSE * count < smaller:
        operator = Operator.of(matrix)
        top = top_triplets(operator, count, seed=seed)
        if top is not None:
            made = _measured(operator, top.right_NK, total, complete=False)
            return replace(made, certificate=top.certificate, failure_probability=top.failure_probability)
    right_NK = _right_vectors(matrix.double(), count)
    return _measured(Operator.viewing(matrix), right_NK, total, complete=count == smaller)


def within(
    matrix: Tensor | tuple[Tensor, Tensor], fraction: float, *, seed: int, dense: bool = False
) -> tuple[Truncation, int]:
    """The triplets that leave at most a fraction of ‖A‖_F² out, and one more where there is one.

    Args:
        matrix: As in :func:`leading`, not zero.
        fraction: Share of the squared norm, in [0, 1].
        seed: Random seed of the blocks.
        dense: Decompose in float64 outright.

    Returns:
        The triplets and the smallest rank that suffices.
    """
    count = _FIRST_TRY
    while True:
        found = leading(matrix, count, seed=seed, dense=dense)
        rank = smallest_rank(found.values_K, found.total_square, fraction, complete=found.complete)
        if rank is not None:
            return found, rank
        if found.complete:  # the smallest are lost in rounding: all of them are all that there is
            return found, len(found.values_K)
        count *= 2
        if not isinstance(matrix, tuple) and _FACTOR_OF_DENSE * count >= min(matrix.shape):
            count = min(matrix.shape)  # one dense decomposition, not one for each doubling


def spectral_bounds(found: Truncation, rank: int) -> tuple[float, float]:
    """Between which values the spectral norm of A less its first ``rank`` triplets lies.

    Args:
        found: Triplets.
        rank: At most as many as are known.

    Returns:
        (low, high); the low end bounds every matrix of that rank.
    """
    values = found.values_K
    squares = found.residuals_K.square().cumsum(0)
    turned = math.sqrt(float(squares[rank - 1])) if rank else 0.0
    if rank == len(values):
        if found.complete:
            return 0.0, turned + (_rounding(values, max(len(found.left_MK), len(found.right_NK))))
        rest = math.sqrt(float(left_squares(values, found.total_square, complete=False)[-1]))
        return 0.0, math.hypot(turned, min(rest, float(values[-1]) + turned if rank else rest))
    low = float(values[rank])
    return low, math.hypot(turned, low + math.sqrt(float(squares[rank])) + turned)


def _rounding(values: Tensor, longest: int) -> float:
    """What a backward stable float64 decomposition may be off by."""
    return float(values[:1].sum()) * torch.finfo(torch.float64).eps * math.sqrt(longest)


def _measured(operator: Operator, right_NK: Tensor, total: float, *, complete: bool) -> Truncation:
    """One Rayleigh-Ritz step in float64 from right vectors, and its residual."""
    basis, _ = torch.linalg.qr(right_NK)
    left, values, turn = svd(operator.times_double(basis))
    return _with_residual(operator, left, values, basis @ turn, total, complete=complete)


def _with_residual(
    operator: Operator, left_MK: Tensor, values_K: Tensor, right_NK: Tensor, total: float, *, complete: bool
) -> Truncation:
    residual = operator.transposed.times_double(left_MK) - right_NK * values_K
    return Truncation(
        values_K=values_K,
        left_MK=left_MK,
        right_NK=right_NK,
        residuals_K=torch.linalg.vector_norm(residual, dim=0),
        total_square=total,
        complete=complete,
        certificate="dense",
        failure_probability=0.0,
    )


def _right_vectors(matrix: Tensor, count: int) -> Tensor:
    """Leading right vectors from the Gram matrix of the smaller side: (N, count), float64.

    What rounding does to the vectors of values below 1e-8 of the largest shows in the measured residual.
    """
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    vectors: Tensor = torch.linalg.eigh(gram)[1].flip(1)[:, :count]
    return matrix.T @ vectors if rows <= columns else vectors
