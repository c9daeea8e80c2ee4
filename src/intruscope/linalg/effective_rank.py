"""Effective rank exp(H(σ/Σσ)) (Roy & Vetterli 2007), exact from singular values or estimated without them.

The estimate is stochastic Lanczos quadrature on A Aᵀ: tr f(A Aᵀ) for f = √x and f = √x ln √x, from
Gaussian probes (Ubaru, Chen & Saad 2017). Both traces come from the same probes, so the interval is
taken on the effective rank itself, by jackknife over probes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from intruscope.linalg.operators import Operator

_STEPS = 48
_PROBES = 16
_STUDENT_95 = 2.131  # two-sided 95% quantile of Student's t with 15 degrees of freedom


@dataclass(frozen=True, kw_only=True)
class RankEstimate:
    """An effective rank and where it lies; ``low == high == value`` when it is exact."""

    value: float
    low: float
    high: float
    method: str


def effective_rank(singular_values: Tensor) -> float:
    """Effective rank: exp of the Shannon entropy of σ / Σσ.

    Between 1 and the number of values; 0 if all are zero.

    Source: Roy & Vetterli 2007.
    """
    total = float(singular_values.double().sum())
    if total == 0.0:
        return 0.0
    share = singular_values.double() / total
    return math.exp(float(-torch.xlogy(share, share).sum()))


def estimate_effective_rank(operator: Operator, *, seed: int) -> RankEstimate:
    """Effective rank of an operator from its products alone.

    Args:
        operator: A, finite and not zero.
        seed: Random seed of the Gaussian probes.

    Returns:
        The estimate with a jackknife interval meant to cover in 95 of 100 cases (measured coverage in
        the tests). The quadrature error of ``_STEPS`` Lanczos steps comes on top; it is below the
        statistical one for every spectrum of the tests, and it makes the estimate err low.

    Cost: ``_STEPS`` products and transposed products with ``_PROBES`` columns.
    """
    work = operator if operator.shape[0] <= operator.shape[1] else operator.transposed
    rows = work.shape[0]
    generator = torch.Generator().manual_seed(seed)
    probes = torch.randn((rows, _PROBES), generator=generator, dtype=torch.float64).to(work.dtype)
    lengths: Tensor = torch.linalg.vector_norm(probes.double(), dim=0)
    nodes, weights = _quadrature(work, probes, min(_STEPS, rows))
    sigma = nodes.clamp(min=0.0).sqrt()
    scaled = weights * lengths.square().unsqueeze(1)
    sums = (scaled * sigma).sum(dim=1)
    entropies = (scaled * torch.xlogy(sigma, sigma)).sum(dim=1)
    value = _from_traces(float(sums.mean()), float(entropies.mean()))
    left_out = torch.tensor(
        [
            math.log(
                _from_traces(
                    float((sums.sum() - sums[i]) / (_PROBES - 1)),
                    float((entropies.sum() - entropies[i]) / (_PROBES - 1)),
                )
            )
            for i in range(_PROBES)
        ],
        dtype=torch.float64,
    )
    spread = math.sqrt((_PROBES - 1) / _PROBES * float((left_out - left_out.mean()).square().sum()))
    factor = math.exp(_STUDENT_95 * spread)
    return RankEstimate(
        value=min(value, float(rows)),
        low=max(1.0, value / factor),
        high=min(float(rows), value * factor),
        method=f"stochastic Lanczos quadrature, {_PROBES} probes, 95% jackknife interval",
    )


def _from_traces(total: float, weighted_log: float) -> float:
    """H = ln T − (Σ σ ln σ)/T with T = Σσ."""
    return math.exp(math.log(total) - weighted_log / total)


def _quadrature(work: Operator, probes_MB: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Gauss nodes and weights of A Aᵀ at each probe: two (B, steps) arrays.

    All probes advance together, each with its own three-term recurrence and full
    re-orthogonalisation; a probe whose space is exhausted gets zero couplings.
    """
    rows, count = probes_MB.shape
    basis = torch.zeros((steps, count, rows), dtype=probes_MB.dtype)
    diagonal = torch.zeros((count, steps), dtype=torch.float64)
    beside = torch.zeros((count, max(steps - 1, 0)), dtype=torch.float64)
    current = (probes_MB / torch.linalg.vector_norm(probes_MB, dim=0)).T.contiguous()
    transposed = work.transposed
    for step in range(steps):
        basis[step] = current
        image = work.times(transposed.times(current.T).contiguous()).T
        diagonal[:, step] = (image.double() * current.double()).sum(dim=1)
        if step + 1 == steps:
            break
        for _ in range(2):
            shares = torch.einsum("sbm,bm->sb", basis[: step + 1], image)
            image = image - torch.einsum("sb,sbm->bm", shares, basis[: step + 1])
        length: Tensor = torch.linalg.vector_norm(image, dim=1)
        alive = length > 1e-5 * diagonal[:, 0].to(length.dtype)
        beside[:, step] = torch.where(alive, length, torch.zeros_like(length)).double()
        current = torch.where(alive.unsqueeze(1), image / length.clamp(min=1e-30).unsqueeze(1), 0.0)
    tridiagonal = torch.diag_embed(diagonal)
    tridiagonal += torch.diag_embed(beside, offset=1) + torch.diag_embed(beside, offset=-1)
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    return nodes, vectors[:, 0, :].square()
