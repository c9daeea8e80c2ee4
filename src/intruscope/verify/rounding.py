"""What rounding can do to a merge: a bound for every entry, and replays of the usual ways to merge.

**The bound.** A merge computes T = W + E and stores it. It may cast the base, form the sum, and cast the sum
again; each step rounds to the base's or the merged model's dtype, by at most ``u`` times the number that is
rounded (``u`` is the unit roundoff: 2⁻²⁴ in float32, 2⁻¹¹ in float16, 2⁻⁸ in bfloat16). With G = |s| |B| |A|
(the entrywise product of the absolute factors) the update E = s B A itself can differ by

- 2 u G if both factors are cast to the merge's dtype, and 2 u |E| if the product and then its multiple are;
- (r + 2) 2⁻²⁴ G from sums of r products in float32 (Higham, Accuracy and Stability of Numerical Algorithms,
  2nd ed., section 3.1), in any order.

So ``|merged − T| <= 2 u |T| + u |W| + 2 u_E (G + |E|) + (r + 2) 2⁻²⁴ G``, plus the smallest number that the
dtypes can represent. ``u`` is that of the coarser of base and merged model (``u |W|`` only if their dtypes
differ), and ``u_E`` that of the coarsest of these and the adapter. A merge that is computed in float32
throughout rounds to the merged model's dtype alone; where that is finer, this smaller bound is tried first.

**The replays.** If the update is smaller than the rounding, the bound says nothing. But merging is
deterministic: W + E moves some stored numbers and not others. Every way to merge in :func:`recipes` is a
chain of monotone steps, so the interval that E is known to lie in gives an interval of stored numbers,
usually a single one. The merged model holds the adapter if all of its numbers lie in these intervals.

PEFT 0.21 (``tuners/lora/layer.py``): ``Linear`` and ``Conv`` round s B A to the adapter's dtype when they run
on a CPU in half precision; ``Embedding`` and wrapped parameters round it to the base's. The sum is then
rounded to the base's dtype once.

Shape suffixes: O out, I in, R rank; C rows of one piece.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FLOAT32 = 2.0**-24
"""Unit roundoff of float32, in which merges of half precision are computed too."""
TENSOR_FLOAT32 = 2.0**-11
"""Unit roundoff of TensorFloat-32, in which GPUs multiply float32 matrices if a program allows it."""
_DORA_STEPS = 32
"""Roundings on the way to a row's norm (pairwise sums of at most 2³⁰ squares), and of DoRA's other steps."""
_PIECE_ENTRIES = 1 << 20


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding to nearest."""
    return float(torch.finfo(dtype).eps) / 2


def smallest(dtype: torch.dtype) -> float:
    """The smallest positive number of a dtype: what rounding below its normal range can cost."""
    found = torch.finfo(dtype)
    return float(found.smallest_normal) * float(found.eps)


