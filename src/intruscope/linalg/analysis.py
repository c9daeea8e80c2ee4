"""One base matrix and its update: the tuned spectrum and the alignment of its top vectors.

Shape suffixes: O out, I in, R rank of the update, K tuned vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from intruscope.linalg.alignment import Alignments, align, aligned_with_itself
from intruscope.linalg.dense import DenseSides
from intruscope.linalg.limits import DENSE_LIMIT
from intruscope.linalg.operators import Operator
from intruscope.linalg.topk import RANDOM_COLUMNS, TopTriplets, dense_triplets, top_triplets

if TYPE_CHECKING:
    from collections.abc import Sequence

Side = Literal["left", "right"]

_DOUBLE_ENTRIES = 1536 * 1536
"""Up to this size float64 products are cheap, and resolve gaps that float32 cannot."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything the notions of the paper are made of, for one matrix.

    Attributes:
        spectrum: Top of the tuned matrix; ``left_MK`` lives in output space, ``right_NK`` in input space.
        sides: Alignments per side that was asked for.
    """

    spectrum: TopTriplets
    sides: dict[Side, Alignments]


def analyse(
    base_OI: Tensor,
    *,
    left_OR: Tensor | None = None,
    right_RI: Tensor | None = None,
    tuned_OI: Tensor | None = None,
    k: int | None = 10,
    sides: Sequence[Side] = ("left",),
    thresholds: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    deciding: float = 0.5,
    seed: int = 0,
    dense: bool = False,
    shared: DenseSides | None = None,
) -> Analysis:
    """Find the top of the tuned matrix and bound its alignment with the base.

    Args:
        base_OI: float32 or float64, finite.
        left_OR: With ``right_RI`` a low-rank update: W_tuned = base + left @ right.
        right_RI: See ``left_OR``.
        tuned_OI: Or the tuned matrix itself. Exactly one of the two forms is given.
        k: Tuned vectors to analyse; None for all (dense).
        sides: Output space (left), input space (right) or both.
        thresholds: Values of epsilon that the bounds should separate.
        deciding: The epsilon of the verdict.
        seed: Of every random block; equal inputs and seed give equal results on one machine.
        dense: Decompose in float64 outright.
        shared: Dense decompositions of this same base, kept from one update to the next.

    Raises:
        ValueError: neither or both forms of update, or an empty matrix.

    Numerics: float32 products for large float32 inputs, float64 otherwise; all small matrices float64.
        Both inputs are scaled by one power of two, so tiny and huge weights lose nothing.
    """
    if (tuned_OI is None) == (left_OR is None or right_RI is None) or 0 in base_OI.shape:
        raise ValueError("give either tuned_OI or both factors, and a matrix that is not empty")
    scale = _power_of_two(base_OI, tuned_OI)
    base, tuned = _operators(base_OI, left_OR, right_RI, tuned_OI, scale)
    if shared is None or scale != 1.0:  # the scale depends on the update
        shared = DenseSides()
    smaller = min(base.shape)
    wanted = smaller if k is None else min(k, smaller)
    direct = dense or k is None or smaller <= DENSE_LIMIT or 16 * (wanted + RANDOM_COLUMNS) > smaller
    spectrum = None if direct else top_triplets(tuned, wanted, seed=seed)
    if spectrum is None:
        spectrum = dense_triplets(tuned, wanted)
    unchanged = tuned_OI is not None and torch.equal(tuned_OI, base_OI)
    found: dict[Side, Alignments] = {}
    for side in sides:
        flipped = side == "right"
        seen = base.transposed if flipped else base
        itself = aligned_with_itself(spectrum, seen.shape) if unchanged else None
        found[side] = itself or align(
            seen,
            spectrum,
            spectrum.right_NK if flipped else spectrum.left_MK,
            spectrum.right_error if flipped else spectrum.left_error,
            thresholds=thresholds,
            deciding=deciding,
            seed=seed + 1 + flipped,
            dense=direct,
            decompose=partial(shared.of, seen, side, both=direct and len(sides) > 1),
        )
    return Analysis(
        spectrum=_rescaled(spectrum, scale), sides={s: _rescaled(a, scale) for s, a in found.items()}
    )


def _operators(
    base_OI: Tensor, left_OR: Tensor | None, right_RI: Tensor | None, tuned_OI: Tensor | None, scale: float
) -> tuple[Operator, Operator]:
    """Base and tuned as operators in one working precision, scaled."""
    given = [t for t in (base_OI, left_OR, right_RI, tuned_OI) if t is not None]
    double = base_OI.numel() <= _DOUBLE_ENTRIES or any(t.dtype == torch.float64 for t in given)
    dtype = torch.float64 if double else torch.float32

    def prepared(tensor: Tensor, factor: float) -> Tensor:
        if factor == 1.0:
            return tensor.to(dtype)
        return (tensor.double() * factor).to(dtype)

    base = prepared(base_OI, scale)
    if tuned_OI is not None:
        return Operator.of(base), Operator.of(prepared(tuned_OI, scale))
    assert left_OR is not None
    assert right_RI is not None
    left, right = prepared(left_OR, scale), prepared(right_RI, 1.0)
    operator = Operator.of(base)
    return operator, operator.plus(left, right)


def _power_of_two(base_OI: Tensor, tuned_OI: Tensor | None) -> float:
    """A power of two that brings extreme weights near one; 1 for ordinary ones, which are not copied."""
    ends = [end for t in (base_OI, tuned_OI) if t is not None for end in torch.aminmax(t)]
    largest = max(abs(float(end)) for end in ends)
    if largest == 0.0 or 1e-8 < largest < 1e8:
        return 1.0
    return math.ldexp(1.0, min(1022, -math.frexp(largest)[1]))


@overload
def _rescaled(result: TopTriplets, scale: float) -> TopTriplets: ...
@overload
def _rescaled(result: Alignments, scale: float) -> Alignments: ...
def _rescaled(result: TopTriplets | Alignments, scale: float) -> TopTriplets | Alignments:
    """Undo the scaling in the singular values that leave this module."""
    if isinstance(result, TopTriplets):
        return replace(result, singular_values=result.singular_values / scale)
    return replace(result, best_value=result.best_value / scale, base_norm=result.base_norm / scale)
