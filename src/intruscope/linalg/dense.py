"""The base's singular vectors by dense float64 decomposition: small matrices, and whatever Krylov left open.

Shape suffixes: M rows, N columns, R counted base vectors, K other vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from intruscope.linalg import clusters

if TYPE_CHECKING:
    from intruscope.linalg.operators import Operator

_GRAM_SIDE = 1024
"""Above this smaller side the Gram matrix is tried first: a third of the time of the full SVD."""


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
        return self.left_MR.T @ vectors_MK.double()


def counted(values: Tensor, shape: tuple[int, int]) -> int:
    """How many singular values count: those above max(M, N) ulp (float64) of the largest."""
    if len(values) == 0 or float(values[0]) == 0.0:
        return 0
    ulp = torch.finfo(torch.float64).eps
    return int((values > max(shape) * ulp * values[0]).sum())


def dense_base(base: Operator) -> BaseVectors:
    """Decompose a base matrix in float64.

    Large matrices go through the Gram matrix of the smaller side (float64: in float32 it would turn
    small singular vectors into noise). Its eigenvalues carry an error of about ulp σ₁², so where the
    smallest counted σ² is not well above that, the full SVD is taken instead.
    """
    matrix = base.dense_double()
    if not bool(matrix.any()):
        nothing = torch.zeros(0, dtype=torch.float64)
        return BaseVectors(
            values=nothing,
            left_MR=matrix.new_zeros((matrix.shape[0], 0)),
            groups=[],
            sine_error=nothing,
            tail_error=nothing,
        )
    if min(matrix.shape) > _GRAM_SIDE:
        found = _from_gram(matrix)
        if found is not None:
            return found
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    kept = counted(values, (matrix.shape[0], matrix.shape[1]))
    largest = float(values[0]) if len(values) else 0.0
    error = largest * torch.finfo(torch.float64).eps * max(matrix.shape) ** 0.5
    return _assemble(values, left, torch.full_like(values, error), kept)


def _from_gram(matrix: Tensor) -> BaseVectors | None:
    rows, columns = matrix.shape
    wide = rows <= columns
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    squares, vectors = torch.linalg.eigh(gram)
    squares, vectors = squares.flip(0), vectors.flip(1)
    error = float(squares[0]) * torch.finfo(torch.float64).eps * max(rows, columns) ** 0.5
    if float(squares[-1]) < 1e4 * error:
        return None
    values = squares.sqrt()
    left = vectors if wide else (matrix @ vectors) / values
    return _assemble(values, left, error / (2 * values), len(values))


def _assemble(values: Tensor, left: Tensor, errors: Tensor, kept: int) -> BaseVectors:
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
