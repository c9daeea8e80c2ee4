"""One base matrix and its update: the tuned spectrum and the alignment of its top vectors.

Shape suffixes: O out, I in, R rank of the update, K tuned vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from intruscope.errors import ShapeMismatch
from intruscope.linalg.alignment import Alignments, align, aligned_with_itself
from intruscope.linalg.dense import DenseSides
from intruscope.linalg.limits import DENSE_LIMIT
from intruscope.linalg.operators import Operator
from intruscope.linalg.topk import RANDOM_COLUMNS, TopTriplets, dense_triplets, top_triplets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Side = Literal["left", "right"]

_DOUBLE_ENTRIES = 1536 * 1536
"""Up to this size float64 products are cheap, and resolve gaps that float32 cannot."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that the notions of the paper are made of, for one matrix.

    Attributes:
        spectrum: The K leading singular triplets of the tuned matrix: ``singular_values`` (K,), descending,
            in the units of the weights; ``left_MK`` in output space (O, K) and ``right_NK`` in input space
            (I, K), unit columns. float64.
        sides: For each side that was asked for, bounds on the alignment of the K tuned vectors with the base:
            ``lower`` and ``upper`` (K,) in [0, 1], dimensionless; see
            :class:`intruscope.linalg.alignment.Alignments`.
    """

    spectrum: TopTriplets
    sides: dict[Side, Alignments]

    def is_intruder(self, epsilon: float = 0.5, side: Side = "left") -> Tensor:
        """Which of the K tuned vectors are intruders for certain: alignment below epsilon, (K,) of bool."""
        return self.sides[side].upper < epsilon


def analyse(
    base_OI: Tensor | NDArray[Any],
    *,
    left_OR: Tensor | NDArray[Any] | None = None,
    right_RI: Tensor | NDArray[Any] | None = None,
    tuned_OI: Tensor | NDArray[Any] | None = None,
    k: int | None = 10,
    sides: Sequence[Side] = ("left",),
    thresholds: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    deciding: float = 0.5,
    seed: int = 0,
    dense: bool = False,
    shared: DenseSides | None = None,
) -> Analysis:
    """Find the leading singular vectors of a tuned matrix and bound their alignment with its base.

    The alignment of a tuned left singular vector y is ``max_i |u_i . y|`` over all left singular vectors u_i
    of the base (thin SVD). A vector is an *intruder* if its alignment is below epsilon.

    >>> import numpy as np
    >>> import intruscope
    >>> rng = np.random.default_rng(0)
    >>> base = rng.normal(size=(64, 48)).astype("float32")
    >>> tuned = base + 30 * np.outer(rng.normal(size=64), rng.normal(size=48)).astype("float32") / 48
    >>> found = intruscope.linalg.analyse(base, tuned_OI=tuned, k=5)
    >>> found.is_intruder(0.5).tolist()
    [True, False, False, False, False]
    >>> bool((found.sides["left"].upper - found.sides["left"].lower < 1e-6).all())
    True

    Args:
        base_OI: The base matrix (out, in), finite: a torch tensor or a NumPy array. float32 and float64 are
            kept; everything else is converted to float32.
        left_OR: Left factor (out, R) of a low-rank update; with ``right_RI``, W_tuned = base + left @ right,
            which is never formed.
        right_RI: Right factor (R, in).
        tuned_OI: The tuned matrix itself (out, in), instead of factors.
        k: Number of leading tuned vectors to analyse; None for all, which takes a dense decomposition.
        sides: Output space (``left``), input space (``right``), or both.
        thresholds: Values of epsilon that the bounds should separate: bounds are tightened until none of
            these lies between them, within a budget.
        deciding: The epsilon of the verdict. Bounds that still enclose it lead to a dense decomposition.
        seed: Random seed of every random block; equal inputs and seed give equal results on one machine.
        dense: Decompose in float64 at once.
        shared: Dense decompositions of this same base, kept from one update to the next.

    Returns:
        The tuned spectrum and, for each side, lower and upper bounds on every alignment with how they are
        known.

    Raises:
        ValueError: neither or both forms of update were given, or a matrix is empty or not finite.
        ShapeMismatch: the matrices do not fit together.

    Numerics: float32 products for float32 inputs above 1,536 x 1,536, float64 otherwise; all small matrices
        are float64. Both inputs are scaled by one power of two, so tiny and huge weights lose nothing. Where
        the smaller side is at most 1,024, everything comes from dense float64 decompositions. Above that, the
        bounds hold with the probability that ``failure_probability`` states.
    Cost: dense, O(out in min(out, in)). Else about 20 products of either matrix with k + 22 columns, and more
        where vectors are close to a threshold.
    Source: arXiv 2410.21228v3, Algorithm 1, which computes two full SVDs; the bounds are described in
        docs/certificates.md.
    """
    base_OI = _tensor(base_OI)
    left_OR, right_RI, tuned_OI = (
        None if given is None else _tensor(given) for given in (left_OR, right_RI, tuned_OI)
    )
    _check(base_OI, left_OR, right_RI, tuned_OI)
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


def _tensor(given: Tensor | NDArray[Any]) -> Tensor:
    """A tensor in a working precision; arrays that may be written are not copied."""
    if not isinstance(given, Tensor):
        array = np.ascontiguousarray(given)
        if array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float32)
        given = torch.from_numpy(array if array.flags.writeable else array.copy())
    return given if given.dtype in (torch.float32, torch.float64) else given.to(torch.float32)


def _check(base_OI: Tensor, left_OR: Tensor | None, right_RI: Tensor | None, tuned_OI: Tensor | None) -> None:
    """Refuse what has no answer; see :func:`analyse`."""
    if (tuned_OI is None) == (left_OR is None or right_RI is None):
        raise ValueError("give either tuned_OI or both left_OR and right_RI")
    if base_OI.ndim != 2 or 0 in base_OI.shape:
        raise ValueError(f"base_OI has the shape {tuple(base_OI.shape)}; give a matrix that is not empty")
    if tuned_OI is not None:
        tuned_shape = tuple(tuned_OI.shape)
    else:
        assert left_OR is not None
        assert right_RI is not None
        fits = left_OR.ndim == right_RI.ndim == 2 and left_OR.shape[1] == right_RI.shape[0]
        tuned_shape = (left_OR.shape[0], right_RI.shape[1]) if fits else ()
    if tuned_shape != tuple(base_OI.shape):
        given = [tuple(t.shape) for t in (tuned_OI, left_OR, right_RI) if t is not None]
        raise ShapeMismatch(
            f"the base is {tuple(base_OI.shape)}, the update {' and '.join(map(str, given))}",
            remedy="all matrices are (out, in); factors are (out, rank) and (rank, in)",
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
    if not all(bool(torch.isfinite(end)) for end in ends):
        raise ValueError("a matrix holds NaN or infinite entries; give finite ones")
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
