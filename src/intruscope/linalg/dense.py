"""The base's singular vectors by dense float64 decomposition: small matrices, and whatever Krylov left open.

Shape suffixes: M rows, N columns, R counted base vectors, K other vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from intruscope.linalg import clusters

if TYPE_CHECKING:
    from intruscope.linalg.operators import Operator

_GRAM_SIDE = 200
"""Above this smaller side the Gram matrix is tried first: a third of the time of the full SVD, or less."""


@dataclass(frozen=True, kw_only=True)
class BaseVectors:
    """Counted singular values and left vectors of a base matrix, with their errors.

    Attributes:
        values: Descending, float64 (R,).
        left_MR: Unit columns, float64.
        groups: Inclusive index runs that cannot be told apart.
        sine_error: Bound on the turning of each vector out of its run (R,).
        tail_error: For each run, the same for the span of it and of everything below it, null space
            included (one per run): small values have no vectors of their own long before they stop
            being apart from the large ones.
    """

    values: Tensor
    left_MR: Tensor
    groups: list[tuple[int, int]]
    sine_error: Tensor
    tail_error: Tensor

    def cosines(self, vectors_MK: Tensor) -> Tensor:
        """u_i · y_j of every counted base vector with every given unit column: (R, K), float64."""
        return (vectors_MK.double().T @ self.left_MR).T


def counted(values: Tensor, shape: tuple[int, int]) -> int:
    """How many singular values count: those above max(M, N) ulp (float64) of the largest."""
    if len(values) == 0 or float(values[0]) == 0.0:
        return 0
    ulp = torch.finfo(torch.float64).eps
    return int((values > max(shape) * ulp * values[0]).sum())


class DenseSides:
    """The base vectors of both sides of one matrix, decomposed when first asked for.

    Several updates of one base (the trials of a null model) share them.
    """

    def __init__(self) -> None:
        self._made: dict[Literal["left", "right"], BaseVectors] = {}

    @property
    def values(self) -> Tensor | None:
        """Singular values of the matrix that count, descending; None before it was decomposed."""
        made = next(iter(self._made.values()), None)
        return None if made is None else made.values

    def of(self, base: Operator, side: Literal["left", "right"], *, both: bool = False) -> BaseVectors:
        """Vectors in the row space of ``base``, which is transposed for the right side already.

        Args:
            base: As seen from this side.
            side: Which it is.
            both: The other side will be asked for too: its vectors come from the same decomposition, and are
                kept.
        """
        if side not in self._made:
            found = _decomposed(base)
            self._made[side] = found.vectors()
            if both:
                self._made["left" if side == "right" else "right"] = found.transposed.vectors()
        return self._made[side]


class _Decomposition(NamedTuple):
    """Left (M, R) and right (N, R) vectors, descending values, their errors, and how many count."""

    left_MR: Tensor
    values: Tensor
    right_NR: Tensor
    errors: Tensor
    num_counted: int

    @property
    def transposed(self) -> _Decomposition:
        return self._replace(left_MR=self.right_NR, right_NR=self.left_MR)

    def vectors(self) -> BaseVectors:
        return _assemble(self.values, self.left_MR, self.errors, self.num_counted)


def dense_base(base: Operator) -> BaseVectors:
    """The left vectors of a base matrix, decomposed in float64."""
    return _decomposed(base).vectors()


def _decomposed(base: Operator) -> _Decomposition:
    """Decompose a base matrix in float64.

    Large matrices go through the Gram matrix of the smaller side (float64: in float32 it would turn
    small singular vectors into noise). Its eigenvalues carry an error of about ulp σ₁², so where the
    smallest counted σ² is not well above that, the full SVD is taken instead.
    """
    matrix = base.dense_double()
    rows, columns = matrix.shape
    if not bool(matrix.any()):
        nothing = matrix.new_zeros(0)
        return _Decomposition(
            matrix.new_zeros((rows, 0)), nothing, matrix.new_zeros((columns, 0)), nothing, 0
        )
    found = from_gram(matrix)
    if found is not None:
        values, left, right, errors = found
        return _Decomposition(left, values, right, errors, len(values))
    left, values, right = svd(matrix)
    error = float(values[0]) * torch.finfo(torch.float64).eps * max(rows, columns) ** 0.5
    return _Decomposition(
        left, values, right, torch.full_like(values, error), counted(values, (rows, columns))
    )


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin (left, values, right as columns). A wide matrix is transposed first: four times as fast."""
    if matrix.shape[0] >= matrix.shape[1]:
        left, values, right_t = torch.linalg.svd(matrix, full_matrices=False)
        return left, values, right_t.T
    right, values, left_t = torch.linalg.svd(matrix.T, full_matrices=False)
    return left_t.T, values, right


def from_gram(matrix: Tensor, k: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Singular triplets of a large float64 matrix from the Gram matrix of its smaller side.

    Args:
        matrix: (M, N), float64.
        k: How many vectors; None for all. The values are always all.

    Returns:
        (all values descending (R,), left (M, k), right (N, k), error of each value (R,)); None for small
        matrices, and where the smallest value is not well above what rounding does to squares.

    The vectors of the longer side are A applied to the others: an error along a larger value's vector
    grows by the ratio of the values there, which twice the error over the gap covers too.
    """
    if min(matrix.shape) <= _GRAM_SIDE:
        return None
    rows, columns = matrix.shape
    wide = rows <= columns
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    squares, vectors = torch.linalg.eigh(gram)
    squares, vectors = squares.flip(0), vectors.flip(1)[:, :k]
    error = float(squares[0]) * torch.finfo(torch.float64).eps * max(rows, columns) ** 0.5
    if float(squares[-1]) < 1e4 * error:
        return None
    values = squares.sqrt()
    longer = (matrix.T if wide else matrix) @ vectors / values[: vectors.shape[1]]
    left, right = (vectors, longer) if wide else (longer, vectors)
    return values, left, right, error / (2 * values)


def _assemble(values: Tensor, left: Tensor, errors: Tensor, kept: int) -> BaseVectors:
    if not kept:
        nothing = values[:0]
        return BaseVectors(
            values=nothing, left_MR=left[:, :0], groups=[], sine_error=nothing, tail_error=nothing
        )
    groups = clusters.runs(values[:kept], errors[:kept])
    gap = clusters.gaps(values[:kept], groups)
    if kept < len(values):
        gap = torch.minimum(gap, values[:kept] - values[kept])
    if left.shape[0] > len(values):
        # Directions outside the column space lie at the value zero.
        gap = torch.minimum(gap, values[:kept])
    firsts = torch.tensor([first for first, _ in groups[1:]], dtype=torch.int64)
    step = values[firsts - 1] - values[firsts]
    tail_error = torch.zeros(len(groups), dtype=torch.float64)
    tail_error[1:] = 2.0 * errors[firsts] / step
    return BaseVectors(
        values=values[:kept],
        left_MR=left[:, :kept],
        groups=groups,
        sine_error=(2.0 * errors[:kept] / gap).nan_to_num(nan=1.0).clamp(max=1.0),
        tail_error=tail_error.clamp(max=1.0),
    )
