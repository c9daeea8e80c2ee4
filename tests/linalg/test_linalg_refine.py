"""One float64 step parts what float32 cannot, and its stated errors hold against a dense twin."""

import numpy as np
import pytest
import torch
from linalg_cases import orthonormal

from intruscope.linalg.operators import Operator
from intruscope.linalg.refine import refine

ROWS, COLUMNS, COUNT = 120, 90, 6


def problem(values, *, noise, seed=0, rows=ROWS, columns=COLUMNS):
    """A matrix with known triplets, and the leading ones turned by rounding of the given size."""
    rng = np.random.default_rng(seed)
    size = min(rows, columns)
    left, right = orthonormal(rows, size, rng), orthonormal(columns, size, rng)
    spectrum = np.concatenate([values, np.linspace(0.5, 0.01, size - len(values))])
    matrix = (left * spectrum) @ right.T
    count = len(values)
    turned_left = np.linalg.qr(left[:, :count] + noise * rng.standard_normal((rows, count)))[0]
    turned_right = np.linalg.qr(right[:, :count] + noise * rng.standard_normal((columns, count)))[0]
    # Inside the space the computed vectors are mixed at will, as Krylov vectors of a close pair are.
    mix = orthonormal(count, count, rng)
    start = [torch.from_numpy(turned @ mix) for turned in (turned_left, turned_right)]
    return torch.from_numpy(matrix), left[:, :count], right[:, :count], start


def sines(found, exact):
    return np.linalg.norm(found.numpy() - exact * (found.numpy() * exact).sum(axis=0), axis=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [1e-9, 1e-7, 1e-5])
def test_errors_hold_and_a_close_pair_is_parted(noise, seed):
    values = np.array([4.0, 3.0, 3.0 - 1e-4, 2.0, 1.5, 1.2])
    matrix, left, right, start = problem(values, noise=noise, seed=seed)
    found = refine(Operator.of(matrix), *start, floor=0.6)
    assert found is not None
    # The start is off by noise √ROWS; values to second order, times the norm and a factor two.
    np.testing.assert_allclose(found.values, values, rtol=0, atol=8 * ROWS * noise**2 + 1e-13)
    assert len(set(found.cluster.tolist())) == COUNT
    for half, exact in ((found.left_MC, left), (found.right_NC, right)):
        assert (sines(half, exact) <= found.sine_error.numpy() + 1e-14).all()
    # A residual of this size would turn the pair by ROWS^(1/2) noise / 1e-4; here that is second order.
    assert float(found.sine_error.max()) < 400 * noise + 1e-10


def test_a_pair_closer_than_the_second_order_is_one_cluster_with_a_sound_subspace():
    values = np.array([4.0, 3.0, 3.0 - 1e-13, 2.0, 1.5, 1.2])
    matrix, left, _, start = problem(values, noise=1e-6)
    found = refine(Operator.of(matrix), *start, floor=0.6)
    assert found is not None
    assert found.cluster.tolist() == [0, 1, 1, 2, 3, 4]
    seen, plane = found.left_MC[:, 1:3].numpy(), left[:, 1:3]
    turned = np.linalg.norm(seen - plane @ (plane.T @ seen), axis=0)
    assert (turned <= found.sine_error[1:3].numpy()).all()
    assert float(found.sine_error[1]) < 1e-3


def test_a_vector_at_the_floor_is_not_trusted():
    values = np.array([4.0, 3.0, 2.5, 2.0, 1.5, 1.2])
    matrix, _, _, start = problem(values, noise=1e-6)
    found = refine(Operator.of(matrix), *start, floor=1.2 - 1e-4)
    assert found is not None
    assert float(found.sine_error[-1]) > 0.1
    assert float(found.sine_error[0]) < 1e-4
    assert refine(Operator.of(matrix), *start, floor=1.3) is None


def test_an_update_is_part_of_the_matrix():
    values = np.array([4.0, 3.0, 2.5, 2.0, 1.5, 1.2])
    matrix, _, _, start = problem(values, noise=1e-7)
    rng = np.random.default_rng(9)
    a, b = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((ROWS, 2), (2, COLUMNS)))
    through = refine(Operator.of(matrix - a @ b).plus(a, b), *start, floor=0.6)
    whole = refine(Operator.of(matrix), *start, floor=0.6)
    assert through is not None
    assert whole is not None
    torch.testing.assert_close(through.values, whole.values, rtol=1e-12, atol=0)
