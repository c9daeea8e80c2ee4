"""One adapted matrix: what the stored numbers say about its update. This is what a worker process runs.

A module is judged entry by entry. An entry is *resolved* if rounding is smaller than a quarter of its update:
then D cannot agree both with E and with E/2, 0, 2 E or −E. One resolved entry is enough to tell these apart,
and all entries must agree with E. Without a resolved entry a replay decides; see
:mod:`intruscope.verify.rounding`.

Shape suffixes: O out, I in; C rows of one piece.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from intruscope.adapters.experts import ExpertUpdate
from intruscope.adapters.kinds.lora import LoraUpdate
from intruscope.records.plain import plain
from intruscope.spectra.matrix import exact_arithmetic
from intruscope.verify.causes import causes_of
from intruscope.verify.others import compare_tensors
from intruscope.verify.rounding import (
    TENSOR_FLOAT32,
    Factors,
    Sides,
    Update,
    Whole,
    recipes,
    replayed,
    rounded,
)
from intruscope.verify.tasks import Check, Compare, Term, stored_dtypes, term_source
from intruscope.weights.matrices import DenseUpdate, LowRankUpdate
from intruscope.weights.stored import TORCH_NAMES

if TYPE_CHECKING:
    from torch import Tensor

    from intruscope.spectra.records import ScanSettings
    from intruscope.verify.records import ModuleCheck
    from intruscope.verify.rounding import Piece, Recipe
    from intruscope.weights.matrices import StoredUpdate

_RESOLVED = 0.25
"""A bound below this fraction of the update separates E from E/2: each gets half of the distance."""
_BELOW = "the update is smaller than the rounding of the stored dtype"


def verify_task(payload: tuple[Check | Compare, ScanSettings]) -> dict[str, Any]:
    """Judge one adapted matrix, or compare one tensor that should be equal.

    Args:
        payload: What to do, and the number of threads.

    Returns:
        The fields of a :class:`ModuleCheck` with ``square`` and ``error_square`` (‖E‖² and ‖D − E‖²), or of
        a comparison; as plain data.

    Raises:
        IntruscopeError: the files no longer hold what was planned.
    """
    task, settings = payload
    with exact_arithmetic(settings.threads):
        return compare_tensors(task) if isinstance(task, Compare) else _judged(task)


def _judged(check: Check) -> dict[str, Any]:
    sides = load_sides(check)
    damaged = _not_finite(sides)
    if damaged is not None:
        side, reason = damaged
        found = replace(check.open(), reason=reason)
        if side == "merged":
            found = replace(check.open(), status="other change", cause=reason)
        return {**plain(found), "square": None, "error_square": None}
    for reading in sides.readings:
        sums = _sums(reading)
        found = _judge(check, reading, sums)
        if found.status not in ("other change", "open"):
            break
    return {**plain(found), "square": sums.square, "error_square": sums.error_square}


def load_sides(check: Check) -> Sides:
    """Read both sides of a matrix and its updates.

    Raises:
        IntruscopeError: the files no longer hold what was planned.
    """
    merged = check.merged.load()
    base = torch.zeros_like(merged) if check.base is None else check.base.load()
    return Sides(
        base_OI=base,
        merged_OI=merged,
        updates=tuple(_loaded(term, base) for term in check.terms),
        foreign=tuple(_loaded(term, base) for term in check.foreign),
    )


def _loaded(term: Term, base_OI: Tensor) -> Update:
    """Read an update, its factors as they are stored."""
    dtypes = tuple(getattr(torch, TORCH_NAMES[name]) for name in stored_dtypes(term.update))
    start_OI = base_OI.T if term.flipped else base_OI
    wide_OI = start_OI if start_OI.dtype == torch.float64 else start_OI.float()
    update = _without_copied_base(term.update, start_OI)
    factors = _factors(update, wide_OI, term.weight)
    if factors is not None and getattr(update, "is_low_rank", True):
        known = Update(factors, dtypes)
    else:
        found = update.load(wide_OI)
        assert isinstance(found, DenseUpdate)
        form = Whole(found.tuned_OI, term.weight, term.source)
        known = Update(form if factors is None else _with_sizes(form, factors, wide_OI), dtypes)
    return known.flipped() if term.flipped else known


def _without_copied_base(update: StoredUpdate, base_OI: Tensor) -> StoredUpdate:
    """The update without the copy of the base's own weight that PEFT stores beside an embedding's factors."""
    if not isinstance(update, LoraUpdate) or update.replaced is None:
        return update
    kept = update.replaced.load()
    same = kept.shape == base_OI.shape and torch.equal(kept.to(base_OI.dtype), base_OI)
    return replace(update, replaced=None) if same else update


def _factors(update: StoredUpdate, base_OI: Tensor, weight: float) -> Factors | None:
    """The factors of an update, and what they are multiplied by; None if it has none."""
    scale = 1.0
    if isinstance(update, LoraUpdate):
        scale, update = update.scaling, replace(update, scaling=1.0, magnitude=None, replaced=None)
    elif isinstance(update, ExpertUpdate):
        scale, update = update.scaling, replace(update, scaling=1.0)
    elif term_source(update) == "stored":
        return None
    found = update.load(base_OI)
    return (
        Factors(found.left_OR, found.right_RI, scale * weight) if isinstance(found, LowRankUpdate) else None
    )


def _with_sizes(form: Whole, factors: Factors, base_OI: Tensor) -> Whole:
    """A computed matrix with the sizes of the products in it."""
    left, right = factors.left_OR, factors.right_RI[:, : base_OI.shape[1]]
    scale = abs(factors.scale / form.weight)
    sum_OI = base_OI + factors.scale / form.weight * (left @ right)
    row_factor = torch.linalg.vector_norm(form.tuned_OI, dim=1) / torch.linalg.vector_norm(sum_OI, dim=1)
    row_factor = row_factor.nan_to_num(1.0, posinf=1.0).clamp_min(1.0)
    sizes_OI = row_factor[:, None] * scale * (left.abs() @ right.abs())
    return form._replace(sizes_OI=sizes_OI, rank=right.shape[0])


def _not_finite(sides: Sides) -> tuple[str, str] | None:
    """Which side holds NaN or infinity, and a sentence; None if none does."""
    parts = [("base", "the base", sides.base_OI)]
    for update in (*sides.updates, *sides.foreign):
        form = update.form
        held = [form.left_OR, form.right_RI] if isinstance(form, Factors) else [form.tuned_OI]
        parts += [("adapter", "the adapter", each) for each in held]
    parts.append(("merged", "the merged model", sides.merged_OI))
    for side, label, numbers in parts:
        count = int((~numbers.isfinite()).sum())
        if count:
            values = "1 value that is" if count == 1 else f"{count} values that are"
            return side, f"{label} has {values} NaN or infinite"
    return None


@dataclass
class _Sums:
    """Sums over all entries of one matrix, of D, E and the bound; ``resolved`` ones over resolved entries."""

    num_changed: int = 0
    num_outside: int = 0
    num_resolved: int = 0
    square: float = 0.0
    inner: float = 0.0
    change_square: float = 0.0
    bound_square: float = 0.0
    resolved_square: float = 0.0
    resolved_inner: float = 0.0
    resolved_doubt: float = 0.0

    def add(self, piece: Piece, same_dtype: bool, merged_dtype: torch.dtype) -> None:
        change, update, bound = piece.change, piece.update_CI, piece.bound_CI
        kept = piece.base_CI if same_dtype else rounded(piece.base_CI, merged_dtype)
        resolved = bound < _RESOLVED * update.abs()
        self.num_changed += int((piece.merged_CI != kept).sum())
        self.num_outside += int(((change - update).abs() > bound).sum())
        self.num_resolved += int(resolved.sum())
        self.square += _inner(update, update)
        self.inner += _inner(change, update)
        self.change_square += _inner(change, change)
        self.bound_square += _inner(bound, bound)
        chosen = update * resolved
        self.resolved_square += _inner(chosen, chosen)
        self.resolved_inner += _inner(change, chosen)
        self.resolved_doubt += _inner(bound, chosen.abs_())

    @property
    def strength(self) -> float | None:
        """⟨D, E⟩ / ‖E‖², over the resolved entries if there are any."""
        if self.num_resolved:
            return self.resolved_inner / self.resolved_square
        return self.inner / self.square if self.square > 0 else None

    @property
    def strength_error(self) -> float | None:
        """Largest error of the strength that rounding can cause."""
        return self.resolved_doubt / self.resolved_square if self.num_resolved else None

    @property
    def error_square(self) -> float:
        """‖D − E‖²."""
        return max(0.0, self.change_square - 2 * self.inner + self.square)

    def residual(self, strength: float) -> float:
        """‖D − strength · E‖ / ‖E‖."""
        square = self.change_square - 2 * strength * self.inner + strength**2 * self.square
        return math.sqrt(max(0.0, square) / self.square)


def _inner(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.flatten(), other.flatten()))


def _sums(sides: Sides) -> _Sums:
    sums = _Sums()
    same = sides.base_OI.dtype == sides.merged_OI.dtype
    for piece in sides.pieces():
        sums.add(piece, same, sides.merged_OI.dtype)
    return sums


def _judge(check: Check, sides: Sides, sums: _Sums) -> ModuleCheck:
    strength = sums.strength
    blank = replace(
        check.open(),
        strength=strength,
        strength_error=sums.strength_error,
        residual=None if strength is None else sums.residual(strength),
        rounding=None if strength is None else math.sqrt(sums.bound_square / sums.square),
        update_norm=math.sqrt(sums.square),
        num_resolved=sums.num_resolved,
        num_changed=sums.num_changed,
    )
    if strength is None:
        if sums.num_changed and not sides.foreign:
            cause = "the adapter changes nothing here, but the merged model differs from the base"
            return replace(blank, status="other change", cause=cause)
        return replace(blank, reason="the adapter changes nothing here: its update is zero")
    if not sums.num_resolved:
        return _by_replay(check, sides, sums, blank)
    if not sums.num_outside:
        return replace(blank, status="applied")
    if not sums.num_changed:
        return replace(blank, status="not applied", cause="the merged matrix equals the base")
    error = sums.strength_error or 0.0
    if abs(strength - 1.0) <= error:  # the right scale, with something else on top
        return _unlike(check, sides, blank)
    is_none = abs(strength) <= error
    if _agrees(sides, 0.0 if is_none else strength, slack=0.0 if is_none else error / abs(strength)):
        return _scaled(check, blank, strength, error)
    return _unlike(check, sides, blank)


def _scaled(check: Check, blank: ModuleCheck, strength: float, error: float) -> ModuleCheck:
    """The status of another multiple of the update."""
    if abs(strength) <= error:
        return replace(blank, status="not applied", cause="the merged matrix equals the base up to rounding")
    cause = causes_of(strength, error, check.scales)
    return replace(blank, status="wrong sign" if strength < 0 else "wrong scale", cause=cause)


def _agrees(sides: Sides, factor: float = 1.0, *, slack: float = 0.0) -> bool:
    """Whether every entry of D is a multiple of E up to rounding.

    Args:
        sides: The matrix.
        factor: The multiple.
        slack: Relative error of the multiple itself.

    Returns:
        False if E itself is asked for and rounding hides all of it.
    """
    num_resolved = 0
    for piece in sides.pieces(factor):
        size = piece.update_CI.abs()
        if bool(((piece.change - piece.update_CI).abs() > piece.bound_CI + slack * size).any()):
            return False
        num_resolved += int((piece.bound_CI < _RESOLVED * size).sum())
    return num_resolved > 0 or factor != 1.0


def _unlike(check: Check, sides: Sides, blank: ModuleCheck) -> ModuleCheck:
    """The status of a change that is no multiple of the update: transposed, or something else."""
    for one in (sides, _whole(check)):
        if one is not None and one.is_square and not one.foreign:
            turned = replace(one, updates=tuple(u.transposed(one.base_OI) for u in one.updates))
            if _agrees(turned):
                return replace(blank, status="transposed", cause="the update was added transposed")
            if _agrees(replace(one, merged_OI=one.merged_OI.T)):
                return replace(blank, status="transposed", cause="the merged matrix is stored transposed")
    if _agrees(replace(sides, factor_unit=TENSOR_FLOAT32)):
        cause = "the update agrees to the precision of TensorFloat-32 only: was it merged on a GPU with TF32?"
        return replace(blank, status="other change", cause=cause)
    plain_lora = _without_magnitude(check, sides)
    if plain_lora is not None and _agrees(plain_lora):
        cause = "the factors were merged without DoRA's magnitudes"
        return replace(blank, status="other change", cause=cause)
    return replace(blank, status="other change")


def _whole(check: Check) -> Sides | None:
    """The fused matrix that this is a part of; None if it is no part."""
    whole = check.whole()
    return None if whole is None else load_sides(whole)


def _without_magnitude(check: Check, sides: Sides) -> Sides | None:
    """The same with DoRA's factors alone; None where the adapter is no DoRA."""
    if not any(getattr(term.update, "magnitude", None) is not None for term in check.terms):
        return None
    terms = [
        replace(term, update=replace(term.update, magnitude=None))  # type: ignore[type-var]
        if getattr(term.update, "magnitude", None) is not None
        else term
        for term in check.terms
    ]
    return replace(sides, updates=tuple(_loaded(term, sides.base_OI) for term in terms))


