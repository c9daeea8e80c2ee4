"""The K-th largest magnitude over many arrays that are never in memory together.

TIES keeps the largest entries of a fine-tune over all of its matrices. Two passes find the exact threshold:
the first counts magnitudes in 65,536 bins of relative width at most 2⁻⁸, the second collects the entries of
the one bin in which the threshold lies. The steps are separate functions, so that passes can run in workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

NUM_BINS = 2**16
_SHIFT = 15  # of the 31 bits of a float32 magnitude; rounding from float64 keeps the order


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """Where the threshold of one fine-tune lies.

    Attributes:
        index: Of the bin.
        rank: Counted from the largest, which entry of the bin it is; 0 where everything is kept.
    """

    index: int
    rank: int


def num_kept(total: int, density: float) -> int:
    """How many of so many entries are kept: the nearest whole number, at least one."""
    return max(1, round(density * total))


def matrix_thresholds(parts: Sequence[Tensor], density: float) -> tuple[float, ...]:
    """For each array, the magnitude of the smallest entry that is kept; entries equal to it are kept too."""
    if density >= 1.0:
        return (0.0,) * len(parts)
    return tuple(
        _kth_largest(part.abs().flatten(), num_kept(part.numel(), density)) if part.numel() else 0.0
        for part in parts
    )


def global_thresholds(
    passes: Callable[[], Iterable[Sequence[Tensor]]], density: float
) -> tuple[float, ...] | None:
    """The same over all matrices of each fine-tune, exactly, in two passes.

    Args:
        passes: Starts one pass over all matrices: for each, one array per fine-tune.
        density: Fraction of entries that is kept, in (0, 1].

    Returns:
        One threshold per fine-tune; None where everything is kept.

    Numerics: exact, except that magnitudes below 2⁻¹³⁴ count as 0.
    Cost: two passes; memory for the counts and for one bin, about 0.3% of the entries of each fine-tune.
    """
    if density >= 1.0:
        return None
    counts: Tensor | None = None
    for parts in passes():
        found = count_magnitudes(parts)
        counts = found if counts is None else counts + found
    if counts is None:
        return None
    boundaries = find_boundaries(counts, density)
    collected: list[list[Tensor]] = [[] for _ in boundaries]
    for parts in passes():
        for into, found in zip(collected, collect_boundary(parts, boundaries), strict=True):
            into.append(found)
    return thresholds_at(boundaries, [torch.cat(each) for each in collected])


def count_magnitudes(parts: Sequence[Tensor]) -> Tensor:
    """How many entries of each array fall into each bin: (T, NUM_BINS), int64. Counts of matrices add up."""
    return torch.stack([torch.bincount(_bins(part), minlength=NUM_BINS) for part in parts])


def find_boundaries(counts: Tensor, density: float) -> tuple[Boundary, ...]:
    """The bin of each fine-tune's threshold.

    Args:
        counts: Of all matrices together (T, NUM_BINS).
        density: Fraction of entries that is kept, below 1.
    """
    boundaries = []
    for row in counts:
        kept = num_kept(int(row.sum()), density)
        from_above = row.flip(0).cumsum(0)  # entries in this bin and all above
        at = int(torch.searchsorted(from_above, kept))
        index = max(NUM_BINS - 1 - at, 0)
        above = int(from_above[at - 1]) if at else 0
        # Bin 0 holds the zeros, possibly most entries: they are kept, which changes nothing.
        boundaries.append(Boundary(index=index, rank=kept - above if index else 0))
    return tuple(boundaries)


def collect_boundary(parts: Sequence[Tensor], boundaries: Sequence[Boundary]) -> list[Tensor]:
    """The magnitudes of each array that lie in its boundary bin."""
    return [
        part.abs().flatten()[_bins(part) == at.index] if at.rank else part.new_zeros(0)
        for part, at in zip(parts, boundaries, strict=True)
    ]


def thresholds_at(boundaries: Sequence[Boundary], collected: Sequence[Tensor]) -> tuple[float, ...]:
    """Each fine-tune's threshold.

    Args:
        boundaries: As found.
        collected: For each fine-tune, what all matrices have in its bin.
    """
    return tuple(
        _kth_largest(values, min(at.rank, len(values))) if at.rank else 0.0
        for at, values in zip(boundaries, collected, strict=True)
    )


def _bins(part: Tensor) -> Tensor:
    return part.abs().flatten().float().view(torch.int32) >> _SHIFT


def _kth_largest(magnitudes: Tensor, rank: int) -> float:
    return float(torch.kthvalue(magnitudes, len(magnitudes) - rank + 1).values)
