"""The dense path against the naive twin: every kind of matrix, shape, storage, update and side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linalg_cases import BASES, SCALES, STORAGES, Case, case, gaussian, orthonormal
from linalg_checks import Tally, compare
from torch import Tensor

from intruscope.linalg.analysis import analyse
from intruscope.linalg.dense import DenseSides, dense_base
from intruscope.linalg.operators import Operator

SHAPES = ((20, 20), (14, 30), (30, 14), (1, 12), (12, 1), (50, 3))
UNDECIDED_BY_NATURE = {"cluster_1e-13": 0.05}
"""Gaps of a few hundred roundings: the stated error of the vectors is large."""


@pytest.mark.parametrize("kind", BASES)
def test_bounds_contain_the_truth_and_decide_nearly_all(kind: str) -> None:
    tally = Tally()
    for rows, columns in SHAPES:
        for storage in STORAGES:
            for update in ("low_rank", "dense"):
                made = case(kind, rows, columns, storage=storage, update=update)
                found = analyse(made.base_OI, **made.given, k=6, sides=("left", "right"))
                label = f"{kind} {rows}x{columns} {storage} {update}"
                for side, alignments in found.sides.items():
                    compare(alignments, made, 6, side, label, tally)
    assert not tally.faults, tally.report()
    assert tally.undecided_fraction <= UNDECIDED_BY_NATURE.get(kind, 0.02)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", ["gaussian", "power_law_0.5", "hilbert"])
def test_extreme_scales_change_nothing(kind: str, scale: str) -> None:
    tally = Tally()
    for update in ("low_rank", "dense"):
        plain = case(kind, 18, 25, storage="float64", update=update)
        scaled = Case(
            base_OI=plain.base_OI * SCALES[scale],
            left_OR=None if plain.left_OR is None else plain.left_OR * SCALES[scale],
            right_RI=plain.right_RI,
            tuned_OI=None if plain.tuned_OI is None else plain.tuned_OI * SCALES[scale],
        )
        found = analyse(scaled.base_OI, **scaled.given, k=5, sides=("left", "right"))
        expected = analyse(plain.base_OI, **plain.given, k=5, sides=("left", "right"))
        for side, alignments in found.sides.items():
            compare(alignments, plain, 5, side, f"{kind} {scale}", tally)
            torch.testing.assert_close(alignments.upper, expected.sides[side].upper, rtol=0, atol=1e-9)
        torch.testing.assert_close(
            found.spectrum.singular_values / SCALES[scale],
            expected.spectrum.singular_values,
            rtol=1e-12,
            atol=0,
        )
    assert not tally.faults, tally.report()


@pytest.mark.parametrize("largest", [1e-300, 3e-308, 5e-320, 1e300])
def test_float64_near_underflow_and_overflow(largest: float) -> None:
    rng = np.random.default_rng(3)
    base = orthonormal(6, 6, rng) * [1, 0.8, 0.6, 0.5, 0.4, 0.3]
    tuned = base + 2.0 * orthonormal(6, 1, rng) @ orthonormal(6, 1, rng).T
    made = Case(
        base_OI=torch.from_numpy(base * largest),
        left_OR=None,
        right_RI=None,
        tuned_OI=torch.from_numpy(tuned * largest),
    )
    found = analyse(made.base_OI, **made.given, k=3)
    # The stored subnormal numbers have few bits left; it is they that were asked about.
    exact = Case(
        base_OI=made.base_OI / largest, left_OR=None, right_RI=None, tuned_OI=made.tuned_OI / largest
    )
    tally = Tally()
    if largest > 1e-310:
        compare(found.sides["left"], exact, 3, "left", f"{largest}", tally)
    assert not tally.faults, tally.report()
    assert torch.isfinite(found.spectrum.singular_values).all()
    assert torch.isfinite(found.sides["left"].upper).all()


@pytest.mark.parametrize("missing", [0, 1])
def test_a_tuned_cluster_cut_by_k_is_degenerate(missing: int) -> None:
    """tuned = diag(1, 1, ...): the one kept vector could be either; base holds only one of them."""
    tuned = torch.diag(torch.tensor([1.0, 1.0, 0.5, 0.25], dtype=torch.float64))
    base = tuned.clone()
    base[missing, missing] = 0.0
    found = analyse(base, tuned_OI=tuned, k=1).sides["left"]
    assert bool(found.degenerate[0])
    assert float(found.lower[0]) == 0.0
    assert float(found.upper[0]) == 1.0


def test_a_value_of_zero_on_the_long_side_is_degenerate() -> None:
    """The left vector of a zero singular value of a 20 x 3 matrix is any of an 18-dimensional space."""
    rng = np.random.default_rng(0)
    base = torch.from_numpy(gaussian(20, 3, rng))
    tuned = torch.from_numpy(rng.standard_normal((20, 2)) @ rng.standard_normal((2, 3)))
    found = analyse(base, tuned_OI=tuned, k=3, sides=("left", "right"))
    assert found.sides["left"].degenerate.tolist() == [False, False, True]
    assert found.sides["right"].degenerate.tolist() == [False, False, False]
    turned = analyse(base.T, tuned_OI=tuned.T, k=3, sides=("left", "right"))
    assert turned.sides["right"].degenerate.tolist() == [False, False, True]


def test_the_error_of_a_tiny_counted_value_is_stated() -> None:
    """A left vector of a tall matrix mixes with the left null space by ulp σ₁/σ."""
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(5)
    matrix = (orthonormal(20, 3, rng) * [1, 0.5, 3e-14]) @ orthonormal(3, 3, rng).T
    with mpmath.workdps(50):
        exact, _, _ = mpmath.svd_r(mpmath.matrix(matrix.tolist()), full_matrices=False)
    exact_MR = np.array(exact.tolist(), dtype=float)
    found = dense_base(Operator.of(torch.from_numpy(matrix)))
    inner = np.abs((found.left_MR.numpy() * exact_MR).sum(axis=0))
    sine = np.sqrt(np.maximum(0.0, 1.0 - inner**2))
    assert sine[2] > 1e-4, "the matrix no longer shows the effect"
    assert (sine <= found.sine_error.numpy() + 1e-7).all()


@pytest.mark.parametrize("shape", [(24, 24), (14, 30), (30, 14), (12, 1), (240, 210), (210, 240)])
@pytest.mark.parametrize("kind", ["gaussian", "rank_deficient", "zero"])
def test_one_decomposition_gives_the_vectors_of_both_sides(kind: str, shape: tuple[int, int]) -> None:
    """Against a decomposition of the transpose, from whichever side is asked for first."""
    rng = np.random.default_rng(7)
    matrix = torch.from_numpy(gaussian(*shape, rng))
    if kind == "rank_deficient":
        matrix = matrix[:, :1] @ matrix[:1]
    elif kind == "zero":
        matrix = torch.zeros(shape, dtype=torch.float64)
    base = Operator.of(matrix)
    for first in ("left", "right"):
        sides = DenseSides()
        sides.of(base if first == "left" else base.transposed, first, both=True)
        for side, seen in (("left", base), ("right", base.transposed)):
            found, alone = sides.of(seen, side), dense_base(seen)
            torch.testing.assert_close(found.values, alone.values, rtol=1e-12, atol=1e-12)
            assert found.groups == alone.groups
            assert found.left_MR.shape == (seen.shape[0], len(alone.values))
            # Up to a sign, and to what the stated errors of the two allow.
            cosines = (found.left_MR * alone.left_MR).sum(0).abs()
            assert (cosines >= 1.0 - 2.0 * (found.sine_error + alone.sine_error) ** 2 - 1e-12).all()
            torch.testing.assert_close(found.sine_error, alone.sine_error, rtol=1e-3, atol=0.0)
            torch.testing.assert_close(found.tail_error, alone.tail_error, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize(("shape", "driver"), [((20, 33), "svd"), ((210, 230), "eigh")])
def test_a_small_base_is_decomposed_once_for_both_sides(
    shape: tuple[int, int], driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    real = getattr(torch.linalg, driver)

    def counting(matrix: Tensor, **options: bool) -> object:
        seen.append(matrix)
        return real(matrix, **options)

    monkeypatch.setattr(torch.linalg, driver, counting)
    base = torch.from_numpy(gaussian(*shape, np.random.default_rng(1)))
    tuned = base + 3.0 * torch.from_numpy(gaussian(*shape, np.random.default_rng(2)))
    counts = []
    for sides in (("left",), ("left", "right")):
        seen.clear()
        analyse(base, tuned_OI=tuned, k=4, sides=sides)
        counts.append(len(seen))
    assert counts == [2, 2]  # the tuned matrix and the base


def test_every_vector_may_be_asked_for() -> None:
    made = case("power_law_0.5", 12, 19, update="dense")
    found = analyse(made.base_OI, **made.given, k=None, sides=("left", "right"))
    assert len(found.spectrum.singular_values) == 12
    tally = Tally()
    for side, alignments in found.sides.items():
        compare(alignments, made, 12, side, "all", tally)
    assert not tally.faults, tally.report()


def test_the_outside_fraction_is_what_thin_svd_leaves_out() -> None:
    made = case("gaussian", 40, 15, storage="float64", update="dense")
    found = analyse(made.base_OI, **made.given, k=6, sides=("left", "right"))
    projector = np.linalg.svd(made.base_double, full_matrices=False)[0]
    tuned = np.linalg.svd(made.tuned_double, full_matrices=False)[0][:, :6]
    expected = 1.0 - np.linalg.norm(projector.T @ tuned, axis=0) ** 2
    assert expected.max() > 0.05
    outside = found.sides["left"].outside_fraction
    assert outside is not None
    np.testing.assert_allclose(outside.numpy(), expected, atol=1e-12)
    assert found.sides["right"].outside_fraction is None


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_an_empty_matrix_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not empty"):
        analyse(torch.zeros(shape), tuned_OI=torch.zeros(shape))


def test_both_or_neither_form_of_update_is_refused() -> None:
    base = torch.eye(4)
    with pytest.raises(ValueError, match="either"):
        analyse(base)
    with pytest.raises(ValueError, match="either"):
        analyse(base, tuned_OI=base, left_OR=base, right_RI=base)
