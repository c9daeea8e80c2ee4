"""How two updates of one matrix lie to each other: inner products, and angles between their spaces.

An update is given by its form (:mod:`intruscope.linalg.forms`). Everything about thin
factors goes through r x r cores, so no update is formed from them.

Shape suffixes: O out, I in, N either, R rank, K kept directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from intruscope.errors import ShapeMismatch
from intruscope.linalg.forms import Form, shape_of
from intruscope.linalg.lowrank import low_rank_svd
from intruscope.linalg.operators import Operator
from intruscope.linalg.topk import dense_triplets, top_triplets

NEGLIGIBLE = 1e-6
"""Directions whose singular value is below this fraction of the largest are left out of a space: rounding in
float32 factors makes such directions, and an angle counts each direction alike, however little it holds."""
CANCELLED = 1e-13
"""A sum counts as zero below this fraction of its parts' squared norms: only rounding is left of it."""
SAME_SQUARED = 0.5
"""Squared length above which a direction counts as found in others: more than half."""
_ONE_DIRECTION = 0.1
"""Directions that are closer than about 8 degrees span one direction, not two: the difference of two nearly
equal vectors points anywhere."""
_BLOCK_ENTRIES = 1 << 22
_KRYLOV = 32
"""A Krylov space pays off where the smaller side is this many times the number of directions, or more."""


@dataclass(frozen=True, kw_only=True)
class Directions:
    """Leading singular directions of one update, float64.

    Attributes:
        left_OK: Orthonormal columns in output space.
        values_K: Singular values, descending, in the units of the weights; all above
            :data:`NEGLIGIBLE` of the largest. Empty for a zero update.
        right_IK: Orthonormal columns in input space.
        is_whole: The update is ``left_OK @ diag(values_K) @ right_IK.T``, less what is negligible.
    """

    left_OK: Tensor
    values_K: Tensor
    right_IK: Tensor
    is_whole: bool


def directions(form: Form, count: int | None, *, seed: int = 0) -> Directions:
    """The leading singular directions of an update.

    Args:
        form: The update, finite.
        count: Maximum number of directions; None for all.
        seed: Random seed of the Krylov space of a large full matrix.

    Cost: (O + I) R² for factors; for a matrix a Krylov space, or a dense decomposition where it is small.
    """
    if isinstance(form, tuple):
        left, values, right = low_rank_svd(*form)
    else:
        if not bool(form.any()):
            return Directions(
                left_OK=torch.zeros((form.shape[0], 0), dtype=torch.float64),
                values_K=torch.zeros(0, dtype=torch.float64),
                right_IK=torch.zeros((form.shape[1], 0), dtype=torch.float64),
                is_whole=True,
            )
        wanted = min(form.shape) if count is None else min(count, *form.shape)
        operator = Operator.of(form)
        few = wanted * _KRYLOV < min(form.shape)
        found = top_triplets(operator, wanted, seed=seed) if few else None
        found = dense_triplets(operator, wanted) if found is None else found
        left, values, right = found.left_MK, found.singular_values, found.right_NK
    kept = int((values > NEGLIGIBLE * values[:1]).sum())
    num = kept if count is None else min(kept, count)
    is_whole = num == kept if isinstance(form, tuple) else len(values) == min(form.shape) and num == kept
    return Directions(
        left_OK=left[:, :num], values_K=values[:num], right_IK=right[:, :num], is_whole=is_whole
    )


