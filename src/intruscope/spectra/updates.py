"""Size and shape of an update, against its base."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from intruscope.linalg.effective_rank import effective_rank, estimate_effective_rank
from intruscope.linalg.limits import DENSE_LIMIT
from intruscope.linalg.lowrank import low_rank_svd
from intruscope.linalg.operators import Operator
from intruscope.linalg.topk import dense_triplets, top_triplets
from intruscope.spectra.records import Estimate, UpdateReport
from intruscope.weights.matrices import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROUNDING_SHARE = 0.21
"""Root mean square of rounding to nearest in units of eps |x|, averaged over a binade."""


def update_report(
    update: Tensor | tuple[Tensor, Tensor],
    *,
    shape: tuple[int, int],
    base_frobenius_norm: float,
    base_spectral_norm: float,
    stored_dtype: torch.dtype | None,
    exact: bool,
    seed: int,
    name: str,
) -> tuple[UpdateReport, Sequence[Finding], Tensor | None]:
    """Norms, ranks and the storage-noise finding of one update.

    Args:
        update: ΔW (O, I), or its factors.
        shape: (out, in) of the matrix.
        base_frobenius_norm: ‖W_base‖_F.
        base_spectral_norm: ‖W_base‖_2.
        stored_dtype: Dtype of the checkpoint when the update is a difference of stored numbers, else None.
        exact: Take the effective rank of a large full update from all singular values.
        seed: Random seed of the estimate otherwise.
        name: The matrix, for the finding.

    Returns:
        The report, the findings, and all singular values of the update where they were computed.
    """
    values: Tensor | None
    if isinstance(update, tuple):
        values = low_rank_svd(*update)[1]
        rank_bound = min(update[0].shape[1], *shape)
        frobenius, spectral = float(values.square().sum().sqrt()), float(values[:1].sum())
        rank: Estimate | None = _exact(values, "exact, from the core of the factors")
    else:
        rank_bound = min(shape)
        frobenius = float(torch.linalg.vector_norm(update.double()))
        spectral, rank, values = _dense_facts(update, exact=exact, seed=seed)
    report = UpdateReport(
        frobenius_norm=frobenius,
        spectral_norm=spectral,
        relative_frobenius_norm=frobenius / base_frobenius_norm if base_frobenius_norm > 0 else None,
        relative_spectral_norm=spectral / base_spectral_norm if base_spectral_norm > 0 else None,
        stable_rank=(frobenius / spectral) ** 2 if spectral > 0 else None,
        effective_rank=rank if frobenius > 0 else None,
        rank_bound=rank_bound,
    )
    return report, _noise(frobenius, base_frobenius_norm, stored_dtype, name), values


def _exact(values: Tensor, method: str) -> Estimate:
    value = effective_rank(values)
    return Estimate(value=value, low=value, high=value, method=method)


def _dense_facts(update: Tensor, *, exact: bool, seed: int) -> tuple[float, Estimate | None, Tensor | None]:
    """Spectral norm, effective rank, and all singular values where they were computed."""
    if float(update.abs().max()) == 0.0:
        return 0.0, None, update.new_zeros(1)
    operator = Operator.of(update)
    if exact or min(update.shape) <= DENSE_LIMIT:
        values: Tensor = torch.linalg.svdvals(update.double())
        return float(values[0]), _exact(values, "exact, from all singular values in float64"), values
    found = top_triplets(operator, 1, seed=seed)
    top = found if found is not None else dense_triplets(operator, 1)
    estimate = estimate_effective_rank(operator, seed=seed)
    rank = Estimate(value=estimate.value, low=estimate.low, high=estimate.high, method=estimate.method)
    return float(top.singular_values[0]), rank, None


def rounding_norm(dtype: torch.dtype, frobenius_norm: float) -> float:
    """How large a change storing a matrix in a dtype makes on average: a Frobenius norm."""
    return _ROUNDING_SHARE * torch.finfo(dtype).eps * frobenius_norm


def _noise(frobenius: float, base: float, dtype: torch.dtype | None, name: str) -> Sequence[Finding]:
    if dtype is None or frobenius == 0.0:
        return ()
    noise = rounding_norm(dtype, base)
    if frobenius > 2.0 * noise:
        return ()
    message = (
        f"the update ({frobenius:.3g}) is hardly larger than the error of rounding to "
        f"{str(dtype).removeprefix('torch.')} ({noise:.3g}), so its directions are mostly storage noise"
    )
    return (Finding(code="storage-noise", severity="warning", message=message, matrix=name),)