@dataclass
class _Replay:
    """How the stored numbers compare with those of one recipe.

    Attributes:
        recipe: How the merge is computed.
        num_wrong: Entries outside of the recipe's interval.
        num_moved: Entries that the recipe surely changes.
    """

    recipe: Recipe
    num_wrong: int = 0
    num_moved: int = 0


def _replay(sides: Sides, recipe: Recipe, factor: float = 1.0) -> _Replay:
    found = _Replay(recipe)
    for piece in sides.pieces():
        kept = rounded(piece.base_CI, sides.merged_OI.dtype)
        low, high = replayed(sides, recipe, piece.rows, factor)
        found.num_wrong += int(((piece.merged_CI < low) | (piece.merged_CI > high)).sum())
        found.num_moved += int(((kept < low) | (kept > high)).sum())
    return found


def _by_replay(check: Check, sides: Sides, sums: _Sums, blank: ModuleCheck) -> ModuleCheck:
    """Decide where rounding hides every entry of the update."""
    found = [_replay(sides, recipe) for recipe in recipes(sides)]
    if not sums.num_changed:
        if min(each.num_moved for each in found):
            moved = found[0].num_moved
            cause = f"the merged matrix equals the base; a merge would have changed {_entries(moved)}"
            return replace(blank, status="not applied", cause=cause)
        return replace(blank, reason=f"{_BELOW}: a merge need not change any stored value")
    matching = [each for each in found if not each.num_wrong and each.num_moved]
    for each in matching:
        others = [_replay(sides, each.recipe, factor) for factor in (0.5, 2.0)]
        if all(other.num_wrong for other in others):
            return replace(_at(blank, sums, 1.0, each), status="applied")
    if matching:
        reason = "half and twice the update give the same stored values"
        return replace(blank, reason=reason)
    for factor in check.candidate_factors:
        for each in found:
            again = _replay(sides, each.recipe, factor)
            if not again.num_wrong and again.num_moved:
                return _scaled(check, _at(blank, sums, factor, each), factor, 0.0)
    if sums.num_outside:
        return _unlike(check, sides, blank)
    return replace(blank, reason=f"{_BELOW}, and no known way to merge gives exactly these values")


def _at(blank: ModuleCheck, sums: _Sums, factor: float, found: _Replay) -> ModuleCheck:
    """The record with the scale that a replay has shown, in place of one that rounding distorts."""
    return replace(blank, strength=factor, residual=sums.residual(factor), replay=found.recipe.words)


def _entries(count: int) -> str:
    return "1 stored value" if count == 1 else f"{count:,} stored values"
