"""The closest matrix of a rank: equal to numpy's, by every path, and inside its own bounds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intruscope.linalg import truncated
from intruscope.linalg.truncated import leading, left_squares, smallest_rank, spectral_bounds, within


def falling(rows, columns, power=0.8, seed=0, dtype=torch.float64):
    """A matrix with singular values i^-power."""
    generator = torch.Generator().manual_seed(seed)
    size = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, size, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, size, generator=generator, dtype=torch.float64))[0]
    values = torch.arange(1, size + 1, dtype=torch.float64) ** -power
    return ((left * values) @ right.T).to(dtype)


def product(found, rank):
    up, down = found.factors(rank)
    return (up @ down).numpy()


@pytest.fixture
def small_is_large(monkeypatch):
    """The paths of large matrices on small ones, which numpy decomposes in no time."""
    monkeypatch.setattr(truncated, "DENSE_LIMIT", 200)
    monkeypatch.setattr(truncated, "_FACTOR_OF_DENSE", 8)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 30),
    rank=st.integers(1, 35),
    seed=st.integers(0, 99),
    as_factors=st.booleans(),
)
def test_small_matrices_are_those_of_numpy(rows, columns, rank, seed, as_factors):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    right = torch.randn(4, columns, generator=generator, dtype=torch.float64)
    matrix = left @ right
    found = leading((left, right) if as_factors else matrix, rank, seed=0)
    u, values, v = np.linalg.svd(matrix.numpy(), full_matrices=False)
    kept = min(rank, len(found.values_K))
    expected = (u[:, :kept] * values[:kept]) @ v[:kept]
    np.testing.assert_allclose(product(found, kept), expected, atol=1e-12 * values[0] * 30)
    assert found.complete
    assert found.total_square == pytest.approx(float((values**2).sum()), rel=1e-12)
    rest = np.linalg.norm(matrix.numpy() - product(found, kept), 2)
    low, high = spectral_bounds(found, kept)
    tiny = 1e-12 * values[0]
    assert low - tiny <= rest <= high + tiny
    assert high <= rest + 1e-9 * values[0]


def test_a_matrix_above_the_limit_takes_krylov_products():
    matrix = falling(1030, 1040, dtype=torch.float32)
    found = leading(matrix, 3, seed=0)
    assert not found.complete
    assert found.certificate == "probabilistic"
    expected = torch.arange(1, 4, dtype=torch.float64) ** -0.8
    torch.testing.assert_close(found.values_K[:3], expected, rtol=1e-6, atol=0.0)


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("shape", [(300, 420), (420, 300)])
@pytest.mark.parametrize("path", ["krylov", "gram"])
def test_large_matrices_are_those_of_numpy(shape, path, monkeypatch):
    if path == "gram":
        monkeypatch.setattr(truncated, "top_triplets", lambda *_, **__: None)
    matrix = falling(*shape, dtype=torch.float32)
    rank = 20
    found = leading(matrix, rank + 1, seed=3)
    assert not found.complete
    assert found.certificate == ("probabilistic" if path == "krylov" else "dense")
    assert (found.failure_probability > 0.0) == (path == "krylov")
    exact = matrix.double().numpy()
    u, values, v = np.linalg.svd(exact, full_matrices=False)
    np.testing.assert_allclose(found.values_K.numpy(), values[: rank + 1], rtol=1e-10)
    best = np.linalg.norm(exact - (u[:, :rank] * values[:rank]) @ v[:rank])
    got = np.linalg.norm(exact - product(found, rank))
    assert best * (1 - 1e-12) <= got <= best * (1 + 1e-9)
    stated = float(left_squares(found.values_K, found.total_square, complete=False)[rank]) ** 0.5
    assert stated == pytest.approx(got, rel=1e-9)
    low, high = spectral_bounds(found, rank)
    rest = np.linalg.norm(exact - product(found, rank), 2)
    assert low <= rest * (1 + 1e-12)
    assert rest <= high
    assert high <= rest * (1 + 1e-3)


def test_bounds_hold_for_directions_that_have_not_converged():
    """Of any orthonormal vectors, not only of good ones: here the right ones turned by a tenth."""
    matrix = falling(40, 30)
    true = np.linalg.svd(matrix.numpy())[2][:8].T
    noise = np.random.default_rng(0).standard_normal(true.shape)
    turned = torch.from_numpy(true + 0.02 * noise)
    found = truncated._measured(
        truncated.Operator.viewing(matrix),
        turned,
        float(matrix.square().sum()),
        complete=False,
    )
    for rank in range(1, 8):
        rest = matrix.numpy() - product(found, rank)
        low, high = spectral_bounds(found, rank)
        assert low <= np.linalg.norm(rest, 2) <= high
        stated = left_squares(found.values_K, found.total_square, complete=False)[rank]
        assert float(stated) == pytest.approx(np.linalg.norm(rest) ** 2, rel=1e-9)
    assert high > 1.01 * np.linalg.norm(rest, 2)  # and they say that something is off


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=12), fraction=st.floats(0.0, 1.0))
def test_the_smallest_rank_is_the_first_that_suffices(values, fraction):
    ordered = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    total = float(ordered.square().sum())
    rank = smallest_rank(ordered, total, fraction, complete=True)
    left = [math.fsum(float(v) ** 2 for v in ordered[r:]) for r in range(len(ordered) + 1)]
    assert rank is not None
    assert left[rank] <= fraction * total + 1e-12 * total
    if rank:
        assert left[rank - 1] > fraction * total - 1e-12 * total


@pytest.mark.usefixtures("small_is_large")
def test_a_planted_rank_is_found_on_every_path():
    for shape, dtype in (((60, 40), torch.float64), ((260, 300), torch.float32)):
        matrix = (falling(shape[0], 3) @ falling(3, shape[1], seed=1)).to(dtype)
        found, rank = within(matrix, 1e-8, seed=0)
        assert rank == 3
        error = np.linalg.norm(matrix.double().numpy() - product(found, 3)) / matrix.double().norm()
        assert error < 1e-6
    factors = falling(60, 9), torch.cat([falling(3, 40, seed=1), torch.zeros(6, 40, dtype=torch.float64)])
    assert within(factors, 0.0, seed=0)[1] == 3


@pytest.mark.usefixtures("small_is_large")
def test_a_share_that_needs_many_directions_ends_dense():
    """A flat spectrum: the doubling goes on to all of them and no further."""
    matrix = torch.randn(240, 260, generator=torch.Generator().manual_seed(0))
    found, rank = within(matrix, 0.5, seed=0)
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    shares = (values**2).cumsum() / (values**2).sum()
    assert rank == int(np.argmax(shares >= 0.5)) + 1
    assert found.certificate == "dense"
    assert within(matrix, 0.0, seed=0)[1] == 240