def rounded(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Round float64 numbers to a dtype, by way of float32 as arithmetic in half precision does."""
    return values if dtype is None else values.to(dtype).double()


class Factors(NamedTuple):
    """An update as a product: ``scale * left_OR @ right_RI``, factors as stored."""

    left_OR: Tensor
    right_RI: Tensor
    scale: float


class Whole(NamedTuple):
    """An update as the tuned matrix: ``weight * (tuned_OI - base)``.

    Attributes:
        tuned_OI: The matrix that a weight of 1 gives.
        weight: How much of the difference should be added.
        source: ``stored`` numbers are copied; those of ``dora`` and of ``computed`` updates are calculated,
            and rounded on the way.
        sizes_OI: G of the factors in it, times DoRA's factor of each row; None if it has no factors.
        rank: Rank of these factors.
    """

    tuned_OI: Tensor
    weight: float
    source: str
    sizes_OI: Tensor | None = None
    rank: int = 0

    def noise(self, rows: slice, base_CI: Tensor, unit: float) -> Tensor:
        """How far numbers that were computed, not copied, may be off on some rows.

        Args:
            rows: The rows to look at.
            base_CI: The base's numbers in these rows.
            unit: Unit roundoff of the factors and of their product.
        """
        tuned = self.tuned_OI[rows].double()
        if self.source == "stored":
            return torch.zeros_like(tuned)
        if self.source == "computed":
            # Products of square matrices (OFT, BOFT ...): sums over all columns of numbers up to the largest.
            largest = float(tuned.abs().max()) if tuned.numel() else 0.0
            return torch.full_like(tuned, tuned.shape[1] * FLOAT32 * largest)
        found = _DORA_STEPS * FLOAT32 * (tuned.abs() + base_CI.abs())
        if self.sizes_OI is not None:
            found += (4 * unit + (self.rank + 2) * FLOAT32) * self.sizes_OI[rows].double()
        return found


@dataclass(frozen=True)
class Update:
    """One adapter's update of one matrix, read.

    Attributes:
        form: The factors, or the whole matrix.
        dtypes: The dtypes that its numbers are stored in.
    """

    form: Factors | Whole
    dtypes: tuple[torch.dtype, ...]

    def transposed(self, base_OI: Tensor) -> Update:
        """The update transposed, of a square matrix."""
        turned = self.flipped()
        if isinstance(turned.form, Factors):
            return turned
        base = base_OI.double()
        tuned_OI = base + turned.form.tuned_OI.double() - base.T
        return replace(turned, form=turned.form._replace(tuned_OI=tuned_OI))

    def flipped(self) -> Update:
        """The same update of the same matrix in its other orientation."""
        form = self.form
        if isinstance(form, Factors):
            return Update(Factors(form.right_RI.T, form.left_OR.T, form.scale), self.dtypes)
        sizes_OI = None if form.sizes_OI is None else form.sizes_OI.T
        return Update(form._replace(tuned_OI=form.tuned_OI.T, sizes_OI=sizes_OI), self.dtypes)


class Piece(NamedTuple):
    """Some rows of a matrix, in float64.

    Attributes:
        rows: Where they lie in the matrix.
        base_CI, merged_CI: The numbers before and after.
        update_CI: E, the update that should have been added.
        foreign_CI: What other modules that share the matrix add to it.
        bound_CI: The largest error that rounding can cause in each entry of ``merged - base - foreign - E``.
    """

    rows: slice
    base_CI: Tensor
    merged_CI: Tensor
    update_CI: Tensor
    foreign_CI: Tensor
    bound_CI: Tensor

    @property
    def change(self) -> Tensor:
        """D: the merged model minus the base, without what other modules add."""
        return self.merged_CI - self.base_CI - self.foreign_CI


@dataclass(frozen=True)
class Sides:
    """One matrix before and after, with what should have been added.

    Attributes:
        base_OI, merged_OI: Both matrices in their stored dtypes.
        updates: The module's own updates, one from each adapter that changes it.
        foreign: The updates of other modules that share the matrix.
        wide: Assume that all steps but the last were computed in float32 or wider.
        factor_unit: Unit roundoff of the product of the factors, if it was coarser than the dtypes say.
    """

    base_OI: Tensor
    merged_OI: Tensor
    updates: tuple[Update, ...]
    foreign: tuple[Update, ...] = ()
    wide: bool = False
    factor_unit: float = 0.0

    @property
    def is_square(self) -> bool:
        """Whether the transpose fits in its place."""
        return self.base_OI.shape[0] == self.base_OI.shape[1]

    def pieces(self, factor: float = 1.0) -> Iterator[Piece]:
        """The matrix in pieces of whole rows.

        Args:
            factor: Multiple of E to take as the update.
        """
        num_rows, num_columns = self.base_OI.shape
        step = max(1, _PIECE_ENTRIES // max(1, num_columns))
        for first in range(0, num_rows, step):
            yield self._piece(slice(first, min(first + step, num_rows)), factor)

    def _piece(self, rows: slice, factor: float) -> Piece:
        base, merged = self.base_OI[rows].double(), self.merged_OI[rows].double()
        own, noise = torch.zeros_like(base), torch.zeros_like(base)
        foreign = torch.zeros_like(base)
        for update in self.updates:
            change, doubt = self._change(update, rows, base)
            own += factor * change
            noise += abs(factor) * doubt
        for update in self.foreign:
            change, doubt = self._change(update, rows, base)
            foreign += change
            noise += doubt
        unit = unit_roundoff(self.coarsest)
        bound = 2 * unit * (base + foreign + own).abs_() + noise
        if self.base_OI.dtype != self.merged_OI.dtype:
            bound += unit * base.abs()
        bound += smallest(self.coarsest)
        if self.base_OI.dtype == self.merged_OI.dtype:
            bound[(own == 0) & (foreign == 0)] = 0.0  # adding nothing rounds nothing
        return Piece(rows, base, merged, own, foreign, bound)

    @property
    def coarsest(self) -> torch.dtype:
        """The coarsest dtype that both sides may have been rounded to."""
        if self.wide:
            return self.merged_OI.dtype
        return max(self.base_OI.dtype, self.merged_OI.dtype, key=unit_roundoff)

    @property
    def readings(self) -> list[Sides]:
        """The same with ``wide`` first, where that makes a difference."""
        updates = (*self.updates, *self.foreign)
        dtypes = [self.base_OI.dtype, *(dtype for update in updates for dtype in update.dtypes)]
        own = unit_roundoff(self.merged_OI.dtype)
        if all(unit_roundoff(dtype) <= max(own, FLOAT32) for dtype in dtypes):
            return [self]
        return [replace(self, wide=True), self]

    def _change(self, update: Update, rows: slice, base: Tensor) -> tuple[Tensor, Tensor]:
        """An update on some rows, and how far a merge may be off it before it is added."""
        form = update.form
        unit = max(unit_roundoff(self.coarsest), self.factor_unit)
        if not self.wide:
            unit = max(unit, *map(unit_roundoff, update.dtypes))
        if isinstance(form, Factors):
            left, right = form.left_OR[rows].double(), form.right_RI.double()
            change = (form.scale * left) @ right
            # A sum of positive numbers: float32 loses next to nothing of it.
            sizes = (left.abs().float() @ right.abs().float()).double().mul_(abs(form.scale))
            sums = 2 * unit + (right.shape[0] + 3) * FLOAT32
            return change, sizes.mul_(sums).add_(change.abs(), alpha=2 * unit)
        tuned = form.tuned_OI[rows].double()
        change = form.weight * (tuned - base)
        doubt = abs(form.weight) * form.noise(rows, base, unit)
        if form.source != "stored":
            doubt += 3 * unit_roundoff(self.coarsest) * (tuned.abs() + base.abs()) + 2 * unit * change.abs()
        elif form.weight != 1.0:
            doubt += 2 * unit * change.abs()
        return change, doubt


@dataclass(frozen=True)
class Recipe:
    """One way to merge, by the dtypes that its steps round to; None for float32 or wider.

    Attributes:
        words: Description for the report.
        start: Dtype of the base before anything is added.
        factors: Dtype of A and B.
        product: Dtype of B A.
        update: Dtype of the scaled product.
        sum: Dtype of the base plus the update; each adapter is added in turn.
        together: Sum the adapters before they are added.
    """

    words: str
    start: torch.dtype | None = None
    factors: torch.dtype | None = None
    product: torch.dtype | None = None
    update: torch.dtype | None = None
    sum: torch.dtype | None = None
    together: bool = False


def recipes(sides: Sides) -> list[Recipe]:
    """The usual ways to merge into these dtypes, most usual first."""
    base, merged = sides.base_OI.dtype, sides.merged_OI.dtype
    updates = (*sides.updates, *sides.foreign)
    dtypes = dict.fromkeys([*(dtype for update in updates for dtype in update.dtypes), base, merged])
    narrow = [dtype for dtype in dtypes if is_narrow(dtype)]
    found = [Recipe("added in float32, rounded once")]
    if is_narrow(base) and (base != merged or len(updates) > 1):
        found.append(Recipe(f"added in float32, rounded to {name(base)}", sum=base))
    for dtype in narrow:
        found.append(Recipe(f"the update rounded to {name(dtype)}, then added", update=dtype, sum=base))
    for dtype in narrow:
        kind = name(dtype)
        start, to = (dtype, dtype) if dtype in (base, merged) else (None, base)
        cast = Recipe(f"adapter cast to {kind}", start=start, factors=dtype, update=dtype, sum=to)
        found += [cast, replace(cast, words=f"all arithmetic in {kind}", product=dtype)]
    if len(updates) > 1:
        found += [
            replace(each, words=f"{each.words}, adapters summed first", together=True) for each in found
        ]
    return found


def is_narrow(dtype: torch.dtype) -> bool:
    """Whether a dtype is coarser than float32."""
    return unit_roundoff(dtype) > FLOAT32


def name(dtype: torch.dtype) -> str:
    """``bfloat16`` and so on."""
    return str(dtype).removeprefix("torch.")


class Interval(NamedTuple):
    """Numbers that lie between two others."""

    low: Tensor
    high: Tensor

    def rounded(self, dtype: torch.dtype | None) -> Interval:
        """Both ends rounded: rounding keeps the order."""
        return Interval(rounded(self.low, dtype), rounded(self.high, dtype))

    def plus(self, other: Interval) -> Interval:
        """The sum of two float32 numbers that lie in these intervals, in float32."""
        found = Interval(self.low + other.low, self.high + other.high)
        return found.rounded(torch.float32)

    def times(self, factor: float) -> Interval:
        """A multiple in float32. The factor may have been rounded to float32 before."""
        near = float(torch.tensor(factor, dtype=torch.float32))
        ends = torch.stack([end * each for end in self for each in (factor, near)])
        return Interval(ends.amin(dim=0), ends.amax(dim=0)).rounded(torch.float32)


def replayed(sides: Sides, recipe: Recipe, rows: slice, factor: float = 1.0) -> Interval:
    """The stored numbers that a recipe gives on some rows.

    Args:
        sides: The matrix.
        recipe: How it is merged.
        rows: The rows to compute.
        factor: Multiple of the module's own updates to add.
    """
    base = sides.base_OI[rows].double()
    found = Interval(base, base).rounded(recipe.start)
    changes = [_known(each, recipe, rows, base, factor) for each in sides.updates]
    changes += [_known(each, recipe, rows, base, 1.0) for each in sides.foreign]
    if recipe.together:
        changes = [_sum(changes).rounded(recipe.update)]
    for change in changes:
        found = found.plus(change).rounded(recipe.sum)
    return found.rounded(sides.merged_OI.dtype)


def _sum(changes: Sequence[Interval]) -> Interval:
    found = changes[0]
    for change in changes[1:]:
        found = found.plus(change)
    return found


def _known(update: Update, recipe: Recipe, rows: slice, base: Tensor, factor: float) -> Interval:
    """The interval in which a recipe's update lies on some rows."""
    form = update.form
    if isinstance(form, Whole):
        tuned = form.tuned_OI[rows].double()
        change, doubt = tuned - base, form.noise(rows, base, FLOAT32)
        return Interval(change - doubt, change + doubt).times(form.weight * factor).rounded(recipe.update)
    left = rounded(form.left_OR[rows].double(), recipe.factors)
    right = rounded(form.right_RI.double(), recipe.factors)
    product = left @ right
    doubt = (right.shape[0] + 2) * FLOAT32 * (left.abs() @ right.abs())
    known = Interval(product - doubt, product + doubt).rounded(recipe.product)
    return known.times(form.scale * factor).rounded(recipe.update)
