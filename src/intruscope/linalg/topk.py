"""The leading singular triplets of an operator, with the error of each vector and a completeness claim.

Shape suffixes: M rows, N columns, K kept triplets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from intruscope.linalg import clusters
from intruscope.linalg.certificates import TopAccount, account_for_top
from intruscope.linalg.dense import from_gram, svd
from intruscope.linalg.golub_kahan import GolubKahan, RitzSystem
from intruscope.linalg.operators import Operator
from intruscope.linalg.refine import Triplets, refine

if TYPE_CHECKING:
    from collections.abc import Iterable

Certificate = Literal["proved", "probabilistic", "dense"]

RANDOM_COLUMNS = 10
"""Gaussian columns beside the wanted ones: enough for exclusion levels near 0.001 (see certificates)."""

_CHECKPOINTS = (7, 10, 13, 17, 22, 28, 36)
_GOOD_SINE = 1e-3


@dataclass(frozen=True, kw_only=True)
class TopTriplets:
    """The k largest singular values and their vectors.

    Attributes:
        singular_values: Descending, float64 (K,).
        left_MK, right_NK: Unit columns, float64.
        left_error, right_error: Bound on the sine of the angle between each computed vector and the
            exact one; for members of a cluster, between the computed and exact *subspaces* (K,). One
            where the value cannot be told from the zero of that side's null space.
        cluster: Equal numbers mark vectors that cannot be told apart (K,).
        degenerate: True where a vector shares its cluster, with kept or with further vectors (K,).
        open_cluster: The cluster that goes on past the kept vectors, −1 if none does.
        residual_ratio: max ‖A v − σ u‖, ‖Aᵀu − σ v‖ over ‖A‖ max(M, N) ulp, the form of LAPACK's tests.
        certificate: How it is known that no larger value was missed.
        failure_probability: Probability that one was missed; 0 for ``dense``.
    """

    singular_values: Tensor
    left_MK: Tensor
    right_NK: Tensor
    left_error: Tensor
    right_error: Tensor
    cluster: Tensor
    degenerate: Tensor
    open_cluster: int
    residual_ratio: float
    certificate: Certificate
    failure_probability: float


def top_triplets(operator: Operator, k: int, *, seed: int) -> TopTriplets | None:
    """Leading triplets by block Golub-Kahan from a Gaussian block, certified complete.

    Args:
        operator: A (M x N), finite.
        k: How many; far below min(M, N).
        seed: Random seed of the Gaussian block.

    Returns:
        The triplets, or None when the step budget did not suffice (the caller then goes dense).

    Cost: about 20 products with k + 22 columns.
    Source: block Lanczos with a random start; the completeness claim is ours (see certificates).
    """
    rows, columns = operator.shape
    flipped = columns > rows
    work = operator.transposed if flipped else operator
    generator = torch.Generator().manual_seed(seed)
    block = k + RANDOM_COLUMNS
    start = torch.randn((work.shape[1], block), generator=generator, dtype=torch.float64)
    ceiling = 1.001 * frobenius_norm(work)
    if ceiling == 0.0:
        return None
    for attempt, system in enumerate(_systems(work, start, generator), 1):
        account = _account(system, k, ceiling, min(rows, columns))
        found = None if account is None else _accept(work, system, account, k)
        if account is not None and found is not None:
            failure = attempt * account.failure_probability  # each attempt might have been believed
            return _finish(operator, found, k, failure, flipped=flipped)
    return None


def frobenius_norm(operator: Operator) -> float:
    """‖A‖_F without forming A + update: ‖A‖² + 2⟨A, LR⟩ + ‖LR‖²."""
    # Row by row: one long float32 sum would lose four more digits.
    total = float(torch.linalg.vector_norm(operator.dense_MN, dim=1).double().square().sum())
    if operator.left_MR is not None and operator.right_RN is not None:
        left, right = operator.left_MR, operator.right_RN
        crossed = Operator.viewing(operator.dense_MN).times(right.T)
        total += 2.0 * float((left.double() * crossed.double()).sum())
        total += float(((left.T @ left).double() * (right @ right.T).double()).sum())
    return math.sqrt(max(total, 0.0))


def _systems(work: Operator, start: Tensor, generator: torch.Generator) -> Iterable[RitzSystem]:
    block = start.shape[1]
    most = min(_CHECKPOINTS[-1], int(0.8 * min(work.shape)) // block)
    process = GolubKahan(work, start, max_steps=most)
    for num_steps in _CHECKPOINTS:
        if num_steps > most:
            return
        process.extend(num_steps)
        yield process.ritz(generator)


def _account(system: RitzSystem, k: int, ceiling: float, num_candidates: int) -> TopAccount | None:
    """Of the first k Ritz values and at least one more; None where they are far from converged."""
    if float(system.residuals[:k].max()) > 0.05 * float(system.values[k - 1]):
        return None
    account = account_for_top(
        system, system.start_coordinates(), wanted=k, ceiling=ceiling, num_candidates=num_candidates
    )
    return account if account.count > k else None


def _accept(work: Operator, system: RitzSystem, account: TopAccount, k: int) -> Triplets | None:
    """The accounted Ritz triplets with their errors, if the first k are accurate enough, else None."""
    found = ritz_triplets(system, account)
    poor = found.sine_error[:k] > _GOOD_SINE
    if not bool(poor.any()):
        return found
    if bool((poor & (system.residuals[:k] > 3.0 * system.recurrence_error)).any()):
        return None  # more steps will help
    refined = refine(work, found.left_MC, found.right_NC, floor=account.floor)
    if refined is None or float(refined.sine_error[:k].max()) > float(found.sine_error[:k].max()):
        return found
    return refined


def ritz_triplets(system: RitzSystem, account: TopAccount) -> Triplets:
    """The Ritz triplets that an account covers, with errors from their residuals and gaps."""
    count = account.count
    # The pair (u, v)/√2 is an eigenvector of [0 A; Aᵀ 0]; its angle bounds either half's up to √2.
    # The null space of the longer side lies at the value zero.
    gap = torch.minimum(account.gap, account.values)
    sine = math.sqrt(2.0) * system.residuals[:count] / gap.clamp_min(1e-300)
    return Triplets(
        values=account.values,
        left_MC=system.left_vectors(count),
        right_NC=system.right_vectors(count),
        sine_error=sine.clamp(max=1.0),
        cluster=account.cluster,
    )


def _finish(operator: Operator, found: Triplets, k: int, failure: float, *, flipped: bool) -> TopTriplets:
    first, second = found.left_MC[:, :k], found.right_NC[:, :k]
    left, right = (second, first) if flipped else (first, second)
    values, cluster = found.values[:k], found.cluster[:k]
    members = torch.bincount(found.cluster)
    return TopTriplets(
        singular_values=values,
        left_MK=left,
        right_NK=right,
        left_error=found.sine_error[:k],
        right_error=found.sine_error[:k],
        cluster=cluster,
        degenerate=members[cluster] > 1,
        open_cluster=int(cluster[-1]) if found.cluster[k] == cluster[-1] else -1,
        residual_ratio=residual_ratio(operator, left, values, right),
        certificate="probabilistic",
        failure_probability=failure,
    )


def residual_ratio(operator: Operator, left_MK: Tensor, values: Tensor, right_NK: Tensor) -> float:
    """Largest residual over ‖A‖ max(M, N) ulp, LAPACK's form; ulp is that of the working precision."""
    if len(values) == 0 or float(values[0]) == 0.0:
        return 0.0
    dtype = operator.dtype
    forward = operator.times(right_NK.to(dtype)).double() - left_MK * values
    backward = operator.transposed.times(left_MK.to(dtype)).double() - right_NK * values
    worst = max(
        float(torch.linalg.vector_norm(forward, dim=0).max()),
        float(torch.linalg.vector_norm(backward, dim=0).max()),
    )
    return worst / (float(values[0]) * max(operator.shape) * torch.finfo(dtype).eps)


