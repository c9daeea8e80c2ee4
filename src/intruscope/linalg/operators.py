"""Matrices as operators: a dense matrix, its transpose, and a dense matrix plus a thin update.

A Krylov method needs nothing of a matrix but its products with a few columns. A low-rank update is
applied as two thin products more, so the tuned matrix is never formed.

Shape suffixes: M rows, N columns, B block columns, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_ROWS = 256
"""A few rows times a chunk of this many rows of a large matrix stays in cache: 1.5 to 2 times as fast."""
_LARGE_ENTRIES = 1 << 21
"""From this size on the transpose is kept as a copy: columns of a row-major matrix are slow to read."""


def rows_times_transpose(rows_BN: Tensor, matrix_MN: Tensor) -> Tensor:
    """A few rows times the transpose of a matrix, (B, M), in the working precision.

    For so few rows oneDNN's float32 product takes 0.5 to 0.6 of the time of the BLAS that torch is built
    with. torch calls it for ``Linear`` only where it compiles; without it the product goes by chunks.
    """
    onednn = _onednn_linear()
    if onednn is not None and rows_BN.dtype == torch.float32 and rows_BN.device.type == "cpu":
        product_BM: Tensor = onednn(rows_BN, matrix_MN, None, "none", [], "")
        return product_BM
    if matrix_MN.is_contiguous() and matrix_MN.shape[0] > 2 * _CHUNK_ROWS:
        return torch.cat([rows_BN @ part.T for part in torch.split(matrix_MN, _CHUNK_ROWS)], dim=1)
    return rows_BN @ matrix_MN.T


@cache
def _onednn_linear() -> Any:
    """The operator that compiled models use for their linear layers on a CPU; None where absent."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """``dense_MN`` or ``dense_MN + left_MR @ right_RN``, seen through its products.

    Attributes:
        dense_MN: float32 or float64; may be a transposed view.
        dense_NM: Its transpose, a copy where that makes products faster (see :meth:`of`), else a view.
        left_MR: Left factor of the update, or None.
        right_RN: Right factor of the update, or None.
    """

    dense_MN: Tensor
    dense_NM: Tensor
    left_MR: Tensor | None = None
    right_RN: Tensor | None = None

    @staticmethod
    def of(dense_MN: Tensor) -> Operator:
        """A matrix as an operator, with a contiguous transpose where it is large enough to be worth it."""
        large = dense_MN.numel() >= _LARGE_ENTRIES
        return Operator(dense_MN=dense_MN, dense_NM=dense_MN.T.contiguous() if large else dense_MN.T)

    @staticmethod
    def viewing(dense_MN: Tensor) -> Operator:
        """A matrix as an operator that costs no memory, for a product or two."""
        return Operator(dense_MN=dense_MN, dense_NM=dense_MN.T)

    def plus(self, left_MR: Tensor, right_RN: Tensor) -> Operator:
        """The operator with a low-rank update on top; shares all storage."""
        return Operator(dense_MN=self.dense_MN, dense_NM=self.dense_NM, left_MR=left_MR, right_RN=right_RN)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return (self.dense_MN.shape[0], self.dense_MN.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """Working precision of the products."""
        return self.dense_MN.dtype

    @property
    def device(self) -> torch.device:
        """Where the products run."""
        return self.dense_MN.device

    @property
    def transposed(self) -> Operator:
        """The same operator from the other side; shares all storage."""
        if self.left_MR is None or self.right_RN is None:
            return Operator(dense_MN=self.dense_NM, dense_NM=self.dense_MN)
        return Operator(
            dense_MN=self.dense_NM,
            dense_NM=self.dense_MN,
            left_MR=self.right_RN.T,
            right_RN=self.left_MR.T,
        )

    def times(self, block_NB: Tensor) -> Tensor:
        """Product with a few columns: (rows, block).

        Computed as rows times the transpose: libraries are slow at a few long columns, so blocks live as
        contiguous rows and are seen as columns.
        """
        rows = block_NB.T
        product_BM = rows_times_transpose(rows, self.dense_MN)
        if self.left_MR is not None and self.right_RN is not None:
            product_BM.addmm_(rows @ self.right_RN.T, self.left_MR.T)
        return product_BM.T

    def times_double(self, block_NB: Tensor) -> Tensor:
        """The same product in float64 whatever the working precision, a chunk of rows at a time."""
        block_NB = block_NB.double()
        product_MB = torch.cat([part.double() @ block_NB for part in torch.split(self.dense_MN, _CHUNK_ROWS)])
        if self.left_MR is not None and self.right_RN is not None:
            product_MB.addmm_(self.left_MR.double(), self.right_RN.double() @ block_NB)
        return product_MB

    def rows(self, index: Tensor) -> Tensor:
        """The named rows in float64: (len(index), columns)."""
        taken = self.dense_MN[index].double()
        if self.left_MR is not None and self.right_RN is not None:
            taken += self.left_MR[index].double() @ self.right_RN.double()
        return taken

    def row_norms(self) -> Tensor:
        """Norms of the rows, or slightly more where there is an update: (rows,), float64."""
        norms: Tensor = torch.linalg.vector_norm(self.dense_MN, dim=1).double()
        if self.left_MR is not None and self.right_RN is not None:
            reach = torch.linalg.vector_norm(self.right_RN, dim=1).double()
            norms = norms + self.left_MR.abs().double() @ reach
        return norms

    def dense_double(self) -> Tensor:
        """The whole matrix in float64. Costs eight bytes an entry: for the dense fallback only."""
        whole = self.dense_MN.double()
        if self.left_MR is not None and self.right_RN is not None:
            whole = whole + self.left_MR.double() @ self.right_RN.double()
        return whole