def inner_product(first: Form, second: Form) -> float:
    """⟨ΔW₁, ΔW₂⟩ = tr(ΔW₁ᵀ ΔW₂), in float64.

    Raises:
        ShapeMismatch: the updates are of different shapes.

    Numerics: for factors tr((B₂ᵀ B₁)(A₁ A₂ᵀ)), whose error is relative to ‖B₁‖‖A₁‖‖B₂‖‖A₂‖.
    Cost: r² (O + I) for factors; matrices are read once, in blocks of rows.
    """
    if shape_of(first) != shape_of(second):
        raise ShapeMismatch(
            f"the updates have the shapes {list(shape_of(first))} and {list(shape_of(second))}",
            remedy="compare updates of the same matrix",
        )
    if isinstance(first, tuple) and isinstance(second, tuple):
        left1, right1, left2, right2 = (part.double() for part in (*first, *second))
        return float(((left2.T @ left1) * (right2 @ right1.T)).sum())
    if isinstance(first, tuple):
        first, second = second, first
    assert isinstance(first, Tensor)
    total, rows = 0.0, max(1, _BLOCK_ENTRIES // max(1, first.shape[1]))
    for start in range(0, first.shape[0], rows):
        block = first[start : start + rows].double()
        other = (
            second[0][start : start + rows].double() @ second[1].double()
            if isinstance(second, tuple)
            else second[start : start + rows].double()
        )
        total += float((block * other).sum())
    return total


def share_within(form: Form, left_OK: Tensor, right_IK: Tensor, *, norm: float) -> float | None:
    """Share of ‖ΔW‖_F² that lies in a pair of spaces: ‖Uᵀ ΔW V‖_F² / ‖ΔW‖_F².

    With the k leading singular vectors of the base as U and V, it is the energy that changes how the base's
    main directions map to each other.

    Args:
        form: The update.
        left_OK: U, orthonormal columns in output space, float64.
        right_IK: V, orthonormal columns in input space, float64; as many or not.
        norm: ‖ΔW‖_F.

    Returns:
        In [0, 1]; None for no update.

    Source: OPLoRA's ρ_k, arXiv 2510.13003.
    """
    if norm == 0.0:
        return None
    if isinstance(form, tuple):
        core = (left_OK.T @ form[0].double()) @ (form[1].double() @ right_IK)
    else:
        core = (left_OK.T.to(form.dtype) @ form).double() @ right_IK
    return min(1.0, float((core / norm).square().sum()))


def chance_within(shape: tuple[int, int], num_left: int, num_right: int) -> float:
    """What :func:`share_within` is on average for spaces that know nothing of the update: k₁ k₂ / (O I)."""
    return num_left * num_right / (shape[0] * shape[1])


def principal_angles(first_NK: Tensor, second_NK: Tensor) -> Tensor:
    """Principal angles between two spaces, in radians, ascending.

    Args:
        first_NK: Orthonormal columns that span the first.
        second_NK: The same of the second.

    Returns:
        As many angles in [0, π/2] as the smaller space has dimensions.

    Numerics: small angles come from their sines, because a cosine near 1 holds no more than half of their
        digits (Björck and Golub 1973).
    """
    if first_NK.shape[1] < second_NK.shape[1]:
        first_NK, second_NK = second_NK, first_NK
    products = first_NK.T @ second_NK
    cosines = torch.linalg.svdvals(products).clamp(max=1.0)
    angles = torch.arccos(cosines)
    if bool((cosines.square() > 0.5).any()):
        sines = torch.linalg.svdvals(second_NK - first_NK @ products).flip(0).clamp(max=1.0)
        angles = torch.where(cosines.square() > 0.5, torch.arcsin(sines), angles)
    return angles


def mean_overlap(angles_K: Tensor) -> float | None:
    """Mean squared cosine of principal angles: the share of the smaller space that lies in the larger one.

    Between 0 (orthogonal) and 1 (contained); None without angles. Random spaces of r₁ and r₂ dimensions in
    n give max(r₁, r₂) / n on average.
    """
    return float(angles_K.cos().square().mean()) if len(angles_K) else None


def outside_span(vectors_OK: Tensor, others_OM: Tensor) -> Tensor:
    """Which directions are new: those that others do not span.

    The span counts, not the single closest direction: a sum of T updates can mix one direction of each
    evenly, and such a mixture has a cosine of only 1/√T with any of them although it holds nothing new.

    Args:
        vectors_OK: Unit columns.
        others_OM: Unit columns, in any number and at any angle to each other.

    Returns:
        For each of the vectors, whether at most half of its squared length lies in the span of the others.
        Random directions have M/O of it there, on average.
    """
    basis, sizes, _ = torch.linalg.svd(others_OM, full_matrices=False)
    basis_OR = basis[:, sizes > _ONE_DIRECTION]
    inside_K: Tensor = (basis_OR.T @ vectors_OK).square().sum(dim=0)
    return inside_K <= SAME_SQUARED


def one_sided_spread(first: Directions, second: Directions) -> float | None:
    """Standard deviation of ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖‖ΔW₂‖) when only the left directions are random.

    Both updates keep their singular values and their row spaces, and with them whatever the rows have in
    common; their left directions are independent and uniform. That is what adapters look like which started
    from the same A and learned unrelated B: E⟨ΔW₁, U ΔW₂⟩² = ‖ΔW₁ ΔW₂ᵀ‖_F² / O for a random rotation U.

    Returns:
        None where either update is zero or not known as a whole.
    """
    if not (first.is_whole and second.is_whole and len(first.values_K) and len(second.values_K)):
        return None
    rows = first.left_OK.shape[0]
    crossed = first.values_K.unsqueeze(1) * (first.right_IK.T @ second.right_IK) * second.values_K
    norms = float(first.values_K.norm() * second.values_K.norm())
    return float(crossed.norm()) / (math.sqrt(rows) * norms)


def two_sided_spread(shape: tuple[int, int]) -> float:
    """The same when the directions of both sides are random: 1 / √(O I), whatever the singular values."""
    return 1.0 / math.sqrt(shape[0] * shape[1])


def inner_of_directions(first: Directions, second: Directions) -> float:
    """⟨ΔW₁, ΔW₂⟩ of two updates that are known as a whole.

    The same as :func:`inner_product`, with an error relative to ‖ΔW₁‖‖ΔW₂‖, however the factors are scaled.
    """
    products = (first.left_OK.T @ second.left_OK) * (first.right_IK.T @ second.right_IK)
    return float(first.values_K @ products @ second.values_K)
