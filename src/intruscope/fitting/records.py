"""What a fit says about the directions of an update, as records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from intruscope.forgetting.intervals import Interval  # noqa: TC001 - decoding reads the hints when it runs

Answer = Literal["more", "less", "no difference", "too few directions"]


@dataclass(frozen=True, kw_only=True)
class Direction:
    """One singular direction of an update, with what the fit made of it.

    Attributes:
        matrix: Name of the matrix.
        index: By falling singular value of the update, from 0.
        factor: The fitted factor: below 1 where the fit turns the direction down.
        intruder_share: Squared cosine between the direction's left vector and the span of the intruders of
            its matrix.
        value: Its singular value σ.
        relative_value: σ over the largest singular value of the base.
        alignment: Largest absolute cosine of its left vector with any left singular vector of the base; None
            for a matrix too large to decompose in passing.
    """

    matrix: str
    index: int
    factor: float
    intruder_share: float
    value: float
    relative_value: float
    alignment: float | None


@dataclass(frozen=True, kw_only=True)
class DirectionTest:
    """Whether a fit turns intruders down more than other directions of the same size.

    The size is σ over the base's σ₁. Strata hold equal numbers of directions.

    Attributes:
        weight: Of the loss on text, in the fit.
        directions: All directions.
        num_strata: How many strata of equal size.
        correlation: Rank correlation of the factor with the share in the intruders, within strata: negative
            where the fit turns intruders down more. None where either does not vary.
        difference: Factor of the directions in the upper half of the intruder share of their stratum, minus
            that of the lower half; averaged over strata. With the interval of a bootstrap over matrices.
        p_value: Share of permutations within strata with a correlation at least as far from zero.
        answer: ``more`` or ``less`` where the permutation test and the interval agree at 5%.
    """

    weight: float
    directions: tuple[Direction, ...]
    num_strata: int
    correlation: float | None
    difference: Interval | None
    p_value: float | None
    answer: Answer
