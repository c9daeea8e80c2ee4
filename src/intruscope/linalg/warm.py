"""The leading singular triplets of a matrix that has changed a little since they were last known.

A small Krylov space from the last vectors finds them again, and one Cholesky factorisation proves that no
other was missed: if θ²I − (G − X M Xᵀ) is positive definite, where G is the Gram matrix of the smaller side
and X M Xᵀ the part of it that was found (c vectors), then by Weyl no more than c eigenvalues of G reach θ².
That is a tenth of the work of a decomposition, in float64 throughout.

Source: Rayleigh-Ritz with Davis-Kahan errors (Parlett 1998, chapters 10 and 11); the count by inertia is
Sylvester's. For sides up to about a thousand: the Gram matrix costs the cube of the smaller side.

Shape suffixes: M rows, N columns, S the smaller side, C block, K kept triplets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from intruscope.linalg import clusters
from intruscope.linalg.topk import TopTriplets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intruscope.linalg.operators import Operator

GUARD = 6
"""Columns beside the wanted ones: a vector that is about to enter the top is among them."""
_DEPTH = 2
_ROUNDS = 4
_GOOD_SINE = 1e-2
_LEAST_ROWS = 32


class Warm(NamedTuple):
    """Triplets found from earlier ones.

    Attributes:
        triplets: With their errors; ``proved`` complete.
        block_SC: What to start from next time.
    """

    triplets: TopTriplets
    block_SC: Tensor


def gram_of(matrix_MN: Tensor) -> Tensor:
    """The Gram matrix of the smaller side (S, S), by blocks of rows up to the diagonal.

    A product of a matrix with its own transpose is computed whole by torch; this is 0.7 of its time.
    """
    rows_SL = matrix_MN.T if matrix_MN.shape[0] >= matrix_MN.shape[1] else matrix_MN
    size = rows_SL.shape[0]
    step = max(_LEAST_ROWS, -(-size // 4))
    gram_SS = rows_SL.new_empty((size, size))
    for first in range(0, size, step):
        last = min(first + step, size)
        part = rows_SL[first:last] @ rows_SL[:last].T
        gram_SS[first:last, :last] = part
        gram_SS[:first, first:last] = part[:, :first].T
    return gram_SS


def gram_with(gram_SS: Tensor, matrix_MN: Tensor, left_MR: Tensor, right_RN: Tensor) -> Tensor:
    """The Gram matrix of ``matrix + left @ right`` from that of the matrix: no product of its sides.

    All in one dtype; the cost is that of a few products with R columns.
    """
    if matrix_MN.shape[0] < matrix_MN.shape[1]:
        matrix_MN, left_MR, right_RN = matrix_MN.T, right_RN.T, left_MR.T
    # Gram of W + LR: WᵀW + (WᵀL + ½ Rᵀ LᵀL) R and its transpose.
    half_SR = (left_MR.T @ matrix_MN).T + 0.5 * right_RN.T @ (left_MR.T @ left_MR)
    change_SS = half_SR @ right_RN
    return gram_SS + change_SS + change_SS.T


def start_from(left_MK: Tensor, right_NK: Tensor, *, k: int, seed: int) -> Tensor:
    """A first block from singular vectors found in another way: the shorter ones.

    Args:
        left_MK: Leading left vectors; more than k are a help.
        right_NK: The right ones.
        k: How many are wanted.
        seed: Random seed of the columns that are added where there are not enough.
    """
    known_SK = right_NK if left_MK.shape[0] >= right_NK.shape[0] else left_MK
    generator = torch.Generator().manual_seed(seed)
    size, known = known_SK.shape
    more = torch.randn((size, max(0, k + GUARD - known)), generator=generator, dtype=torch.float64)
    return torch.cat([known_SK[:, : k + GUARD], more / size**0.5], dim=1)


def warm_triplets(operator: Operator, gram_SS: Tensor, block_SC: Tensor, k: int) -> Warm | None:
    """The k leading triplets again, proved complete.

    Args:
        operator: A (M x N), float64.
        gram_SS: Of its smaller side, float64.
        block_SC: From :func:`start_from` or the last call; more than k columns.
        k: How many.

    Returns:
        None where the last vectors are no start: too much has changed, or values at the edge of the top lie
        too close together. The caller then decomposes.
    """
    if block_SC.shape[1] <= k or (_DEPTH + 1) * block_SC.shape[1] > gram_SS.shape[0]:
        return None
    found: Warm | None = None
    for left in reversed(range(_ROUNDS)):
        values_C, vectors_SC, leak_SC = _rayleigh_ritz(gram_SS, block_SC)
        block_SC = vectors_SC
        if not float(values_C[k]) > 0.0:
            return None
        for count, floor in _floors(values_C, leak_SC, k):
            values, leak = values_C[:count], leak_SC[:, :count]
            errors = _errors(values, leak, floor, len(gram_SS))
            is_good = float(errors.far_sine[:k].max()) <= _GOOD_SINE
            # What another round will improve is not worth its proof.
            if (is_good or not left) and _proved(gram_SS, values, vectors_SC[:, :count], floor):
                found = Warm(_triplets(operator, values, vectors_SC, leak, errors, k), block_SC)
                if is_good:
                    return found
                break
    return found


def _rayleigh_ritz(gram_SS: Tensor, block_SC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values (descending), vectors, and what leaks: G X − X M, of the block's Krylov space."""
    blocks, _ = torch.linalg.qr(block_SC)
    image_SD = _applied(gram_SS, blocks)
    last = image_SD
    for _ in range(_DEPTH):
        for _ in range(2):
            last = last - blocks @ (blocks.T @ last)
            last, _ = torch.linalg.qr(last)
        blocks = torch.cat([blocks, last], dim=1)
        last = _applied(gram_SS, last)
        image_SD = torch.cat([image_SD, last], dim=1)
    values, rotation = torch.linalg.eigh(blocks.T @ image_SD)
    kept = block_SC.shape[1]
    values, rotation = values.flip(0)[:kept], rotation.flip(1)[:, :kept]
    vectors = blocks @ rotation
    return values, vectors, image_SD @ rotation - vectors * values


