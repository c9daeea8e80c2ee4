"""Singular values too close to tell apart, and what can still be said of their vectors.

Inside a cluster single vectors rotate freely, so only the subspace carries evidence. Everything here
is independent of the basis chosen inside a cluster.

Shape suffixes: R base vectors, K tuned vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

RESOLUTION = 10.0
"""Two values belong together when their gap is below this many times their error."""


def runs(values: Tensor, errors: Tensor) -> list[tuple[int, int]]:
    """Split descending values into maximal runs of neighbours closer than ``RESOLUTION`` errors.

    Args:
        values: Descending (R,).
        errors: Non-negative (R,): how far each may be off.

    Returns:
        Inclusive (first, last) index pairs, in order, covering all values.
    """
    if len(values) == 0:
        return []
    near = values[:-1] - values[1:] <= RESOLUTION * torch.maximum(errors[:-1], errors[1:])
    starts = [0, *(int(i) + 1 for i in torch.nonzero(~near).flatten())]
    return list(zip(starts, [*(s - 1 for s in starts[1:]), len(values) - 1], strict=True))


def labels(groups: list[tuple[int, int]], count: int) -> Tensor:
    """The number of the run that each of ``count`` indices belongs to (count,)."""
    if not groups:
        return torch.zeros(0, dtype=torch.int64)
    sizes = torch.tensor([last - first + 1 for first, last in groups])
    return torch.repeat_interleave(torch.arange(len(groups)), sizes)[:count]


def gaps(values: Tensor, groups: list[tuple[int, int]]) -> Tensor:
    """Distance from each value to the nearest one outside its run (R,); infinite if there is none."""
    if not groups:
        return torch.full_like(values, torch.inf)
    label = labels(groups, len(values))
    edge = values.new_full((1,), torch.inf)
    above = torch.cat([edge, values[[last for _, last in groups[:-1]]]])
    below = torch.cat([values[[first for first, _ in groups[1:]]], -edge])
    return torch.minimum(above[label] - values, values - below[label])


def sine_lower(cosine: Tensor, sine_error: Tensor) -> Tensor:
    """Least |cos| left when either vector may turn by an angle whose sine is ``sine_error``."""
    error = sine_error.clamp(0.0, 1.0)
    c = cosine.clamp(0.0, 1.0)
    lower = c * (1 - error.square()).sqrt() - (1 - c.square()).sqrt() * error
    return lower.clamp(0.0, 1.0)


def sine_upper(cosine: Tensor, sine_error: Tensor) -> Tensor:
    """Greatest |cos| possible when either vector may turn by an angle whose sine is ``sine_error``."""
    error = sine_error.clamp(0.0, 1.0)
    c = cosine.clamp(0.0, 1.0)
    raised = c * (1 - error.square()).sqrt() + (1 - c.square()).sqrt() * error
    # Past the point where the angles meet, the vectors may coincide.
    return torch.where(c >= (1 - error.square()).sqrt(), torch.ones_like(c), raised).clamp(0.0, 1.0)
