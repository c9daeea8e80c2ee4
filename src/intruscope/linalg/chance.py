"""How many intruders does an update of this spectrum make by chance? Sampled from spectra alone.

If an update keeps its singular values and its directions are uniformly random, then the law of
``W + ΔW`` depends on two spectra only: in the base's own singular bases, W is diagonal, and random
directions stay random. So one trial needs neither the weights nor an SVD of the size of the matrix: it
finds the top of

    diag(s) + X diag(t) Yᵀ,        s base values, t update values, X and Y random orthonormal columns,

and in these coordinates the alignment of a vector with the base is its largest entry.

Shape suffixes: M rows (the smaller side), N columns, R rank of the update, B block columns, K kept vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from intruscope.linalg.limits import DENSE_LIMIT
from intruscope.linalg.rotation import haar_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from intruscope.linalg.operators import Operator

_EXTRA_COLUMNS = 6
_STEPS = 6
"""Block Krylov steps: the leading values of a spectrum of weights are found to about 1%, which changes
their count by less than the spread between trials."""
_LEADING = 20
_DIRECTIONS = 48
"""Leading directions of an update that are drawn one by one."""


def intruders_by_chance(
    base_values_M: Tensor | NDArray[Any],
    update_values_R: Tensor | NDArray[Any],
    shape: tuple[int, int],
    *,
    k: int,
    epsilon: float,
    sides: Sequence[Literal["left", "right"]] = ("left",),
    trials: int = 4,
    seed: int = 0,
) -> dict[Literal["left", "right"], tuple[int, ...]] | None:
    """Count the intruders among the top k when the update's directions are random.

    Args:
        base_values_M: Singular values of the base, descending, as a tensor or an array; missing small ones
            count as zero.
        update_values_R: Singular values of the update, in the same units.
        shape: (out, in) of the matrix.
        k: Number of leading vectors that are counted.
        epsilon: Alignment below which a vector is an intruder.
        sides: Output space (left), input space (right) or both.
        trials: Number of independent draws.
        seed: Random seed; equal inputs and seed give equal counts.

    Returns:
        For each side, the count of each trial. None where k asks for so many vectors of a large matrix that
        a trial would cost as much as a dense decomposition.

    Numerics: float64. The Krylov space resolves neighbouring values to about 1%; the tests compare with
        dense decompositions of rotated updates.
    Cost: per trial, 13 products of the diagonal and the thin factors with k + 6 columns. For k beyond a
        sixth of the smaller side, an SVD of the matrix.
    """
    rows, columns = min(shape), max(shape)
    k = min(k, rows)
    direct = (k + _EXTRA_COLUMNS) * _STEPS > rows
    if direct and rows > DENSE_LIMIT:
        return None
    values_M = torch.zeros(rows, dtype=torch.float64)
    values_M[: len(base_values_M)] = torch.as_tensor(base_values_M, dtype=torch.float64)[:rows]
    update_values_R = torch.as_tensor(update_values_R, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    counts: dict[Literal["left", "right"], list[int]] = {side: [] for side in sides}
    flipped = shape[0] > shape[1]
    for _ in range(trials):
        tuned = _Tuned(values_M, update_values_R, columns, generator)
        short_MK, long_NK = (
            tuned.densely(k) if direct else _top(tuned.times, tuned.transposed_times, rows, k, generator)[1:]
        )
        for side in sides:
            is_short = (side == "left") != flipped
            # Columns past the smaller side are no base vectors of the thin SVD.
            seen = short_MK if is_short else long_NK[:rows]
            counts[side].append(int((seen.abs().amax(dim=0) < epsilon).sum()))
    return {side: tuple(found) for side, found in counts.items()}


class _Tuned:
    """diag(s) + X diag(t) Yᵀ, (M, N) with M <= N, through its products.

    Of a long spectrum t the leading values have directions; the energy of the others raises every s as noise
    of that size would.
    """

    def __init__(
        self, values_M: Tensor, update_values_R: Tensor, columns: int, generator: torch.Generator
    ) -> None:
        rows, tail = len(values_M), update_values_R[_DIRECTIONS:]
        self._values_M = (values_M.square() + tail.square().sum() / rows).sqrt()
        self._columns = columns
        leading = update_values_R[:_DIRECTIONS]
        self._left_MR = haar_columns(rows, len(leading), generator) * leading
        self._right_NR = haar_columns(columns, len(leading), generator)

    def times(self, block_NB: Tensor) -> Tensor:
        """The product with a block, (M, B)."""
        rows = len(self._values_M)
        product = self._values_M.unsqueeze(1) * block_NB[:rows]
        return product + self._left_MR @ (self._right_NR.T @ block_NB)

    def transposed_times(self, block_MB: Tensor) -> Tensor:
        """The product of the transpose with a block, (N, B)."""
        rows = len(self._values_M)
        product = torch.zeros((self._columns, block_MB.shape[1]), dtype=torch.float64)
        product[:rows] = self._values_M.unsqueeze(1) * block_MB
        return product + self._right_NR @ (self._left_MR.T @ block_MB)

    def densely(self, k: int) -> tuple[Tensor, Tensor]:
        """The k leading left (M, K) and right (N, K) vectors, from a dense decomposition."""
        matrix = self.times(torch.eye(self._columns, dtype=torch.float64))
        left, _, right_t = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :k], right_t[:k].T


def modelled_values(operator: Operator, total: float, *, seed: int) -> Tensor:
    """A stand-in for the singular values of a large matrix: the leading ones, and the energy of the others.

    Args:
        operator: The matrix (M, N), finite.
        total: ‖A‖_F.
        seed: Random seed of the Krylov space.

    Returns:
        min(M, N) values, descending, float64. The first ``_LEADING`` are those of the matrix to about 1%;
        the others fall as a power law from there to zero, with the sum of squares that the matrix has left.

    Cost: 13 products with 26 columns.
    """
    count = min(operator.shape)
    generator = torch.Generator().manual_seed(seed)
    leading, _, _ = _top(
        lambda block: operator.times(block.to(operator.dtype)).double(),
        lambda block: operator.transposed.times(block.to(operator.dtype)).double(),
        operator.shape[0],
        min(_LEADING, count),
        generator,
    )
    rest = count - len(leading)
    left = max(total**2 - float(leading.square().sum()), 0.0)
    last = float(leading[-1])
    if rest <= 0 or left == 0.0 or last == 0.0:
        return leading
    # The mean of (1 - x)^(2a) over [0, 1] is 1 / (2a + 1).
    power = max(last**2 * rest / left - 1.0, 0.0) / 2.0
    place = (torch.arange(rest, dtype=torch.float64) + 0.5) / rest
    return torch.cat([leading, last * (1.0 - place) ** power])


def _top(
    times: Callable[[Tensor], Tensor],
    transposed_times: Callable[[Tensor], Tensor],
    rows: int,
    k: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k leading triplets, (K,), (M, K) and (N, K), from a block Krylov space with a Gaussian start."""
    block = torch.randn((rows, k + _EXTRA_COLUMNS), generator=generator, dtype=torch.float64)
    space: list[Tensor] = []
    for _ in range(min(_STEPS, rows // block.shape[1])):
        for basis in space:
            block = block - basis @ (basis.T @ block)
        block = torch.linalg.qr(block)[0]
        space.append(block)
        block = times(transposed_times(block))
    basis = torch.cat(space, dim=1)
    image = transposed_times(basis)
    squares, rotation = torch.linalg.eigh(image.T @ image)
    values = squares[-k:].clamp(min=1e-300).sqrt().flip(0)
    rotation = rotation[:, -k:].flip(1)
    return values, basis @ rotation, image @ rotation / values
