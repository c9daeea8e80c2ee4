"""Algebra of thin products: nothing here forms left @ right.

Shape suffixes: O out, I in, R rank, K kept vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor


def low_rank_svd(left_OR: Tensor, right_RI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of ``left @ right`` from two QR factorisations and the SVD of an R x R core.

    Args:
        left_OR: Any rank up to R, finite.
        right_RI: Likewise.

    Returns:
        (U (O, r), singular values (r,) descending, V (I, r)) in float64, r = min(O, I, R).

    Numerics: float64 inside; the core keeps small singular values to ulp of the largest.
    Cost: (O + I) R² + R³.
    """
    left_basis, left_core = torch.linalg.qr(left_OR.double())
    right_basis, right_core = torch.linalg.qr(right_RI.double().T)
    u, values, v_t = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return left_basis @ u, values, right_basis @ v_t.T


def low_rank_singular_values(left_OR: Tensor, right_RI: Tensor) -> Tensor:
    """Singular values of ``left @ right``; the vectors, and so half of the work, are left out.

    Args:
        left_OR: Any rank up to R, finite.
        right_RI: Likewise.

    Returns:
        (r,), descending, in float64, r = min(O, I, R).

    Numerics: as :func:`low_rank_svd`.
    """
    left_core = torch.linalg.qr(left_OR.double(), mode="r")[1]
    right_core = torch.linalg.qr(right_RI.double().T, mode="r")[1]
    values: Tensor = torch.linalg.svdvals(left_core @ right_core.T)
    return values


def share_inside(left_OK: Tensor, right_IK: Tensor, *, update: Tensor | tuple[Tensor, Tensor]) -> float:
    """Share of ‖ΔW‖_F² that lies in the span of the given singular directions.

    That is sum_{i,j} (u_iᵀ ΔW v_j)² / ‖ΔW‖_F².

    Args:
        left_OK: Orthonormal columns in output space.
        right_IK: Orthonormal columns in input space.
        update: ΔW itself (O, I), or its factors (left (O, R), right (R, I)).

    Returns:
        A fraction in [0, 1]; 0 for a zero update.
    """
    if isinstance(update, tuple):
        left_OR, right_RI = (factor.double() for factor in update)
        core = (left_OK.double().T @ left_OR) @ (right_RI @ right_IK.double())
        total = float(((left_OR.T @ left_OR) * (right_RI @ right_RI.T)).sum())
    else:
        core = left_OK.to(update.dtype).T @ update @ right_IK.to(update.dtype)
        total = float(torch.linalg.vector_norm(update).double().square())
    inside = float(core.double().square().sum())
    return min(1.0, inside / total) if total > 0.0 else 0.0
