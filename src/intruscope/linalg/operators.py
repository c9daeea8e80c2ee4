"""Matrices as operators: a dense matrix, its transpose, and a dense matrix plus a thin update.

A Krylov method needs nothing of a matrix but its products with a few columns. A low-rank update is
applied as two thin products more, so the tuned matrix is never formed.

Shape suffixes: M rows, N columns, B block columns, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Operator:
    """``dense_MN`` or ``dense_MN + left_MR @ right_RN``, seen through its products.

    Attributes:
        dense_MN: float32 or float64; may be a transposed view.
        left_MR: Left factor of the update, or None.
        right_RN: Right factor of the update, or None.
    """

    dense_MN: Tensor
    left_MR: Tensor | None = None
    right_RN: Tensor | None = None

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
            return Operator(dense_MN=self.dense_MN.T)
        return Operator(dense_MN=self.dense_MN.T, left_MR=self.right_RN.T, right_RN=self.left_MR.T)

    def times(self, block_NB: Tensor) -> Tensor:
        """Product with a few columns: (rows, block).

        Computed as rows times the transpose: BLAS libraries are about twice as fast at a few long
        rows as at a few long columns, so blocks live as contiguous rows and are seen as columns.
        """
        product_BM = block_NB.T @ self.dense_MN.T
        if self.left_MR is not None and self.right_RN is not None:
            product_BM.addmm_(block_NB.T @ self.right_RN.T, self.left_MR.T)
        return product_BM.T

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
