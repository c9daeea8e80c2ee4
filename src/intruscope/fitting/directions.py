"""What a fit says about intruders: does it turn them down more than other directions of the same size?

A fit of one factor per direction says which directions an optimiser turns down when it wants to keep the task
and win back the base. Large directions do more, so they are compared within strata of equal size.

Shape suffixes: D directions of all matrices together, K directions of one matrix, T intruders of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from intruscope.fitting.parts import FactorPart
from intruscope.fitting.records import Answer, Direction, DirectionTest
from intruscope.forgetting.intervals import Interval, percentile_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from intruscope.adapters.live import LivePair
    from intruscope.fitting.fit import Fit
    from intruscope.fitting.parts import Part
    from intruscope.repair.survey import Survey

    Array = NDArray[np.float64]

NUM_STRATA = 8
NUM_PERMUTATIONS = 2000
NUM_RESAMPLES = 2000
FEWEST_DIRECTIONS = 24
"""With fewer there are not three directions to a stratum."""
ALPHA = 0.05
MAX_DENSE = 2048
"""Matrices up to this size are decomposed for the alignments of their directions."""


def directions_of(
    fit: Fit, parts: Sequence[Part], survey: Survey, alignments: Mapping[str, Array | None]
) -> tuple[Direction, ...]:
    """Every direction that has a factor of its own.

    Args:
        fit: A fit of ``fitted``.
        parts: What it trained.
        survey: Of the pair.
        alignments: From :func:`alignments_of`.
    """
    by_name = {matrix.name: matrix for matrix in survey.matrices}
    found = []
    for part in parts:
        assert isinstance(part, FactorPart)
        matrix = by_name[part.name]
        inside_TK = matrix.left_OK[:, list(matrix.intruders)].T @ part.left_OK
        shares = inside_TK.square().sum(dim=0).clamp(max=1.0).tolist()
        known = alignments[part.name]
        largest = matrix.report.base_spectral_norm or 1.0
        for index, factor in enumerate(part.factors(fit.numbers[part.key]).tolist()):
            value = float(part.values_K[index])
            found.append(
                Direction(
                    matrix=part.name,
                    index=index,
                    factor=factor,
                    intruder_share=shares[index],
                    value=value,
                    relative_value=value / largest,
                    alignment=None if known is None else float(known[index]),
                )
            )
    return tuple(found)


def alignments_of(parts: Sequence[Part], pair: LivePair) -> dict[str, Array | None]:
    """The alignment of each direction of each matrix; None for a matrix too large to decompose in passing.

    Args:
        parts: Of ``fitted``.
        pair: The loaded pair.
    """
    import torch

    found: dict[str, Array | None] = {}
    for part in parts:
        assert isinstance(part, FactorPart)
        base_OI = pair.base_matrix(part.name).cpu()
        if min(base_OI.shape) > MAX_DENSE:
            found[part.name] = None
            continue
        base_left_OR = torch.linalg.svd(base_OI, full_matrices=False)[0].double()
        cosines_K = (base_left_OR.T @ part.left_OK).abs().amax(dim=0).clamp(max=1.0)
        found[part.name] = cosines_K.numpy()
    return found


def direction_test(directions: Sequence[Direction], *, weight: float, seed: int = 0) -> DirectionTest:
    """Compare the factors of intruders with those of other directions of the same size.

    Args:
        directions: Of all matrices.
        weight: Of the loss on text, in the fit.
        seed: Random seed of the permutations and of the bootstrap.

    Source: the partial rank correlation is Spearman's within strata (van Elteren 1960 for the idea of ranks
        by stratum); the p-value counts the observed arrangement as one of the permutations.
    """
    num_strata = min(NUM_STRATA, len(directions) // 3)
    undecided = DirectionTest(
        weight=weight,
        directions=tuple(directions),
        num_strata=num_strata,
        correlation=None,
        difference=None,
        p_value=None,
        answer="too few directions",
    )
    if len(directions) < FEWEST_DIRECTIONS:
        return undecided
    factors_D = np.array([each.factor for each in directions])
    shares_D = np.array([each.intruder_share for each in directions])
    order = np.argsort([each.relative_value for each in directions], kind="stable")
    strata = np.array_split(order, num_strata)
    ranked = _correlation(factors_D, shares_D, strata, seed)
    difference = _difference(factors_D, shares_D, strata, [each.matrix for each in directions], seed)
    if ranked is None or difference is None:
        return replace(undecided, answer="no difference")
    correlation, p_value = ranked
    answer: Answer = "no difference"
    if p_value < ALPHA and correlation < 0.0 and difference.high < 0.0:
        answer = "more"
    elif p_value < ALPHA and correlation > 0.0 and difference.low > 0.0:
        answer = "less"
    return replace(undecided, correlation=correlation, difference=difference, p_value=p_value, answer=answer)


def _correlation(
    first_D: Array, second_D: Array, strata: Sequence[NDArray[np.intp]], seed: int
) -> tuple[float, float] | None:
    """Correlation of the ranks that are centred in each stratum, and its p-value by permutation there."""
    from scipy.stats import rankdata

    ranks = [[_centred(rankdata(each_D[own])) for own in strata] for each_D in (first_D, second_D)]
    norm = float(np.sqrt(np.prod([sum((own**2).sum() for own in each) for each in ranks])))
    if norm == 0.0:
        return None
    generator = np.random.default_rng([seed, len(first_D)])
    observed, permuted_P = 0.0, np.zeros(NUM_PERMUTATIONS)
    for first, second in zip(*ranks, strict=True):
        observed += float(first @ second)
        # Ranks move with the values that they are of, so that the norm stays the same.
        permuted_P += generator.permuted(np.tile(second, (NUM_PERMUTATIONS, 1)), axis=1) @ first
    num_as_far = int((np.abs(permuted_P) >= abs(observed) - 1e-9 * norm).sum())
    return observed / norm, (1 + num_as_far) / (1 + NUM_PERMUTATIONS)


def _centred(ranks: Array) -> Array:
    centred: Array = ranks - ranks.mean()
    return centred


def _difference(
    factors_D: Array,
    shares_D: Array,
    strata: Sequence[NDArray[np.intp]],
    matrices: Sequence[str],
    seed: int,
) -> Interval | None:
    """Mean factor above the median share of the stratum minus that below, with a bootstrap over matrices."""
    names = {name: place for place, name in enumerate(dict.fromkeys(matrices))}
    owner_D = np.array([names[name] for name in matrices])
    # Sums and counts of each matrix (M) in each half (above the median or not) of each stratum (S).
    sums, counts = (np.zeros((2, len(names), len(strata))) for _ in range(2))
    for place, stratum in enumerate(strata):
        is_upper = shares_D[stratum] > np.median(shares_D[stratum])
        for half, own in enumerate((stratum[~is_upper], stratum[is_upper])):
            np.add.at(sums[half, :, place], owner_D[own], factors_D[own])
            np.add.at(counts[half, :, place], owner_D[own], 1.0)
    generator = np.random.default_rng([seed, len(names)])
    draws = generator.multinomial(len(names), np.full(len(names), 1.0 / len(names)), size=NUM_RESAMPLES)
    draws_BM = np.vstack([np.ones(len(names)), draws])
    (lower_BS, upper_BS), (num_lower_BS, num_upper_BS) = draws_BM @ sums, draws_BM @ counts
    weight_BS = np.where((num_lower_BS > 0.0) & (num_upper_BS > 0.0), num_lower_BS + num_upper_BS, 0.0)
    gap_BS = upper_BS / np.maximum(num_upper_BS, 1.0) - lower_BS / np.maximum(num_lower_BS, 1.0)
    total_B = weight_BS.sum(axis=1)
    if total_B[0] == 0.0:
        return None
    found_B = (weight_BS * gap_BS).sum(axis=1)[total_B > 0.0] / total_B[total_B > 0.0]
    return percentile_interval(found_B[1:], float(found_B[0]))
