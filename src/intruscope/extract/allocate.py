"""Which rank each matrix gets: error curves, and a number of parameters spent where it helps most.

For given ranks no factors are better than the truncated decompositions (Eckart & Young), so that the choice
is one of ranks alone: from the singular values, without a vector.

**The claim.** A further direction of matrix m costs c_m = out + in numbers and lowers the summed squared
error by its σ², which only falls along a matrix. Taking directions by falling σ²/c until one does not fit is
therefore optimal *for the numbers spent so far*: no other ranks with at most as many numbers have a smaller
error (an exchange argument; where all matrices have one size, it is optimal for every budget). What is left
of the budget then goes to directions that still fit. The result may miss the best use of the whole budget, a
knapsack, by no more than what the leftover could buy at the price of the direction that did not fit; that
gap is reported.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """What choosing ranks requires of one matrix.

    Attributes:
        squares: The known σ², in descending order.
        total: ‖ΔW‖_F².
        left: ‖ΔW − ΔW_r‖_F² for r = 0 .. len(squares).
        cost: Parameters per direction.
        bound: Maximum rank.
        complete: Whether all directions are known.
    """

    squares: Sequence[float]
    total: float
    left: Sequence[float]
    cost: int
    bound: int
    complete: bool

    def left_at(self, rank: int) -> float | None:
        """‖ΔW − ΔW_r‖_F²; None where that is not known."""
        if rank < len(self.left):
            return self.left[rank]
        return 0.0 if self.complete else None


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Ranks for a budget of parameters.

    Attributes:
        ranks: Rank of each matrix.
        num_parameters: Parameters used.
        gap: Upper bound on the excess of the squared error over the optimum, as a share of the total.
        open: Indices of matrices whose known directions are used up although there may be more.
    """

    ranks: tuple[int, ...]
    num_parameters: int
    gap: float
    open: tuple[int, ...]


def allocate(spectra: Sequence[Spectrum], budget: int) -> Allocation:
    """Spend a budget of parameters; the module docstring says how good the result is.

    Args:
        spectra: One per matrix.
        budget: Parameters in all factors together.
    """
    ranks = [0] * len(spectra)
    spent, kept = 0, 0.0
    most: float | None = None
    queue = [entry for i in range(len(spectra)) if (entry := _next(spectra, ranks, i)) is not None]
    heapq.heapify(queue)
    opened: set[int] = set()
    while queue:
        negative_price, index = heapq.heappop(queue)
        spectrum = spectra[index]
        if spent + spectrum.cost > budget:
            if most is None:
                most = kept - negative_price * (budget - spent)
            continue  # nor does any later direction of this matrix fit
        kept += spectrum.squares[ranks[index]]
        spent += spectrum.cost
        ranks[index] += 1
        entry = _next(spectra, ranks, index)
        if entry is not None:
            heapq.heappush(queue, entry)
        elif not spectrum.complete and ranks[index] < spectrum.bound:
            opened.add(index)
    total = sum(spectrum.total for spectrum in spectra)
    gap = 0.0 if most is None or not total else max(0.0, most - kept) / total
    return Allocation(ranks=tuple(ranks), num_parameters=spent, gap=gap, open=tuple(sorted(opened)))


def uniform_error(spectra: Sequence[Spectrum], rank: int) -> float | None:
    """Relative error over all matrices at one rank; None if a spectrum is not known that far."""
    left = [spectrum.left_at(rank) for spectrum in spectra]
    total = sum(spectrum.total for spectrum in spectra)
    if any(each is None for each in left) or not total:
        return None
    return math.sqrt(sum(each for each in left if each is not None) / total)


def uniform_parameters(spectra: Sequence[Spectrum], rank: int) -> int:
    """Parameters in the factors at one rank, capped at each matrix's maximum."""
    return sum(min(rank, spectrum.bound) * spectrum.cost for spectrum in spectra)


def _next(spectra: Sequence[Spectrum], ranks: Sequence[int], index: int) -> tuple[float, int] | None:
    spectrum, rank = spectra[index], ranks[index]
    if rank >= len(spectrum.squares) or spectrum.squares[rank] <= 0.0:
        return None
    return -spectrum.squares[rank] / spectrum.cost, index
