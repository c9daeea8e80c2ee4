"""Block Golub-Kahan bidiagonalisation with full re-orthogonalisation and a measured residual.

For an operator A (M x N) and a start block in its column space, n steps give orthonormal bases
U (M x nb) and V (N x nb) with

    A V = U B,        Aᵀ U = V Bᵀ + V₊ C Eₙᵀ,

B block upper bidiagonal, V₊ the next block and Eₙ the last block of unit vectors. In floating point
both relations hold up to a residual; it is *measured* in float64 on sampled rows, because every bound
that is built on the relations has to carry it.

Source: Golub & Kahan 1965; block form after Golub, Luk & Overton 1981. Differs in: full
re-orthogonalisation (two classical Gram-Schmidt passes a block), the measured residual.

Shape suffixes: M rows, N columns, B block, K Krylov dimension (n steps times b).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from intruscope.linalg.operators import rows_times_transpose

if TYPE_CHECKING:
    from intruscope.linalg.operators import Operator

_SAMPLED_ROWS = 96
_PROBES = 8


@dataclass(frozen=True, kw_only=True)
class RitzSystem:
    """The Krylov space of one run, rotated to its Ritz vectors.

    Attributes:
        values: s, descending, float64 (K,): singular values of B.
        left_MK: Basis U, working precision; ``left_MK @ left_rotation_KK`` are the left Ritz vectors.
        right_NK: Basis V likewise.
        left_rotation_KK, right_rotation_KK: P and Z of B = P diag(s) Zᵀ, float64.
        coupling_KB: D = Pᵀ Eₙ Cᵀ, float64: how each Ritz vector leaks into the next block. The
            residual of Ritz pair j is the norm of row j.
        start_BB: Upper triangular R of the QR of the start block: start = V₁ R.
        recurrence_error: Bound on the spectral norm of either residual matrix, measured.
        orthogonality_error: Bound on ‖VᵀV − I‖ and ‖UᵀU − I‖, measured.
    """

    values: Tensor
    left_MK: Tensor
    right_NK: Tensor
    left_rotation_KK: Tensor
    right_rotation_KK: Tensor
    coupling_KB: Tensor
    start_BB: Tensor
    recurrence_error: float
    orthogonality_error: float

    @property
    def residuals(self) -> Tensor:
        """‖Aᵀ p − s z‖ of each Ritz pair (K,), float64; the other residual is zero by construction."""
        leak: Tensor = torch.linalg.vector_norm(self.coupling_KB, dim=1)
        return leak + self.recurrence_error

    def start_coordinates(self) -> Tensor:
        """Coordinates of the start block along the right Ritz vectors: (K, b), float64."""
        block = self.start_BB.shape[0]
        return self.right_rotation_KK[:block].T @ self.start_BB

    def right_vectors(self, count: int) -> Tensor:
        """The first ``count`` right Ritz vectors as unit columns (N, count), float64."""
        return _unit_columns(self.right_NK, self.right_rotation_KK[:, :count])

    def left_vectors(self, count: int) -> Tensor:
        """The first ``count`` left Ritz vectors as unit columns (M, count), float64."""
        return _unit_columns(self.left_MK, self.left_rotation_KK[:, :count])


def _unit_columns(basis: Tensor, rotation: Tensor) -> Tensor:
    columns = (basis @ rotation.to(basis.dtype)).double()
    lengths: Tensor = torch.linalg.vector_norm(columns, dim=0, keepdim=True)
    return columns / lengths


class GolubKahan:
    """A bidiagonalisation that can be extended step by step.

    Args:
        operator: A (M x N).
        start_NB: Start block; its columns must be linearly independent.
        max_steps: Room that is reserved for the bases.
    """

    def __init__(self, operator: Operator, start_NB: Tensor, *, max_steps: int) -> None:
        rows, columns = operator.shape
        block = start_NB.shape[1]
        dtype, device = operator.dtype, operator.device
        self.operator = operator
        self._transposed = operator.transposed
        self.block = block
        self.num_steps = 0
        self.max_steps = max_steps
        self._left = torch.empty((max_steps * block, rows), dtype=dtype, device=device).T
        self._right = torch.empty(((max_steps + 1) * block, columns), dtype=dtype, device=device).T
        self._diagonal: list[Tensor] = []
        self._above: list[Tensor] = []
        first, triangle = torch.linalg.qr(start_NB.double())
        self.start_BB = triangle
        self._right[:, :block] = first.to(dtype)
        self._row_weight = _sampling_weight(operator)
        self._column_weight = _sampling_weight(self._transposed)

    @property
    def dimension(self) -> int:
        """Columns in each basis so far."""
        return self.num_steps * self.block

    def extend(self, num_steps: int) -> None:
        """Take steps until ``num_steps`` in all have been taken."""
        while self.num_steps < num_steps:
            self._step()

    def _step(self) -> None:
        block, done = self.block, self.dimension
        current = self._right[:, done : done + block]
        image = self.operator.times(current).T
        if self._above:
            image.addmm_(self._above[-1].T.to(image.dtype), self._left[:, done - block : done].T, alpha=-1)
        new_left, upper = _orthonormalise(image, self._left[:, :done].T)
        self._left[:, done : done + block] = new_left
        back = self._transposed.times(new_left).T
        back.addmm_(upper.to(back.dtype), current.T, alpha=-1)
        new_right, lower = _orthonormalise(back, self._right[:, : done + block].T)
        self._right[:, done + block : done + 2 * block] = new_right
        self._diagonal.append(upper)
        self._above.append(lower.T)
        self.num_steps += 1

    def ritz(self, generator: torch.Generator) -> RitzSystem:
        """Rotate the space built so far to its Ritz vectors, and measure how well the relations hold."""
        size, block = self.dimension, self.block
        bidiagonal = torch.zeros((size, size), dtype=torch.float64)
        for step, diagonal in enumerate(self._diagonal):
            at = slice(step * block, (step + 1) * block)
            bidiagonal[at, at] = diagonal
            if step + 1 < self.num_steps:
                bidiagonal[at, (step + 1) * block : (step + 2) * block] = self._above[step]
        left_rotation, values, right_rotation_t = torch.linalg.svd(bidiagonal)
        # Aᵀ U = V Bᵀ + V₊ C Eₙᵀ: ``above`` holds Cᵀ, so D = Pᵀ Eₙ Cᵀ.
        coupling = left_rotation[size - block :].T @ self._above[-1]
        recurrence, orthogonality = self._measured_errors(bidiagonal, generator)
        return RitzSystem(
            values=values,
            left_MK=self._left[:, :size],
            right_NK=self._right[:, :size],
            left_rotation_KK=left_rotation,
            right_rotation_KK=right_rotation_t.T.contiguous(),
            coupling_KB=coupling,
            start_BB=self.start_BB,
            recurrence_error=recurrence,
            orthogonality_error=orthogonality,
        )

    def _measured_errors(self, bidiagonal: Tensor, generator: torch.Generator) -> tuple[float, float]:
        """Spectral norms of the residual matrices, from sampled rows in float64.

        Row i of E = A V − U B depends on row i of A alone, so a sample of rows costs only its share.
        Rounding in row i grows with the norm of row i, and trained weights can have single giant rows:
        rows are drawn with probability p_i, half by squared norm and half evenly, so that the mean of
        e_i e_iᵀ / p_i is EᵀE with little variance. Its largest eigenvalue errs upward (it is convex);
        the factor 1.5 covers what the sample could still miss.
        """
        size, block = self.dimension, self.block
        worst = 0.0
        for operator, weight, image_basis, source_basis, small in (
            (self.operator, self._row_weight, self._left[:, :size], self._right[:, :size], bidiagonal),
            (
                self._transposed,
                self._column_weight,
                self._right[:, : size + block],
                self._left[:, :size],
                _with_tail(bidiagonal, self._above[-1]),
            ),
        ):
            picked = torch.multinomial(weight, _SAMPLED_ROWS, replacement=True, generator=generator)
            image = operator.rows(picked) @ source_basis.double()
            image -= image_basis[picked].double() @ small
            image /= (len(picked) * weight[picked]).sqrt().unsqueeze(1)
            # The Gram matrix of the few sampled rows has the same largest eigenvalue, and is small.
            norm = float(torch.linalg.eigvalsh(image @ image.T)[-1].clamp(min=0.0)) ** 0.5
            worst = max(worst, 1.5 * norm)
        orthogonality = max(
            _departure_from_orthonormal(self._right[:, : size + block], generator),
            _departure_from_orthonormal(self._left[:, :size], generator),
        )
        return worst, orthogonality


def _sampling_weight(operator: Operator) -> Tensor:
    """Probability of each row in the error sample: half by squared norm, half even."""
    squares = operator.row_norms().square()
    total = squares.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return 0.5 * squares / total + 0.5 / len(squares)


def _departure_from_orthonormal(basis: Tensor, generator: torch.Generator) -> float:
    """‖QᵀQ − I‖, estimated from above by its Frobenius norm on Gaussian probes (twice their mean)."""
    size = basis.shape[1]
    probes = torch.randn((size, _PROBES), generator=generator, dtype=torch.float64).to(basis.dtype)
    departure = basis.T @ (basis @ probes) - probes
    return 2.0 * float(torch.linalg.matrix_norm(departure.double())) / math.sqrt(_PROBES)


def _with_tail(bidiagonal: Tensor, above: Tensor) -> Tensor:
    """The (K + b, K) coefficients of Aᵀ U: Bᵀ with the coupling to the next block below it."""
    size, block = bidiagonal.shape[0], above.shape[0]
    whole = torch.zeros((size + block, size), dtype=torch.float64)
    whole[:size] = bidiagonal.T
    whole[size:, size - block :] = above.T
    return whole


def _orthonormalise(block_BN: Tensor, basis_KN: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal columns Q ⟂ basis and float64 R with block ≈ Q R (+ what lay in the basis).

    The block and the basis come as rows (see ``Operator.times``). Two passes: the second also turns
    the arbitrary directions that a rank-deficient block gets from its first QR away from the basis.
    """
    block_BN = block_BN - rows_times_transpose(block_BN, basis_KN) @ basis_KN
    first, upper = torch.linalg.qr(block_BN.T)
    first_BN = first.T - rows_times_transpose(first.T, basis_KN) @ basis_KN
    second, correction = torch.linalg.qr(first_BN.T)
    return second, correction.double() @ upper.double()