def dense_triplets(operator: Operator, k: int | None) -> TopTriplets:
    """Leading (or all) triplets from one dense float64 decomposition.

    Args:
        operator: A (M x N), finite.
        k: How many; None for all min(M, N).
    """
    matrix = operator.dense_double()
    kept = min(matrix.shape) if k is None else min(k, *matrix.shape)
    found = None if k is None else from_gram(matrix, kept)
    if found is None:
        left, values, right = svd(matrix)
        largest = float(values[0]) if kept else 0.0
        error = torch.full_like(values, largest * torch.finfo(torch.float64).eps * max(matrix.shape) ** 0.5)
    else:
        values, left, right, error = found
    groups = clusters.runs(values, error)
    gap = clusters.gaps(values, groups)
    label = clusters.labels(groups, len(values))
    members = torch.bincount(label)[label[:kept]] if kept else torch.zeros(0)
    rows, columns = matrix.shape
    left_kept, right_kept = left[:, :kept], right[:, :kept]
    exact = Operator.viewing(matrix)
    return TopTriplets(
        singular_values=values[:kept],
        left_MK=left_kept,
        right_NK=right_kept,
        left_error=_sines(values, gap, error, null_space=rows > columns)[:kept],
        right_error=_sines(values, gap, error, null_space=columns > rows)[:kept],
        cluster=label[:kept],
        degenerate=members > 1,
        open_cluster=int(label[kept]) if 0 < kept < len(values) and label[kept] == label[kept - 1] else -1,
        residual_ratio=residual_ratio(exact, left_kept, values[:kept], right_kept),
        certificate="dense",
        failure_probability=0.0,
    )


def _sines(values: Tensor, gap: Tensor, error: Tensor, *, null_space: bool) -> Tensor:
    """Sine of the turning of each vector out of its cluster, or into the null space of its side."""
    if null_space:
        gap = torch.minimum(gap, torch.where(values > clusters.RESOLUTION * error, values, 0.0))
    return (2.0 * error / gap).nan_to_num(nan=1.0).clamp(max=1.0)