def _applied(gram_SS: Tensor, block_SC: Tensor) -> Tensor:
    """G X; as rows times G, which is symmetric, in half the time."""
    return (block_SC.T @ gram_SS).T


def _rounding(values: Tensor, size: int) -> float:
    """What float64 costs a Gram matrix of this size and its factorisation."""
    return 8.0 * size * torch.finfo(torch.float64).eps * float(values[0])


def _floors(values_C: Tensor, leak_SC: Tensor, k: int) -> Iterator[tuple[int, float]]:
    """Values that perhaps only the first ``count`` eigenvalues reach, with count ≥ k; best first."""
    rounding = _rounding(values_C, len(leak_SC))
    leak_C = torch.linalg.vector_norm(leak_SC, dim=0)
    # A column that is not found yet may belong as much higher as it leaks.
    steps = (values_C - leak_C)[k - 1 : -1] - (values_C + leak_C)[k:]
    for place in torch.argsort(steps, descending=True).tolist()[:2]:
        count = k + place
        rho = float(torch.linalg.vector_norm(leak_C[:count])) + rounding
        step = float(values_C[count - 1] - values_C[count])
        down = max(0.4 * step, 2.0 * clusters.RESOLUTION * rho)
        if down < 0.9 * step:
            yield count, float(values_C[count - 1]) - down + rounding


def _proved(gram_SS: Tensor, values: Tensor, vectors: Tensor, floor: float) -> bool:
    """Whether no more eigenvalues than these reach the floor: what they leave is below it."""
    rest = torch.addmm(gram_SS, vectors * values, vectors.T, alpha=-1.0).neg_()
    rest.diagonal().add_(floor - _rounding(values, len(gram_SS)))
    return int(torch.linalg.cholesky_ex(rest).info) == 0


class _Errors(NamedTuple):
    """How far Ritz vectors may be off.

    Attributes:
        sine: Sine of each vector's angle, on the side of the Gram matrix.
        far_sine: On the other side: through A an error along a larger value's vector grows by the ratio.
        label: Number of the run of values that cannot be told apart.
    """

    sine: Tensor
    far_sine: Tensor
    label: Tensor


def _errors(values: Tensor, leak: Tensor, floor: float, size: int) -> _Errors:
    """Davis-Kahan: each vector leaks its residual over the distance to what is not of its cluster."""
    rounding = _rounding(values, size)
    residual = torch.linalg.vector_norm(leak, dim=0)
    rho = float(torch.linalg.vector_norm(residual)) + rounding
    groups = clusters.runs(values, torch.full_like(values, rho))
    label = clusters.labels(groups, len(values))
    gap = torch.minimum(clusters.gaps(values, groups), values - floor) - rho
    joint = torch.zeros(len(groups), dtype=torch.float64).index_add_(0, label, residual.square()).sqrt()
    sine = ((joint[label] + rounding) / gap).clamp(0.0, 1.0)
    return _Errors(sine, (sine * (values[0] / values).sqrt()).clamp(max=1.0), label)


def _triplets(
    operator: Operator, values: Tensor, vectors_SC: Tensor, leak: Tensor, errors: _Errors, k: int
) -> TopTriplets:
    """The first k with their errors on both sides."""
    singular, label = values.sqrt(), errors.label
    tall = operator.shape[0] >= operator.shape[1]
    near_SK = vectors_SC[:, :k]
    far = (operator if tall else operator.transposed).times(near_SK)
    far = far / torch.linalg.vector_norm(far, dim=0)
    left, right = (far, near_SK) if tall else (near_SK, far)
    near_sine, far_sine = errors.sine[:k], errors.far_sine[:k]
    worst = float((torch.linalg.vector_norm(leak[:, :k], dim=0) / singular[:k]).max())
    return TopTriplets(
        singular_values=singular[:k],
        left_MK=left,
        right_NK=right,
        left_error=far_sine if tall else near_sine,
        right_error=near_sine if tall else far_sine,
        cluster=label[:k],
        degenerate=torch.bincount(label)[label[:k]] > 1,
        open_cluster=int(label[k]) if len(label) > k and label[k] == label[k - 1] else -1,
        residual_ratio=worst / (float(singular[0]) * max(operator.shape) * torch.finfo(torch.float64).eps),
        certificate="proved",
        failure_probability=0.0,
    )
