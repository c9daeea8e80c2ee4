"""Thin products, rotations, effective rank and operators against what they stand for, formed naively."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linalg_cases import orthonormal, power_law, with_spectrum

from intruscope.linalg import clusters, operators
from intruscope.linalg.dense import dense_base
from intruscope.linalg.effective_rank import effective_rank, estimate_effective_rank
from intruscope.linalg.lowrank import low_rank_singular_values, low_rank_svd, share_inside
from intruscope.linalg.operators import Operator
from intruscope.linalg.rotation import rotate_dense, rotate_low_rank
from intruscope.linalg.topk import dense_triplets, frobenius_norm

SHAPES = [(30, 50, 4), (50, 30, 4), (6, 40, 9), (40, 6, 9), (1, 5, 2), (5, 1, 1)]


def factors(rows, columns, rank, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(torch.from_numpy(rng.standard_normal(s)) for s in ((rows, rank), (rank, columns)))


@pytest.mark.parametrize(("rows", "columns", "rank"), SHAPES)
def test_low_rank_svd_is_the_svd_of_the_product(rows, columns, rank):
    left, right = factors(rows, columns, rank)
    u, values, v = low_rank_svd(left, right)
    expected = np.linalg.svd((left @ right).numpy(), compute_uv=False)
    kept = len(values)
    np.testing.assert_allclose(values, expected[:kept], rtol=1e-11, atol=1e-13 * expected[0])
    assert expected[kept:].max(initial=0.0) <= 1e-13 * expected[0]
    torch.testing.assert_close((u * values) @ v.T, left @ right, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(u.T @ u, torch.eye(kept, dtype=torch.float64), rtol=0, atol=1e-12)
    alone = low_rank_singular_values(left, right)
    torch.testing.assert_close(alone, values, rtol=1e-11, atol=1e-13 * float(expected[0]))


@pytest.mark.parametrize("thin", [True, False])
def test_share_inside_is_the_energy_of_the_projected_update(thin):
    left, right = factors(25, 18, 3)
    rng = np.random.default_rng(4)
    u, v = (torch.from_numpy(orthonormal(size, 4, rng)) for size in (25, 18))
    update = left @ right
    projected = (u @ u.T) @ update @ (v @ v.T)
    expected = float((torch.linalg.matrix_norm(projected) / torch.linalg.matrix_norm(update)) ** 2)
    found = share_inside(u, v, update=(left, right) if thin else update)
    assert found == pytest.approx(expected, rel=1e-10)
    assert 0.0 < found < 0.9
    assert share_inside(u[:, :0], v[:, :0], update=update) == 0.0
    assert share_inside(u, v, update=torch.zeros_like(update)) == 0.0


@pytest.mark.parametrize("shape", [(40, 25), (25, 40)])
def test_rotations_keep_the_spectrum_and_nothing_of_the_directions(shape):
    left, right = factors(*shape, 5, seed=2)
    turned = rotate_low_rank(left, right, seed=1)
    whole = left @ right
    mixed = rotate_dense(whole, seed=1)
    expected = torch.linalg.svdvals(whole)
    for rotated in (turned[0] @ turned[1], mixed):
        torch.testing.assert_close(torch.linalg.svdvals(rotated), expected, rtol=1e-9, atol=1e-9)
        cosine = float((rotated * whole).sum() / whole.square().sum())
        assert abs(cosine) < 0.35
    assert torch.equal(rotate_dense(whole, seed=1), mixed)
    assert not torch.equal(rotate_dense(whole, seed=2), mixed)


def test_rotated_directions_are_uniform():
    """The squared entries of a rotated direction average to 1/n, from a start with one entry only."""
    size, trials = 32, 300
    update = torch.zeros((size, size), dtype=torch.float64)
    update[3, 5] = 1.0
    total = torch.stack([rotate_dense(update, seed=seed).square() for seed in range(trials)]).mean(dim=0)
    expected = 1.0 / size**2
    # Squares of products of two near-Gaussian entries: relative deviation near sqrt(8 / trials).
    assert float(total.mean()) == pytest.approx(expected, rel=1e-9)
    assert float((total / expected - 1.0).abs().mean()) < 2.0 * math.sqrt(8 / trials)


def test_effective_rank_is_the_formula():
    values = torch.tensor([3.0, 2.0, 1.0, 0.0])
    p = np.array([3, 2, 1]) / 6
    assert effective_rank(values) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-12)
    assert effective_rank(torch.ones(7)) == pytest.approx(7.0)
    assert effective_rank(torch.zeros(3)) == 0.0
    assert effective_rank(5.0 * values) == pytest.approx(effective_rank(values), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0.3, 1.0])
def test_the_interval_of_the_estimate_covers_as_often_as_it_says(exponent):
    rng = np.random.default_rng(0)
    matrix = power_law(exponent)(150, 190, rng)
    exact = effective_rank(torch.linalg.svdvals(torch.from_numpy(matrix)))
    operator = Operator.of(torch.from_numpy(matrix))
    found = [estimate_effective_rank(operator, seed=seed) for seed in range(60)]
    covered = sum(estimate.low <= exact <= estimate.high for estimate in found)
    # 95% nominal; fewer than 52 of 60 has probability below 1%, and 60 of 60 is no fault.
    assert covered >= 52
    widths = [estimate.high / estimate.low for estimate in found]
    # Where few values carry the sum, sixteen probes know little; the interval says so and is no wider.
    assert max(widths) < {0.3: 1.3, 1.0: 2.5}[exponent]
    for estimate in found:
        assert 1.0 <= estimate.low <= estimate.value <= estimate.high <= 150.0


@pytest.mark.parametrize("shape", [(700, 40), (40, 700), (1500, 1450)])
def test_an_operator_is_its_matrix(shape):
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(shape, generator=generator)
    left, right = torch.randn(shape[0], 3, generator=generator), torch.randn(3, shape[1], generator=generator)
    whole = dense.double() + left.double() @ right.double()
    operator = Operator.of(dense).plus(left, right)
    for seen, truth in ((operator, whole), (operator.transposed, whole.T)):
        block = torch.randn(truth.shape[1], 5, generator=generator)
        exact = truth @ block.double()
        scale = float(exact.abs().max())
        torch.testing.assert_close(seen.times(block).double(), exact, rtol=0, atol=1e-5 * scale)
        torch.testing.assert_close(seen.times_double(block), exact, rtol=0, atol=1e-12 * scale)
        picked = torch.tensor([0, 7, 39])
        torch.testing.assert_close(seen.rows(picked), truth[picked], rtol=0, atol=1e-12 * scale)
        assert (seen.row_norms() >= torch.linalg.vector_norm(truth, dim=1) * (1 - 1e-6)).all()
        assert seen.shape == tuple(truth.shape)
    torch.testing.assert_close(operator.dense_double(), whole)
    assert frobenius_norm(operator) == pytest.approx(float(torch.linalg.matrix_norm(whole)), rel=1e-6)


@pytest.mark.parametrize("shape", [(24, 24), (31, 17), (17, 31)])
def test_dense_decompositions_agree_with_independent_drivers(shape):
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(3)
    matrix = with_spectrum(np.logspace(0, -9, min(shape)), *shape, rng)
    found = dense_triplets(Operator.of(torch.from_numpy(matrix)), None)
    exact = scipy.linalg.svd(matrix, lapack_driver="gesvd", compute_uv=False)
    noise = np.finfo(float).eps * max(shape) * exact[0]
    np.testing.assert_allclose(found.singular_values, exact, rtol=0, atol=noise)
    assert found.residual_ratio <= 30
    with mpmath.workdps(50):
        left, values, _ = mpmath.svd_r(mpmath.matrix(matrix.tolist()), full_matrices=False)
    np.testing.assert_allclose(
        found.singular_values, np.array(values.tolist(), float).ravel(), rtol=0, atol=noise
    )
    base = dense_base(Operator.of(torch.from_numpy(matrix)))
    exact_left = np.array(left.tolist(), float)[:, : len(base.values)]
    seen = base.left_MR.numpy()
    sine = np.linalg.norm(seen - exact_left * (seen * exact_left).sum(axis=0), axis=0)
    assert (sine <= base.sine_error.numpy() + 1e-14).all()


def test_the_gram_route_equals_the_svd_route(monkeypatch):
    from intruscope.linalg import dense

    rng = np.random.default_rng(6)
    matrix = torch.from_numpy(power_law(0.4)(90, 60, rng))
    slow = dense_base(Operator.of(matrix))
    monkeypatch.setattr(dense, "_GRAM_SIDE", 10)
    fast = dense_base(Operator.of(matrix))
    torch.testing.assert_close(fast.values, slow.values, rtol=1e-12, atol=1e-13)
    inner = (fast.left_MR * slow.left_MR).sum(dim=0).abs()
    torch.testing.assert_close(inner, torch.ones_like(inner), rtol=0, atol=1e-10)


angles = st.floats(0.0, math.pi / 2)


@given(angle=angles, turn=angles, way=st.sampled_from([-1, 1]))
@settings(max_examples=200, deadline=None)
def test_turning_bounds_hold_in_the_plane(angle, turn, way):
    """|cos| after turning by any angle up to the stated one stays between the bounds."""
    cosine = torch.tensor([math.cos(angle)], dtype=torch.float64)
    sine = torch.tensor([math.sin(turn)], dtype=torch.float64)
    seen = abs(math.cos(angle + way * turn))
    # A cosine near one cannot tell angles below sqrt(eps) apart.
    assert float(clusters.sine_lower(cosine, sine)) <= seen + 2e-8
    assert float(clusters.sine_upper(cosine, sine)) >= seen - 2e-8


@given(
    values=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=12),
    error=st.floats(1e-6, 0.05),
)
@settings(max_examples=100, deadline=None)
def test_runs_cover_all_values_and_split_only_at_wide_gaps(values, error):
    ordered = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    groups = clusters.runs(ordered, torch.full_like(ordered, error))
    assert [i for first, last in groups for i in range(first, last + 1)] == list(range(len(values)))
    starts = {first for first, _ in groups} - {0}
    for i in range(1, len(ordered)):
        wide = float(ordered[i - 1] - ordered[i]) > clusters.RESOLUTION * error
        assert (i in starts) == wide


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("whose", ["library", "chunks"])
@pytest.mark.parametrize("shape", [(700, 90), (90, 700)])
def test_rows_times_transpose_is_the_product_whoever_computes_it(monkeypatch, shape, whose, dtype):
    if whose == "chunks":
        monkeypatch.setattr(operators, "_onednn_linear", lambda: None)
    elif operators._onednn_linear() is None:
        pytest.skip("torch without oneDNN")
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(shape, generator=generator, dtype=dtype)
    for seen, given_rows in ((matrix, 3), (matrix.T.contiguous().T, 1), (matrix.T, 20)):
        rows = torch.randn((given_rows, seen.shape[1]), generator=generator, dtype=dtype)
        expected = rows.double() @ seen.double().T
        scale = rows.double().abs() @ seen.double().abs().T
        error = (operators.rows_times_transpose(rows, seen).double() - expected).abs()
        assert bool((error <= 8 * torch.finfo(dtype).eps * scale).all())


def partition(rng, size):
    """A random division of 0 .. size - 1 into neighbours, as inclusive pairs."""
    starts = [0, *(i for i in range(1, size) if rng.random() < 0.4)]
    return list(zip(starts, [*(s - 1 for s in starts[1:]), size - 1], strict=True))


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_labels_and_gaps_are_those_of_the_loop_over_runs(size):
    rng = np.random.default_rng(size)
    for _ in range(10):
        groups = partition(rng, size)
        values = np.sort(rng.random(size))[::-1].copy()
        label, gap = np.zeros(size, dtype=int), np.full(size, np.inf)
        for number, (first, last) in enumerate(groups):
            for i in range(first, last + 1):
                label[i] = number
                outside = [values[j] for j in range(size) if not first <= j <= last]
                gap[i] = min((abs(values[i] - other) for other in outside), default=np.inf)
        assert clusters.labels(groups, size).tolist() == label.tolist()
        cut = max(1, size // 2)
        assert clusters.labels(groups, cut).tolist() == label[:cut].tolist()
        assert clusters.gaps(torch.from_numpy(values), groups).tolist() == gap.tolist()
    assert clusters.labels([], 0).tolist() == clusters.gaps(torch.zeros(0), []).tolist() == []
