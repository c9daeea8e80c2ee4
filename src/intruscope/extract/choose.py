"""From singular values to ranks, and to the curve that a user chooses by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from intruscope.extract.allocate import Spectrum, allocate, uniform_error, uniform_parameters
from intruscope.extract.records import ErrorPoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.extract.allocate import Allocation
    from intruscope.extract.decompose import Directions
    from intruscope.extract.records import RankChoice
    from intruscope.writing.modules import TargetModule


def spectrum_of(module: TargetModule, found: Directions) -> Spectrum:
    """What choosing ranks requires of a module."""
    from intruscope.linalg.truncated import left_squares

    known = found.found
    bound = found.rank_bound
    return Spectrum(
        squares=known.values_K.square().tolist()[:bound],
        total=known.total_square,
        left=left_squares(known.values_K, known.total_square, complete=known.complete).tolist()[: bound + 1],
        cost=module.direction_size,
        bound=bound,
        complete=known.complete or len(known.values_K) >= bound,
    )


def chosen_ranks(
    choice: RankChoice, found: Mapping[str, Directions], spectra: Sequence[Spectrum]
) -> tuple[dict[str, int], Allocation | None]:
    """The rank of each module that changed, and how a number of parameters was spent.

    Args:
        choice: How ranks are chosen.
        found: The directions of each module.
        spectra: Their spectra, in the same order.
    """
    if choice.kind == "parameters":
        spent = allocate(spectra, int(choice.value))
        return dict(zip(found, spent.ranks, strict=True)), spent
    if choice.kind == "rank":
        return {name: min(int(choice.value), each.rank_bound) for name, each in found.items()}, None
    return {name: min(each.rank, each.rank_bound) for name, each in found.items()}, None


def error_curve(spectra: Sequence[Spectrum], also: int | None) -> tuple[ErrorPoint, ...]:
    """The error at one rank for all: 1, 2, 4 ..., as far as the singular values are known.

    Args:
        spectra: Of all modules that changed.
        also: A further rank.
    """
    largest = max((spectrum.bound for spectrum in spectra), default=0)
    ranks = {min(2**power, largest) for power in range(largest.bit_length() + 1)} if largest else set()
    points = []
    for rank in sorted(ranks | ({min(also, largest)} if also else set())):
        error = uniform_error(spectra, rank)
        if error is not None:
            points.append(
                ErrorPoint(rank=rank, num_parameters=uniform_parameters(spectra, rank), relative_error=error)
            )
    return tuple(points)


def best_curve(spectra: Sequence[Spectrum], budgets: Sequence[int]) -> tuple[ErrorPoint, ...]:
    """The smallest error for each budget of parameters, with the best rank for every matrix.

    Only directions that are certainly next are counted: none whose price is below that of the last known one
    of a matrix that has more.
    """
    directions = sorted(
        (
            (-square / spectrum.cost, spectrum.cost, square)
            for spectrum in spectra
            for square in spectrum.squares
            if square > 0.0
        ),
    )
    floor = max(
        (s.squares[-1] / s.cost for s in spectra if not s.complete and s.squares),
        default=0.0,
    )
    total = sum(spectrum.total for spectrum in spectra)
    points: list[ErrorPoint] = []
    kept: list[float] = []
    at, spent = 0, 0
    for budget in sorted(set(budgets)):
        while at < len(directions) and spent + directions[at][1] <= budget:
            price, cost, square = directions[at]
            if -price < floor:
                return tuple(points)
            spent += cost
            kept.append(square)
            at += 1
        if spent and total:
            rest = [square for *_, square in directions[at:]] if all(s.complete for s in spectra) else None
            left = math.fsum(rest) if rest is not None else max(0.0, total - math.fsum(kept))
            error = math.sqrt(left / total)
            points.append(ErrorPoint(rank=None, num_parameters=spent, relative_error=error))
    return tuple(points)
