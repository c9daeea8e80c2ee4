"""The bound and the replays against merges that torch computes in the dtypes themselves."""

import pytest
import torch

from intruscope.verify.rounding import Factors, Sides, Update, Whole, recipes, replayed, unit_roundoff

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
PAIRS = [(F32, F32), (BF16, BF16), (F16, F16), (F32, F16), (F32, BF16), (BF16, F32), (BF16, F16)]
SCALE = 7 / 3


def sides_of(base_dtype, dtype, adapter_dtype, size, seed, num_adapters=1):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(40, 24, generator=generator).to(base_dtype)
    updates = []
    for _ in range(num_adapters):
        left = (size * torch.randn(40, 3, generator=generator)).to(adapter_dtype)
        right = torch.randn(3, 24, generator=generator).to(adapter_dtype)
        updates.append(Update(Factors(left.float(), right.float(), SCALE), (adapter_dtype,)))
    return Sides(base_OI=base, merged_OI=torch.zeros(40, 24, dtype=dtype), updates=tuple(updates))


def merged_as(recipe, sides):
    """The recipe by torch's own arithmetic, step by step, in the dtypes that it names."""
    total = sides.base_OI.to(recipe.start) if recipe.start else sides.base_OI.float()
    changes = []
    for update in sides.updates:
        left, right = update.form.left_OR, update.form.right_RI
        if recipe.factors:
            left, right = left.to(recipe.factors).float(), right.to(recipe.factors).float()
        product = left @ right
        if recipe.product:
            product = product.to(recipe.product).float()
        change = product * update.form.scale
        changes.append(change.to(recipe.update).float() if recipe.update else change)
    if recipe.together:
        changes = [sum(changes)]
        changes = [changes[0].to(recipe.update).float()] if recipe.update else changes
    for change in changes:
        total = total.float() + change
        total = total.to(recipe.sum) if recipe.sum else total
    return total.to(sides.merged_OI.dtype)


@pytest.mark.parametrize("num_adapters", [1, 2])
@pytest.mark.parametrize("adapter_dtype", [F32, BF16])
@pytest.mark.parametrize(("base_dtype", "dtype"), PAIRS)
def test_every_recipe_lies_in_its_interval_and_within_the_bound(
    base_dtype, dtype, adapter_dtype, num_adapters
):
    for seed, size in enumerate((1.0, 0.01, 1e-4)):
        sides = sides_of(base_dtype, dtype, adapter_dtype, size, seed, num_adapters)
        for recipe in recipes(sides):
            merged = merged_as(recipe, sides).double()
            low, high = replayed(sides, recipe, slice(0, 40))
            assert bool(((low <= merged) & (merged <= high)).all()), recipe
            if dtype != F32:  # mostly a single number; products of short numbers are often ties
                assert float((low != high).double().mean()) < 0.1
            done = Sides(base_OI=sides.base_OI, merged_OI=merged.to(dtype), updates=sides.updates)
            (piece,) = done.pieces()
            error = (piece.change - piece.update_CI).abs()
            assert bool((error <= piece.bound_CI).all()), recipe


def test_neither_lets_another_update_pass():
    sides = sides_of(F32, F32, F32, 0.01, 0)
    (recipe,) = recipes(sides)
    right = merged_as(recipe, sides)
    for factor in (0.0, 0.5, 2.0, -1.0, 1.001):
        scaled = Update(sides.updates[0].form._replace(scale=SCALE * factor), (F32,))
        wrong = merged_as(recipe, Sides(sides.base_OI, right, (scaled,)))
        low, high = replayed(sides, recipe, slice(0, 40))
        assert float(((wrong < low) | (wrong > high)).double().mean()) > 0.9
        (piece,) = Sides(sides.base_OI, wrong, sides.updates).pieces()
        assert float(((piece.change - piece.update_CI).abs() > piece.bound_CI).double().mean()) > 0.9


def test_the_bound_is_not_far_above_what_rounding_does():
    """The bound is at most 16 times the largest error that is seen, so it is no loose one."""
    for base_dtype, dtype in ((F32, F32), (BF16, BF16), (F16, F16)):
        sides = sides_of(base_dtype, dtype, F32, 0.01, 1)
        merged = merged_as(recipes(sides)[0], sides)
        (piece,) = Sides(sides.base_OI, merged, sides.updates).pieces()
        ratio = (piece.change - piece.update_CI).abs() / piece.bound_CI
        assert 1 / 16 < float(ratio.max()) <= 1


def test_unit_roundoffs_are_those_of_the_dtypes():
    assert [unit_roundoff(dtype) for dtype in (torch.float64, F32, F16, BF16)] == [
        2.0**-53, 2.0**-24, 2.0**-11, 2.0**-8,
    ]  # fmt: skip


def test_pieces_are_the_rows_of_the_whole(monkeypatch):
    sides = sides_of(F32, F16, F32, 0.1, 2)
    (whole,) = sides.pieces(0.5)
    monkeypatch.setattr("intruscope.verify.rounding._PIECE_ENTRIES", 7 * 24)
    pieces = list(sides.pieces(0.5))
    assert [piece.rows.start for piece in pieces] == [0, 7, 14, 21, 28, 35]
    for name in ("base_CI", "update_CI", "bound_CI"):
        together = torch.cat([getattr(piece, name) for piece in pieces])
        torch.testing.assert_close(together, getattr(whole, name), rtol=1e-12, atol=0)


def test_transposing_and_flipping():
    sides = sides_of(F32, F32, F32, 0.1, 3)
    square = torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
    form = sides.updates[0].form
    factors = Update(Factors(form.left_OR[:24], form.right_RI, SCALE), (F32,))
    dense = square + SCALE * factors.form.left_OR @ factors.form.right_RI
    for update in (factors, Update(Whole(dense, 1.0, "stored"), (F32,))):
        turned = Sides(square, square, (update.transposed(square),))
        flipped = Sides(square.T, square, (update.flipped(),))
        (plain,) = Sides(square, square, (update,)).pieces()
        for other in (turned, flipped):
            (piece,) = other.pieces()
            torch.testing.assert_close(piece.update_CI, plain.update_CI.T, rtol=1e-5, atol=1e-6)
